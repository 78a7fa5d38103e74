"""The page about a run: what was asked, what came of it, at what cost, and how to do it again.

All numbers are answers of queries, which are printed beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.queries import Database
from orchestrator.errors import RunFolderError
from orchestrator.pages import charts
from orchestrator.pages.figures import Answered, Column, Figure, answer, kilobytes, now, percent, whole
from orchestrator.pages.forgetting_figures import forgetting_figures
from orchestrator.pages.page import render

OURS = ("namm", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedText:
    """A held-out example with its tokens shaded."""

    figure: Answered
    tokens: Sequence[dict[str, Any]]


def report_page(tables: Database, *, run: str, settings_file: str) -> str:
    """The page as HTML.

    Args:
        tables: of the run.
        run: its name.
        settings_file: its settings as YAML.

    Raises:
        RunFolderError: no generation has ended yet.
    """
    if not tables.ask("SELECT 1 FROM candidates LIMIT 1").rows:
        raise RunFolderError(
            f"{run} has no finished generation yet, so there is nothing to report: namm status says where it stands"
        )
    sections = {
        "answer": [answer(_HEADLINE, tables)],
        "settings": [answer(_SETTINGS, tables)],
        "fitness": [answer(figure, tables) for figure in (_FITNESS, _SPREAD)],
        "rivals": [answer(_comparison(name, place), tables) for place, name in enumerate(_benchmarks(tables))],
        "quality": [_quality(tables)],
        "maps": [answer(figure, tables) for figure in (_HEADS, _LAYERS)],
        "kinds": forgetting_figures(tables),
        "cost": [answer(figure, tables) for figure in (_COST, _SECONDS, _BYTES)],
    }
    texts = _marked_texts(tables)
    settings = {key: json.loads(value) for key, value in tables.ask("SELECT key, value FROM settings").rows}
    return render(
        "report.html",
        title=f"{run}: what evolved, and what it forgets",
        has_charts=True,
        run=run,
        model=str(settings["model.path_or_id"]),
        price=settings["fitness.kept_price"],
        tasks=", ".join(str(row[0]) for row in tables.ask("SELECT DISTINCT task FROM evaluations ORDER BY 1").rows),
        made=now(),
        settings_file=settings_file,
        sections=sections,
        texts=texts,
        answers=[one for section in sections.values() for one in section],
    )


_HEADLINE = Figure(
    key="headline",
    title="The answer in numbers",
    caption="On held-out examples: the evolved memory's score over the full cache's, with a 95 % margin, what it still "
    "holds in the end, and the best rival that holds as many bytes.",
    sql="""SELECT benchmark, ours.ratio, ours.margin, ours.kept_ratio, rival.memory_name AS best_rival,
  rival.ratio AS rival_ratio, rival.margin AS rival_margin
FROM (SELECT * FROM comparison WHERE memory_name = 'namm') AS ours LEFT JOIN (
  SELECT benchmark, arg_max(memory_name, ratio) AS memory_name, max(ratio) AS ratio, arg_max(margin, ratio) AS margin
  FROM comparison WHERE memory_name NOT IN ('namm', 'full') GROUP BY benchmark) AS rival USING (benchmark)
ORDER BY benchmark""",
    columns={
        "benchmark": Column("benchmark"),
        "ratio": percent("score of full"),
        "margin": percent("±"),
        "kept_ratio": percent("kept"),
        "best_rival": Column("best rival"),
        "rival_ratio": percent("its score of full"),
        "rival_margin": percent("±"),
    },
    empty="The run has not been evaluated on held-out examples yet.",
)

_SETTINGS = Figure(
    key="settings",
    title="Settings",
    caption="All of the run, as they stand in its journal; the same settings give the same memory on any cluster.",
    sql="SELECT key, value FROM settings ORDER BY key",
    columns={"key": Column("setting"), "value": Column("value")},
)

_FITNESS = Figure(
    key="fitness",
    title="Fitness over the generations",
    caption="Fitness of a candidate is its score over the full cache's minus the price of what it keeps. The band "
    "holds the middle 80 % of the population. See whether the median still rises: then more generations would help.",
    sql="""SELECT generation, best, q90, median, mean, q10, worst, kept_ratio FROM fitness ORDER BY generation""",
    columns={
        "generation": whole("generation"),
        **{name: Column(name, "of full", ".4f") for name in ("best", "q90", "median", "mean", "q10", "worst")},
        "kept_ratio": percent("kept, mean"),
    },
    draw=lambda rows: charts.lines(
        rows,
        ("generation", "generation"),
        "fitness (score / full cache's, less the price)",
        {"median": "median", "best": "best"},
        "10th to 90th percentile",
    ),
)

_SPREAD = Figure(
    key="spread",
    title="Spread of the search",
    caption="Standard deviation of the genomes' numbers within a population, and the step size of the search. Both "
    "shrink when the search settles; if they grow, it has found no direction yet.",
    sql="""SELECT generation, max(value) FILTER (key = 'search/population_spread') AS spread,
  max(value) FILTER (key = 'search/sigma') AS sigma, max(value) FILTER (key = 'search/mean_genome_norm') AS norm
FROM metrics GROUP BY generation ORDER BY generation""",
    columns={
        "generation": whole("generation"),
        "spread": Column("spread", "genome units", ".5f"),
        "sigma": Column("step size", "genome units", ".5f"),
        "norm": Column("norm of the mean", "genome units", ".3f"),
    },
    draw=lambda rows: charts.lines(
        rows, ("generation", "generation"), "genome units", {"spread": "population spread", "sigma": "step size"}
    ),
)


def _benchmarks(tables: Database) -> list[str]:
    found = tables.ask("SELECT DISTINCT benchmark FROM comparison ORDER BY length(benchmark), benchmark")
    return [str(row[0]) for row in found.rows]


def _comparison(benchmark: str, place: int) -> Figure:
    quoted = benchmark.replace("'", "''")
    return Figure(
        key=f"rivals-{place}",
        title=f"Against the rivals: {benchmark}",
        caption="Score over the full cache's on held-out examples, with 95 % intervals. Every rival holds as many "
        "bytes as the memory, split evenly over heads (-uniform), as the memory splits them over layers (-layer), or "
        "over layers and heads (-head). Blue squares are the memory and the full cache; a rival left of the memory is "
        "worse at equal bytes.",
        sql=f"""SELECT memory_name, ratio, margin, exact, graded, kept_ratio, mean_bytes, peak_bytes, state_bytes,
  examples
FROM comparison WHERE benchmark = '{quoted}' ORDER BY ratio DESC, memory_name""",
        columns={
            "memory_name": Column("memory"),
            "ratio": percent("score of full"),
            "margin": percent("±"),
            "exact": Column("exact", "0 to 1", ".3f"),
            "graded": Column("graded", "0 to 1", ".3f"),
            "kept_ratio": percent("kept"),
            "mean_bytes": kilobytes("mean cache"),
            "peak_bytes": kilobytes("peak cache"),
            "state_bytes": kilobytes("own state"),
            "examples": whole("examples"),
        },
        draw=lambda rows: charts.intervals(
            rows, "memory_name", "ratio", "margin", "score / full cache's score (percent)", OURS
        ),
        highlights=OURS,
    )


MOST_POINTS = 5000
"""Candidates on the page; of a longer search only those of every second, third, … generation, and the frontier."""


def _quality(tables: Database) -> Answered:
    ((total,),) = tables.ask("SELECT count(*) FROM candidates").rows
    every = math.ceil(total / MOST_POINTS)
    some = "" if every == 1 else f"\nWHERE generation % {every} = 0 OR frontier.ratio IS NOT NULL"
    figure = Figure(
        key="quality",
        title="Quality against memory",
        caption="Every candidate by what it kept of the cache and what it scored on its training examples; the red "
        "line is the frontier, the candidates that no other beats in both. Look for the knee: where less memory begins "
        "to cost score." + (f" Shown are the candidates of every {every}th generation." if every > 1 else ""),
        sql=f"""SELECT kept_ratio, ratio, generation, candidate, frontier.ratio IS NOT NULL AS is_best
FROM candidates LEFT JOIN frontier USING (generation, candidate, ratio, kept_ratio){some}
ORDER BY kept_ratio, ratio, generation, candidate""",
        columns={
            "kept_ratio": percent("kept"),
            "ratio": percent("score of full"),
            "generation": whole("generation"),
            "candidate": whole("candidate"),
            "is_best": Column("on the frontier"),
        },
        draw=charts.cloud,
    )
    return answer(figure, tables)


_HEADS = Figure(
    key="heads",
    title="Kept by layer and KV head",
    caption="Tokens that each KV head of the evolved memory holds at the end of a held-out example, in percent of the "
    "tokens read. Heads that look things up keep much; heads that only look around keep little.",
    sql="""SELECT layer, kv_head, kept_ratio FROM kept_by_head WHERE memory_name = 'namm' AND split = 'heldout'
  AND generation = (SELECT max(generation) FROM kept_by_head WHERE memory_name = 'namm' AND split = 'heldout')
ORDER BY layer, kv_head""",
    columns={"layer": whole("layer"), "kv_head": whole("KV head"), "kept_ratio": percent("kept")},
    draw=lambda rows: charts.heat(rows, ("kv_head", "KV head"), ("layer", "layer"), ("kept_ratio", "share kept")),
    empty="The run has not been evaluated on held-out examples yet.",
)

_LAYERS = Figure(
    key="layers",
    title="Kept by layer over the generations",
    caption="Tokens held at the end of the training examples, in percent of those read, mean over candidates, examples "
    "and heads of a layer. See when the search finds out which layers can do with less.",
    sql="""SELECT generation, layer, kept_ratio FROM kept_by_layer
WHERE memory_name = 'namm' AND split = 'train' ORDER BY generation, layer""",
    columns={"generation": whole("generation"), "layer": whole("layer"), "kept_ratio": percent("kept")},
    draw=lambda rows: charts.heat(rows, ("generation", "generation"), ("layer", "layer"), ("kept_ratio", "share kept")),
)

_COST = Figure(
    key="cost",
    title="What it cost",
    caption="Work of the search and of the evaluation. A worker that dies, or a unit that is sent out again, costs "
    "time and nothing else; units set aside count as wrong on all their examples.",
    sql="""SELECT name, number FROM losses_of_workers UNION ALL
SELECT * FROM (SELECT 'generations', count(DISTINCT generation) FROM candidates) UNION ALL
SELECT * FROM (SELECT 'candidates scored', count(*) FROM candidates) UNION ALL
SELECT * FROM (SELECT 'units', count(*) FROM units) UNION ALL
SELECT * FROM (SELECT 'answered examples', count(*) FROM evaluations) UNION ALL
SELECT * FROM (SELECT 'tokens read', sum(seen_tokens) FROM evaluations) ORDER BY name""",
    columns={"name": Column("what"), "number": whole("number")},
)

_SECONDS = Figure(
    key="seconds",
    title="Seconds",
    caption="Wall-clock time of the generations by part, as the driver measured it, and time of the workers in units. "
    "The driver's ask and commit should be small beside score.",
    sql="""SELECT part, seconds FROM (
  SELECT replace(key, 'seconds/', 'driver: ') AS part, sum(value) AS seconds FROM metrics
  WHERE key LIKE 'seconds/%' GROUP BY key UNION ALL
  SELECT CASE WHEN split = 'heldout' THEN 'workers: evaluation' WHEN generation < 0 THEN 'workers: full-cache pass'
    ELSE 'workers: generations' END, sum(seconds) FROM units GROUP BY 1)
ORDER BY part""",
    columns={"part": Column("part"), "seconds": Column("time", "s", ",.1f")},
)

_BYTES = Figure(
    key="bytes",
    title="Bytes of the cache",
    caption="Keys and values of one sequence on held-out examples, by the tensors' storage, and what the memory keeps "
    "beside them for each.",
    sql="""SELECT benchmark, memory_name, mean_bytes, peak_bytes, state_bytes FROM comparison
WHERE memory_name IN ('namm', 'full') ORDER BY benchmark, memory_name""",
    columns={
        "benchmark": Column("benchmark"),
        "memory_name": Column("memory"),
        "mean_bytes": kilobytes("mean"),
        "peak_bytes": kilobytes("peak"),
        "state_bytes": kilobytes("own state"),
    },
    highlights=("namm",),
    empty="The run has not been evaluated on held-out examples yet.",
)


def _marked_texts(tables: Database) -> list[MarkedText]:
    numbers = [int(row[0]) for row in tables.ask("SELECT DISTINCT text FROM traced_tokens ORDER BY text").rows]
    return [_marked_text(tables, number) for number in numbers]


def _marked_text(tables: Database, number: int) -> MarkedText:
    figure = Figure(
        key=f"text-{number}",
        title=f"Example {number + 1}",
        caption="The darker a token, the longer and in the more KV heads it lived; struck out: held by no head in the "
        "end; dotted: read after the last update.",
        sql=f"""SELECT position, token, kind, is_judged, held_heads, lifetime FROM traced_tokens
WHERE text = {number} ORDER BY position""",
        columns={
            "position": whole("position"),
            "token": Column("token"),
            "kind": Column("kind"),
            "is_judged": Column("judged"),
            "held_heads": whole("heads that hold it"),
            "lifetime": percent("updates outlived"),
        },
    )
    return MarkedText(figure=answer(figure, tables), tokens=tables.ask(figure.sql).records())

"""The page about several runs: each question is asked of every run, and the answers stand beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.analysis.queries import Database, Rows
from orchestrator.pages import charts
from orchestrator.pages.charts import Row, Spec
from orchestrator.pages.figures import Answered, Column, Figure, answered, kilobytes, now, percent, whole
from orchestrator.pages.page import render

RUN = Column("run")


def comparison_figures(runs: Mapping[str, Database]) -> list[Answered]:
    """All figures of the page; the first is the table.

    Args:
        runs: the tables of every run, by a name that tells it from the others.
    """
    return [_of_all(figure, runs) for figure in (_RESULTS, _FITNESS, _HEADS, _COST)] + [_settings(runs)]


def comparison_page(answers: Sequence[Answered], names: Sequence[str]) -> str:
    """The page as HTML."""
    title = f"{len(names)} runs compared"
    return render("comparison.html", title=title, has_charts=True, names=names, made=now(), answers=answers)


def _of_all(figure: Figure, runs: Mapping[str, Database]) -> Answered:
    rows = [(name, *row) for name, tables in runs.items() for row in tables.ask(figure.sql).rows]
    return answered(figure, Rows(tuple(figure.columns), tuple(rows)))


def _label(row: Row) -> str:
    return f"{row['run']}: {str(row['benchmark']).removeprefix('generated, ')}"


_RESULTS = Figure(
    key="results",
    title="Results",
    caption="On held-out examples: each memory's score over the full cache's with its 95 % margin, what it holds in "
    "the end, and the best rival at as many bytes. A run is better where its square lies further right at less kept.",
    sql="""SELECT benchmark, ours.ratio, ours.margin, ours.kept_ratio, ours.mean_bytes, ours.peak_bytes,
  rival.memory_name AS best_rival, rival.ratio AS rival_ratio
FROM (SELECT * FROM comparison WHERE memory_name = 'namm') AS ours LEFT JOIN (
  SELECT benchmark, arg_max(memory_name, ratio) AS memory_name, max(ratio) AS ratio
  FROM comparison WHERE memory_name NOT IN ('namm', 'full') GROUP BY benchmark) AS rival USING (benchmark)
ORDER BY length(benchmark), benchmark""",
    columns={
        "run": RUN,
        "benchmark": Column("benchmark"),
        "ratio": percent("score of full"),
        "margin": percent("±"),
        "kept_ratio": percent("kept"),
        "mean_bytes": kilobytes("mean cache"),
        "peak_bytes": kilobytes("peak cache"),
        "best_rival": Column("best rival"),
        "rival_ratio": percent("its score of full"),
    },
    draw=lambda rows: charts.intervals(
        [{**row, "label": _label(row)} for row in rows],
        "label",
        "ratio",
        "margin",
        "score / full cache's score (percent)",
        [_label(row) for row in rows],
    ),
    empty="None of the runs has been evaluated on held-out examples yet.",
)


def _curves(rows: Sequence[Row]) -> Spec:
    return charts.curves(
        rows, ("generation", "generation"), ("median", "median fitness (of full, less the price)"), "run"
    )


_FITNESS = Figure(
    key="fitness",
    title="Fitness over the generations",
    caption="Median fitness of each population. See which run rises faster, and which has not yet settled.",
    sql="SELECT generation, median, best, kept_ratio FROM fitness ORDER BY generation",
    columns={
        "run": RUN,
        "generation": whole("generation"),
        "median": Column("median", "of full", ".4f"),
        "best": Column("best", "of full", ".4f"),
        "kept_ratio": percent("kept, mean"),
    },
    draw=_curves,
)

_HEADS = Figure(
    key="heads",
    title="Kept by layer and KV head",
    caption="Tokens held at the end of held-out examples, in percent of those read. Memories that agree on the head "
    "that keeps most have found the same structure in the model.",
    sql="""SELECT printf('%02d/%02d', layer, kv_head) AS place, kept_ratio FROM kept_by_head
WHERE memory_name = 'namm' AND split = 'heldout'
  AND generation = (SELECT max(generation) FROM kept_by_head WHERE memory_name = 'namm' AND split = 'heldout')
ORDER BY layer, kv_head""",
    columns={"run": RUN, "place": Column("layer / head"), "kept_ratio": percent("kept")},
    draw=lambda rows: charts.heat(rows, ("place", "layer / KV head"), ("run", "run"), ("kept_ratio", "share kept")),
    empty="None of the runs has been evaluated on held-out examples yet.",
)

_COST = Figure(
    key="cost",
    title="What they cost",
    caption="Time of the driver for all generations, time of the workers in units, and losses on the way.",
    sql="""SELECT (SELECT count(DISTINCT generation) FROM candidates) AS generations,
  (SELECT sum(value) FROM metrics WHERE key LIKE 'seconds/%') AS driver_seconds,
  (SELECT sum(seconds) FROM units) AS worker_seconds, (SELECT count(*) FROM units) AS units,
  (SELECT number FROM losses_of_workers WHERE name = 'deaths') AS deaths""",
    columns={
        "run": RUN,
        "generations": whole("generations"),
        "driver_seconds": Column("driver", "s", ",.1f"),
        "worker_seconds": Column("workers", "s", ",.1f"),
        "units": whole("units"),
        "deaths": whole("workers lost"),
    },
)


def _settings(runs: Mapping[str, Database]) -> Answered:
    """Settings that are not the same in all runs."""
    figure = Figure(
        key="settings",
        title="Settings that differ",
        caption="All other settings are the same in every run.",
        sql="SELECT key, value FROM settings ORDER BY key",
        columns={"key": Column("setting"), **{name: Column(name) for name in runs}},
        empty="All settings are the same.",
    )
    by_run = {name: dict(tables.ask(figure.sql).rows) for name, tables in runs.items()}
    keys = sorted({key for settings in by_run.values() for key in settings})
    rows = [(key, *(settings.get(key) for settings in by_run.values())) for key in keys]
    return answered(figure, Rows(tuple(figure.columns), tuple(row for row in rows if len(set(row[1:])) > 1)))

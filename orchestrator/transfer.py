"""A memory on something that it was not evolved on: untouched, beside the full cache and rivals at equal bytes.

Only its feature statistics may be taken anew, since they belong to the model rather than to the memory: both ways are
compared, each with rivals that hold what the memory holds that way.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from orchestrator.config import ClusterSettings, FitnessSettings, SearchSettings
from orchestrator.evaluation import CONTROL, FULL, MEMORY, EvaluationPlan, Result, ScoreUnits, evaluate, summarise
from orchestrator.fitness import merge_statistics
from orchestrator.report import TableRow, tabulate
from orchestrator.rounds import WorkerRecipe
from orchestrator.units import plan_units
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSpec, Normalisation, RivalName, RivalSpec

Statistics = Literal["evolved", "re-estimated"]
"""Whose feature statistics a memory uses: those of the model it was evolved on, or of the one it is carried to."""

STATISTICS: tuple[Statistics, ...] = ("evolved", "re-estimated")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure with the ends of its 95 % bootstrap interval over examples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figure:
    """What is compared."""

    title: str
    """Said above the table."""
    of: Callable[[TableRow], Cell]
    digits: int
    """Behind the decimal point, when printed."""


GRADED = Figure(
    "probability of the right answers, in percent of the full cache's",
    lambda row: Cell(100 * row.graded_ratio, 100 * row.graded_ratio_low, 100 * row.graded_ratio_high),
    digits=1,
)
EXACT = Figure(
    "answered rightly, in percent", lambda row: Cell(100 * row.exact, 100 * row.exact_low, 100 * row.exact_high), 1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asked for beside the model."""

    tasks: str | None = None
    """Names separated by commas; None for those of the kind of model."""
    data: str | None = None
    """Where suites, clips or recorded episodes are staged."""
    examples: int | None = None
    """Most held-out examples of each task."""
    rivals: tuple[RivalName, ...] | None = None
    """None for all that the kind of model knows."""
    other_version: bool = False
    """Whether an environment may be of another version than the one that a model has learned from."""
    max_steps: int | None = None
    """Steps after which an episode is cut; None for the environment's own limit."""
    preset: str | None = None
    """Whose tasks, examples, placement and cluster are used where nothing else is asked for; None for ``small``."""
    overrides: tuple[str, ...] = ()
    """Settings such as ``cluster.workers=1`` or ``evaluation.lengths=[512]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchThere:
    """How a memory is evolved on the target itself, for comparison: for how long, and what for."""

    search: SearchSettings = field(default_factory=lambda: SearchSettings(population=16, generations=80))
    fitness: FitnessSettings = field(default_factory=lambda: FitnessSettings(score="graded", kept_price=0.35))
    pool: int = 128
    per_generation: int = 8
    examples_per_unit: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a memory is carried to."""

    model: str
    recipe: WorkerRecipe
    """What a worker loads."""
    plan: EvaluationPlan
    lengths: Mapping[str, int | None]
    """As ``tabulate`` takes them."""
    cluster: ClusterSettings
    figure: Figure
    statistics_examples: tuple[int, ...]
    """Training examples that feature statistics are re-estimated on."""
    baselines: Mapping[str, RivalSpec] = field(default_factory=dict)
    """Memories with budgets of their own, by the name in the table: not at equal bytes."""
    remarks: Callable[[PretrainedMemory], Mapping[str, str]] | None = None
    """What else is to be said of a memory there, by the heading of a column."""
    search_there: SearchThere | None = None
    """How a memory is evolved there; None for not at all."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that decides the scores besides the memory, for the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One line of the table: the memory in one way, on one task (or on documents of one length)."""

    model: str
    task: str
    """Empty for generated documents."""
    length: int
    statistics: str
    """One of ``STATISTICS``, or ``there`` for a memory that was evolved on the model itself."""
    kept_ratio: float
    """Of the memory."""
    mean_bytes: float
    """Of the memory; rivals hold as many in the end."""
    num_examples: int
    remarks: Mapping[str, str] = field(default_factory=dict)
    """As ``Target.remarks`` has them."""
    cells: Mapping[str, Cell]
    """By memory: of each rival the best of its splits over layers and heads."""

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def carried(memory: PretrainedMemory, statistics: Statistics, target: Target, score: ScoreUnits) -> PretrainedMemory:
    """The memory as it is to be used on the target."""
    if statistics == "evolved":
        return memory
    return dataclasses.replace(memory, spec=re_estimated(memory.spec, target, score))


def re_estimated(spec: NammSpec, target: Target, score: ScoreUnits) -> NammSpec:
    """With the feature statistics of another model, gathered with its full cache on training examples (spec 3.3)."""
    plan = target.plan
    units = plan_units(
        generation=plan.generation,
        memory_name="statistics",
        memory=spec,
        genomes=np.zeros((1, spec.settings.genome_size), np.float32),
        examples=dict.fromkeys(plan.tasks, target.statistics_examples),
        split="train",
        settings=plan.units,
        score=plan.score,
        record_statistics=True,
    )
    found = merge_statistics(score(units))
    normalisation = Normalisation(tuple(found.mean.tolist()), tuple(found.variance.tolist()))
    return dataclasses.replace(spec, normalisation=normalisation)


def compare(
    target: Target, memories: Mapping[str, PretrainedMemory], score: ScoreUnits
) -> tuple[list[Comparison], list[Result]]:
    """Score memories on a target, each beside the full cache, the baselines and rivals at its own bytes.

    Args:
        target: where.
        memories: by what is said of them under ``statistics``.
        score: on the target's fleet.
    """
    fixed = _baselines(target, score)
    comparisons: list[Comparison] = []
    results: list[Result] = []
    for label, memory in memories.items():
        name = f"{MEMORY}-{label}"
        found = evaluate(memory, target.plan, score, name=name)
        # Episodes may end sooner under one memory than under another: as long as the full cache's is what counts.
        seen = {result.task: result.seen_tokens for result in found if result.name == FULL}
        found += [dataclasses.replace(result, seen_tokens=seen[result.task]) for result in fixed]
        results += found
        remarks = target.remarks(memory) if target.remarks else {}
        compared = _comparisons(target, label, [_without_suffix(result, name) for result in found])
        comparisons += [dataclasses.replace(comparison, remarks=remarks) for comparison in compared]
    return comparisons, results


def _baselines(target: Target, score: ScoreUnits) -> list[Result]:
    results = []
    for name, spec in target.baselines.items():
        for task, examples in target.plan.examples.items():
            units = plan_units(
                generation=target.plan.generation,
                memory_name=name,
                memory=spec,
                genomes=np.zeros((1, 0), np.float32),
                examples={task: examples},
                split=target.plan.split,
                settings=target.plan.units,
                score=target.plan.score,
            )
            scored = score(units)
            seen = {
                example: tokens
                for unit in scored
                for example, tokens in zip(unit.example.tolist(), unit.seen_tokens.tolist(), strict=True)
            }
            results.append(summarise(name, task, scored, seen))
    return results


def _without_suffix(result: Result, name: str) -> Result:
    """Under the names that a table with one memory has."""
    plain = MEMORY if result.name == name else result.name.removesuffix(f"-at-{name}")
    return dataclasses.replace(result, name=plain)


def _comparisons(target: Target, label: str, results: Sequence[Result]) -> list[Comparison]:
    groups: dict[str | int, list[TableRow]] = {}
    for row in tabulate(results, target.lengths):
        groups.setdefault(row.task or row.length, []).append(row)
    return [_comparison(target, label, rows) for rows in groups.values()]


def _comparison(target: Target, label: str, rows: Sequence[TableRow]) -> Comparison:
    (memory,) = (row for row in rows if row.name == MEMORY)
    cells: dict[str, Cell] = {}
    for row in rows:
        name = row.name if row.name in (FULL, MEMORY, CONTROL, *target.baselines) else row.name.partition("-")[0]
        cell = target.figure.of(row)
        if name not in cells or cell.value > cells[name].value:
            cells[name] = cell
    return Comparison(
        model=target.model,
        task=memory.task,
        length=memory.length,
        statistics=label,
        kept_ratio=memory.kept_ratio,
        mean_bytes=memory.mean_bytes,
        num_examples=memory.num_examples,
        cells=cells,
    )


# --- the printed table ------------------------------------------------------------------------------------------------


def columns(comparisons: Sequence[Comparison]) -> list[str]:
    """Memories in the order of the table: full cache, this memory, then the others from the best to the worst."""
    names = dict.fromkeys(name for comparison in comparisons for name in comparison.cells)
    first = [name for name in (FULL, MEMORY) if name in names]

    def mean(name: str) -> float:
        return float(np.mean([each.cells[name].value for each in comparisons if name in each.cells]))

    return first + sorted((name for name in names if name not in first), key=mean, reverse=True)


def headings(comparisons: Sequence[Comparison]) -> list[str]:
    """Of :func:`lines`."""
    return ["model", "task", "memory", "kept", "KB", *_remarks(comparisons), *columns(comparisons)]


def _remarks(comparisons: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(heading for comparison in comparisons for heading in comparison.remarks))


def lines(comparisons: Sequence[Comparison], digits: int) -> list[list[str]]:
    """A line for each comparison."""
    names = columns(comparisons)
    return [
        [
            each.model,
            each.task or f"{each.length:,} tokens",
            each.statistics,
            f"{each.kept_ratio:.1%}",
            f"{each.mean_bytes / 1024:,.0f}",
            *(each.remarks.get(heading, "") for heading in _remarks(comparisons)),
            *(_shown(each.cells[name], digits) if name in each.cells else "–" for name in names),
        ]
        for each in comparisons
    ]


def _shown(cell: Cell, digits: int) -> str:
    if cell.low == cell.high:
        return f"{cell.value:,.{digits}f}"
    return f"{cell.value:,.{digits}f} ({cell.low:,.{digits}f}–{cell.high:,.{digits}f})"


class Stopwatch:
    """Wall-clock seconds by part: information only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to a part."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

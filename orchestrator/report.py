"""From results to tables: what a run found, next to the full cache and every rival."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from orchestrator.evaluation import CONTROL, FULL, MEMORY, Result, without_nan
from orchestrator.fitness import SMALLEST_FULL_CACHE_SCORE
from orchestrator.terminal import grid

ORDER = (FULL, MEMORY, CONTROL)
"""Names that stand first in every table; the others follow by score."""

MEAN = "mean"
"""Stands for the mean over a suite's tasks."""

RESAMPLES, INTERVAL = 1000, (2.5, 97.5)
"""Of the bootstrap over examples: how often, and which percentiles are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One memory on one task of a suite, on their mean, or on all generated tasks of one length.

    What was not measured is NaN: of tasks with completions either ``exact`` or ``graded``.
    """

    task: str
    """Name of a suite's task, ``mean`` over those, or empty for generated tasks."""
    name: str
    length: int
    """Tokens of the documents; of a suite's the mean of what the model reads."""
    exact: float
    graded: float
    exact_ratio: float
    """Exact score over the full cache's; of a ``mean``, the mean of the tasks' ratios. NaN where the full cache itself
    scores nothing to speak of: such tasks tell no memories apart, and are left out of the mean."""
    graded_ratio: float
    """Graded score over the full cache's, likewise."""
    exact_low: float
    """Ends of a 95 % bootstrap interval over examples, resampled task by task."""
    exact_high: float
    graded_ratio_low: float
    """The same examples are resampled for the full cache."""
    graded_ratio_high: float
    exact_ratio_low: float
    exact_ratio_high: float
    kept_ratio: float
    mean_bytes: float
    peak_bytes: float
    state_bytes: float
    num_examples: int
    seconds: float = math.nan
    """Wall-clock time of an example in its worker."""

    @property
    def ratio(self) -> float:
        """Score over the full cache's: the graded one where it was measured, else the exact one."""
        return self.exact_ratio if math.isnan(self.graded_ratio) else self.graded_ratio

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> TableRow:
        """The row that ``document`` told."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in document.items()}
        return cls(**values)

    def document(self) -> dict[str, Any]:
        """Plain values, but for wall-clock time."""
        return without_nan({key: value for key, value in asdict(self).items() if key != "seconds"})


def tabulate(results: Sequence[Result], lengths: Mapping[str, int | None]) -> list[TableRow]:
    """Average results over generated tasks of one length; a suite's tasks stand for themselves, and then as a mean.

    Args:
        results: by memory and task; the full cache's must be among them.
        lengths: document length of every generated task, None for a suite's.

    Returns:
        Rows by task and length, then full cache, memory and control, then the rivals, best first.
    """
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        length = lengths[result.task]
        task, tokens = (result.task, round(result.seen_tokens)) if length is None else ("", length)
        groups.setdefault((task, tokens, result.name), []).append(result)
    suite = [result for result in results if lengths[result.task] is None]
    if len({result.task for result in suite}) > 1:
        tokens = round(np.mean([result.seen_tokens for result in suite if result.name == FULL]))
        for result in suite:
            groups.setdefault((MEAN, tokens, result.name), []).append(result)
    order = list(dict.fromkeys(task for task, _, _ in groups))
    rows = [
        _row(task, tokens, name, group, groups[task, tokens, FULL]) for (task, tokens, name), group in groups.items()
    ]
    return sorted(rows, key=lambda row: (order.index(row.task), *_table_order(row)))


def _table_order(row: TableRow) -> tuple[int, int, float, str]:
    place = ORDER.index(row.name) if row.name in ORDER else len(ORDER)
    return row.length, place, -(row.exact if math.isnan(row.graded) else row.graded), row.name


def _row(task: str, length: int, name: str, group: Sequence[Result], full: Sequence[Result]) -> TableRow:
    def mean(key: str) -> float:
        return _mean(group, key)

    pairs = [(group, full)] if task != MEAN else [([one], [other]) for one, other in _by_task(group, full)]
    ratios = {key: _ratio(pairs, key) for key in ("exact", "graded")}
    intervals = {key: _interval(_resampled_ratio(pairs, key)) for key in ("exact", "graded")}
    exact_low, exact_high = _interval(_resampled(group, "exact"))
    return TableRow(
        task=task,
        name=name,
        length=length,
        exact=mean("exact"),
        graded=mean("graded"),
        exact_ratio=ratios["exact"],
        graded_ratio=ratios["graded"],
        exact_low=exact_low,
        exact_high=exact_high,
        graded_ratio_low=intervals["graded"][0],
        graded_ratio_high=intervals["graded"][1],
        exact_ratio_low=intervals["exact"][0],
        exact_ratio_high=intervals["exact"][1],
        kept_ratio=mean("kept_ratio"),
        mean_bytes=mean("mean_bytes"),
        peak_bytes=mean("peak_bytes"),
        state_bytes=mean("state_bytes"),
        num_examples=sum(result.num_examples for result in group),
        seconds=mean("seconds"),
    )


_Pairs = Sequence[tuple[Sequence[Result], Sequence[Result]]]
"""Results of a memory, and of the full cache on the same tasks."""


def _by_task(group: Sequence[Result], full: Sequence[Result]) -> list[tuple[Result, Result]]:
    others = {result.task: result for result in full}
    return [(result, others[result.task]) for result in group]


def _mean(results: Sequence[Result], key: str) -> float:
    return float(sum(getattr(result, key) for result in results) / len(results))


def _comparable(pairs: _Pairs, key: str) -> _Pairs:
    """Those whose full cache scores enough to be divided by."""
    return [(group, full) for group, full in pairs if _mean(full, key) >= SMALLEST_FULL_CACHE_SCORE]


def _ratio(pairs: _Pairs, key: str) -> float:
    """Mean over the pairs of score over full-cache score."""
    ratios = [_mean(group, key) / _mean(full, key) for group, full in _comparable(pairs, key)]
    return sum(ratios) / len(ratios) if ratios else math.nan


def _resampled_ratio(pairs: _Pairs, key: str) -> npt.NDArray[np.float64]:
    """``[RESAMPLES]``: the same of examples drawn with replacement, memory and full cache alike."""
    ratios = [
        _resampled(group, key) / np.maximum(_resampled(full, key), SMALLEST_FULL_CACHE_SCORE)
        for group, full in _comparable(pairs, key)
    ]
    return np.mean(ratios, axis=0) if ratios else np.full(RESAMPLES, math.nan)


def _resampled(group: Sequence[Result], key: str) -> npt.NDArray[np.float64]:
    """``[RESAMPLES]`` means over tasks of the mean over examples drawn with replacement; the same draws every time."""
    means = np.zeros(RESAMPLES)
    for number, result in enumerate(sorted(group, key=lambda result: result.task)):
        values = np.array(getattr(result, f"{key}_by_example") or (getattr(result, key),))
        draws = np.random.default_rng(number).integers(len(values), size=(RESAMPLES, len(values)))
        means += values[draws].mean(axis=1) / len(group)
    return means


def _interval(resampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(resampled, INTERVAL)
    return float(low), float(high)


HEADINGS = (
    *("tokens", "memory", "exact", "graded", "of full", "95 %", "kept", "mean KB", "peak KB", "state KB"),
    *("examples", "s each"),
)
"""Columns of the printed table; KB are 1,024 bytes of one sequence, the interval is that of ``of full``."""


def cells(row: TableRow) -> list[str]:
    """One row of the printed table, under ``HEADINGS``."""
    return [
        f"{row.length:,}",
        row.name,
        _number(row.exact),
        _number(row.graded),
        _percent(row.ratio),
        _interval_told(row),
        _percent(row.kept_ratio),
        f"{row.mean_bytes / 1024:,.0f}",
        f"{row.peak_bytes / 1024:,.0f}",
        f"{row.state_bytes / 1024:,.0f}",
        str(row.num_examples),
        "–" if math.isnan(row.seconds) else f"{row.seconds:.2f}",
    ]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _interval_told(row: TableRow) -> str:
    ends = (row.exact_ratio_low, row.exact_ratio_high)
    low, high = ends if math.isnan(row.graded_ratio) else (row.graded_ratio_low, row.graded_ratio_high)
    return "–" if math.isnan(low) else f"{100 * low:.1f}–{100 * high:.1f}"


def headings(rows: Sequence[TableRow]) -> tuple[str, ...]:
    """``HEADINGS``, after a column of tasks where not all are generated; no seconds where none were measured."""
    return ("task",) * any(row.task for row in rows) + (HEADINGS if _has_seconds(rows) else HEADINGS[:-1])


def lines(rows: Sequence[TableRow]) -> list[list[str]]:
    """The printed table under ``headings``, with an empty line between tasks and document lengths."""
    has_tasks = any(row.task for row in rows)
    num_cells = len(HEADINGS) if _has_seconds(rows) else len(HEADINGS) - 1
    printed: list[list[str]] = []
    for index, row in enumerate(rows):
        if index and (row.task, row.length) != (rows[index - 1].task, rows[index - 1].length):
            printed.append([])
        printed.append([row.task or "generated"] * has_tasks + cells(row)[:num_cells])
    return printed


def _has_seconds(rows: Sequence[TableRow]) -> bool:
    return not all(math.isnan(row.seconds) for row in rows)


def printed(rows: Sequence[TableRow]) -> Table:
    """The table for a terminal."""
    titles = headings(rows)
    return grid(titles, lines(rows), left=1 + titles.index("memory"))

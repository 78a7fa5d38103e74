"""From results to tables: what a run found, next to the full cache and every rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.evaluation import CONTROL, FULL, MEMORY, Result

ORDER = (FULL, MEMORY, CONTROL)
"""Names that stand first in every table; the others follow by score."""

RESAMPLES, INTERVAL = 1000, (2.5, 97.5)
"""Of the bootstrap over examples: how often, and which percentiles are reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One memory at one document length: means over the tasks of that length."""

    name: str
    length: int
    """Tokens of the documents."""
    exact: float
    graded: float
    exact_ratio: float
    """Exact score over the full cache's."""
    graded_ratio: float
    """Graded score over the full cache's."""
    exact_low: float
    """Ends of a 95 % bootstrap interval over examples, resampled task by task."""
    exact_high: float
    graded_ratio_low: float
    """The same examples are resampled for the full cache."""
    graded_ratio_high: float
    kept_ratio: float
    mean_bytes: float
    peak_bytes: float
    state_bytes: float
    num_examples: int


def tabulate(results: Sequence[Result], lengths: Mapping[str, int]) -> list[TableRow]:
    """Average results over the tasks of each length; ``lengths`` has the document length of every task.

    Rows are by length, then full cache, memory and control, then the rivals, best first.
    """
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((lengths[result.task], result.name), []).append(result)
    rows = [_row(name, length, group, groups[length, FULL]) for (length, name), group in groups.items()]
    return sorted(rows, key=_table_order)


def _table_order(row: TableRow) -> tuple[int, int, float, str]:
    place = ORDER.index(row.name) if row.name in ORDER else len(ORDER)
    return row.length, place, -row.graded, row.name


def _row(name: str, length: int, group: Sequence[Result], full: Sequence[Result]) -> TableRow:
    def mean(key: str, results: Sequence[Result] = group) -> float:
        return float(sum(getattr(result, key) for result in results) / len(results))

    exact_low, exact_high = _interval(_resampled(group, "exact"))
    graded_full = np.maximum(_resampled(full, "graded"), 1e-12)
    ratio_low, ratio_high = _interval(_resampled(group, "graded") / graded_full)
    return TableRow(
        name=name,
        length=length,
        exact=mean("exact"),
        graded=mean("graded"),
        exact_ratio=mean("exact") / max(mean("exact", full), 1e-12),
        graded_ratio=mean("graded") / max(mean("graded", full), 1e-12),
        exact_low=exact_low,
        exact_high=exact_high,
        graded_ratio_low=ratio_low,
        graded_ratio_high=ratio_high,
        kept_ratio=mean("kept_ratio"),
        mean_bytes=mean("mean_bytes"),
        peak_bytes=mean("peak_bytes"),
        state_bytes=mean("state_bytes"),
        num_examples=sum(result.num_examples for result in group),
    )


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


HEADINGS = ("tokens", "memory", "exact", "graded", "of full", "kept", "mean KB", "peak KB", "state KB", "examples")
"""Columns of the printed table; KB are 1,024 bytes of one sequence."""


def cells(row: TableRow) -> list[str]:
    """One row of the printed table, under ``HEADINGS``."""
    return [
        f"{row.length:,}",
        row.name,
        f"{row.exact:.3f}",
        f"{row.graded:.3f}",
        f"{row.graded_ratio:.1%}",
        f"{row.kept_ratio:.1%}",
        f"{row.mean_bytes / 1024:,.0f}",
        f"{row.peak_bytes / 1024:,.0f}",
        f"{row.state_bytes / 1024:,.0f}",
        str(row.num_examples),
    ]


def printed_rows(rows: Sequence[TableRow]) -> list[list[str]]:
    """The printed table under ``HEADINGS``, with an empty row between document lengths."""
    printed: list[list[str]] = []
    for index, row in enumerate(rows):
        if index and row.length != rows[index - 1].length:
            printed.append([])
        printed.append(cells(row))
    return printed

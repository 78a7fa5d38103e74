"""From scores to one loss per candidate.

Every sum is exact before it is rounded to float64 (``math.fsum``, integers), so no order of arrival, no cut into units
and no machine can change a loss by a single bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.config import FitnessSettings
from orchestrator.errors import NammError
from workers.unit import FeatureStatistics, Score, ScoredUnit

SMALLEST_FULL_CACHE_SCORE = 1e-3
"""Below it a task cannot tell memories apart: the frozen model itself does not solve it."""

SMALLEST_SHARE = 0.1
"""Of a task's full-cache score on all its examples: what a generation that has drawn hard ones divides by at least."""

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What one candidate made of one example."""

    exact: float
    graded: float
    kept_ratio: float


_Rows = dict[tuple[str, int, int], _Row]
"""By task, candidate and example."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskFitness:
    """Columns ``[population]`` float64 of one task: means over its examples."""

    ratio: Losses
    """Mean score, divided by the mean full-cache score on the same examples."""
    full_cache: float
    """That mean full-cache score."""
    exact: Losses
    """Share of questions answered exactly, 0 to 1."""
    graded: Losses
    """Mean probability of the gold answers, 0 to 1."""
    kept_ratio: Losses
    """Tokens held / tokens seen at the end of an example, averaged over layers and KV heads, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationFitness:
    """Columns ``[population]`` float64 of a generation: means over the tasks, by their weights."""

    loss: Losses
    """What the search is told, lower is better: ``-(ratio - price * max(kept_ratio - kept_target, 0))``."""
    ratio: Losses
    """As in ``TaskFitness``; 1 is as good as the full cache."""
    exact: Losses
    graded: Losses
    kept_ratio: Losses
    by_task: Mapping[str, TaskFitness]


@dataclass(frozen=True, slots=True)
class FullCacheScores:
    """What the frozen model scores with its whole cache, by task and example."""

    exact: Mapping[tuple[str, int], float]
    graded: Mapping[tuple[str, int], float]

    @classmethod
    def from_units(cls, scored: Iterable[ScoredUnit]) -> FullCacheScores:
        """Collect the scores of a full-cache pass, which has the single candidate 0.

        Raises:
            NammError: an example was scored twice.
        """
        rows = _rows(scored)
        return cls(
            exact={(task, example): row.exact for (task, _, example), row in rows.items()},
            graded={(task, example): row.graded for (task, _, example), row in rows.items()},
        )

    def mean(self, task: str, examples: Sequence[int], score: Score) -> float:
        """Mean full-cache score of a task's examples, and at least a tenth of the mean over all there are.

        Raises:
            NammError: an example is missing, or the mean over all is too small to divide by.
        """
        scores = {example: value for (name, example), value in self._of(score).items() if name == task}
        absent = [example for example in examples if example not in scores]
        if absent:
            raise NammError(
                f"the full-cache pass holds no score for example {absent[0]} of task {task} ({len(absent)} missing): "
                "was examples.pool raised after the run began?"
            )
        overall = _mean(scores.values())
        if not overall >= SMALLEST_FULL_CACHE_SCORE:
            raise NammError(
                f"the model with its full cache scores only {overall:.2g} ({score}) on the {len(scores)} examples of "
                f"task {task}, and memories are measured against that: expected at least "
                f"{SMALLEST_FULL_CACHE_SCORE:g}; use fitness.score=graded, an easier task or a stronger model"
            )
        return max(_mean(scores[example] for example in examples), SMALLEST_SHARE * overall)

    def _of(self, score: Score) -> Mapping[tuple[str, int], float]:
        return self.graded if score == "graded" else self.exact


def losses(
    scored: Iterable[ScoredUnit],
    full: FullCacheScores,
    settings: FitnessSettings,
    population: int,
    generation: int = 0,
) -> GenerationFitness:
    """Reduce a generation's scores.

    Args:
        scored: every unit of the generation once, in any order.
        full: the full cache's scores on (at least) the same examples.
        settings: which score counts, and the price of a kept token.
        population: number of candidates.
        generation: which one, for a price that rises.

    Raises:
        NammError: a (candidate, task, example) is missing or there twice, or a full-cache score is missing or too
            small.
    """
    rows = _rows(scored)
    by_task = {task: _task_fitness(task, rows, full, settings, population) for task in sorted({key[0] for key in rows})}
    if not by_task:
        raise NammError("a generation without a scored unit has no losses: examples.per_generation must be at least 1")

    weights = [settings.weights.get(task, 1.0) for task in by_task]

    def over_tasks(column: Callable[[TaskFitness], Losses]) -> Losses:
        columns = [column(fitness) for fitness in by_task.values()]
        return np.array([_weighted_mean(values, weights) for values in zip(*columns, strict=True)])

    ratio = over_tasks(lambda task: task.ratio)
    kept_ratio = over_tasks(lambda task: task.kept_ratio)
    return GenerationFitness(
        loss=-(ratio - settings.price_at(generation) * np.maximum(kept_ratio - settings.kept_target, 0.0)),
        ratio=ratio,
        exact=over_tasks(lambda task: task.exact),
        graded=over_tasks(lambda task: task.graded),
        kept_ratio=kept_ratio,
        by_task=by_task,
    )


def merge_statistics(scored: Iterable[ScoredUnit]) -> FeatureStatistics:
    """Pool the feature statistics of all units, two at a time in key order (spec 3.3).

    Raises:
        NammError: a unit is there twice or carries no statistics, or there is no unit.
    """
    by_key: dict[str, FeatureStatistics] = {}
    for unit in scored:
        if unit.statistics is None or unit.key in by_key:
            fault = "carries no feature statistics" if unit.statistics is None else "was handed in twice"
            raise NammError(f"unit {unit.key} {fault}: feature statistics come from one full-cache pass")
        by_key[unit.key] = unit.statistics
    if not by_key:
        raise NammError("there are no feature statistics to merge: the full-cache pass scored no unit")
    first, *others = (by_key[key] for key in sorted(by_key))
    merged = first
    for other in others:
        merged = _merge(merged, other)
    return merged


def _merge(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    count = a.count + b.count
    if count == 0:
        return a
    share = a.count / count
    return FeatureStatistics(
        count=count,
        mean=share * a.mean + (1 - share) * b.mean,
        variance=share * a.variance + (1 - share) * b.variance + share * (1 - share) * (b.mean - a.mean) ** 2,
    )


def _rows(scored: Iterable[ScoredUnit]) -> _Rows:
    rows: _Rows = {}
    for unit in scored:
        _, layers, kv_heads = unit.held_tokens.shape
        held = unit.held_tokens.sum(axis=(1, 2), dtype=np.int64)
        seen = unit.seen_tokens.astype(np.int64) * layers * kv_heads
        for i, (candidate, example) in enumerate(zip(unit.candidate.tolist(), unit.example.tolist(), strict=True)):
            key = (unit.task, candidate, example)
            if key in rows:
                raise NammError(f"candidate {candidate} answered example {example} of task {unit.task} twice")
            rows[key] = _Row(
                exact=float(unit.exact[i]), graded=float(unit.graded[i]), kept_ratio=int(held[i]) / int(seen[i])
            )
    return rows


def _task_fitness(
    task: str, rows: _Rows, full: FullCacheScores, settings: FitnessSettings, population: int
) -> TaskFitness:
    examples = sorted({example for name, _, example in rows if name == task})
    absent = [(c, e) for c in range(population) for e in examples if (task, c, e) not in rows]
    surplus = [(c, e) for name, c, e in rows if name == task and c >= population]
    if absent or surplus:
        (candidate, example), fault = (absent[0], "did not answer") if absent else (surplus[0], "is none, but answered")
        raise NammError(f"candidate {candidate} of {population} {fault} example {example} of task {task}")

    def over_examples(column: Callable[[_Row], float]) -> Losses:
        return np.array([_mean(column(rows[task, c, e]) for e in examples) for c in range(population)])

    exact, graded = over_examples(lambda row: row.exact), over_examples(lambda row: row.graded)
    score = graded if settings.score == "graded" else exact
    full_cache = full.mean(task, examples, settings.score)
    return TaskFitness(
        ratio=score / full_cache,
        full_cache=full_cache,
        exact=exact,
        graded=graded,
        kept_ratio=over_examples(lambda row: row.kept_ratio),
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    products = [float(value) * weight for value, weight in zip(values, weights, strict=True)]
    return math.fsum(products) / math.fsum(weights)


def _mean(values: Iterable[float]) -> float:
    """The mean, rounded once: the same for every order of the values."""
    listed = [float(value) for value in values]
    return math.fsum(listed) / len(listed)

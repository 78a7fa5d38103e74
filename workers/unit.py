"""The plain values that cross the boundary between the orchestrator and the workers.

A unit goes out, a scored unit comes back: numbers, strings and numpy arrays, never tensors, models or callables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.task import Split
from workers.memory.specs import MemorySpec, for_candidates

Score = Literal["graded", "exact"]
"""``graded``: probability of the gold answers. ``exact``: share of answers that are right, or the task's own score."""

FULL_CACHE_PASS = -1
"""The generation number of the pass that scores the full cache on the whole pool before generation 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One shard of examples of one task under a block of candidates of one memory.

    The result of a unit depends on the unit alone: it carries everything but the model and the task definitions.
    """

    generation: int
    """Generation that the unit belongs to; ``FULL_CACHE_PASS`` before the first; the last one + 1 in evaluations."""
    memory_name: str
    """Row name in tables: ``namm``, ``full``, ``h2o-layer``; letters, digits, ``_`` and ``-``."""
    memory: MemorySpec
    """What to build the memory from."""
    task: str
    split: Split
    examples: tuple[int, ...]
    """Indices of the shard's examples within ``split``."""
    candidates: tuple[int, ...]
    """Index of each candidate in its population; ``(0,)`` for a memory without genomes."""
    genomes: npt.NDArray[np.float32] = field(repr=False)
    """``[candidates, genome]``; ``[1, 0]`` for a memory without genomes."""
    score: Score = "exact"
    """Of a task with completions, which of the two is measured: each needs a pass of its own."""
    record_statistics: bool = False
    """Whether the feature statistics of the unit are gathered (the full-cache pass)."""

    def __post_init__(self) -> None:
        """Refuses genomes that do not match the candidates: rows would be scored under somebody else's.

        Raises:
            ValueError: says how many of each came.
        """
        if len(self.genomes) != len(self.candidates):
            raise ValueError(
                f"the unit {self.key} has {len(self.candidates)} candidates, but {len(self.genomes)} genomes: "
                "give each candidate its row"
            )

    @property
    def key(self) -> str:
        """Identity of the unit, fit for a file name; sorts in planning order within a task."""
        return (
            f"g{self.generation:06d}_{self.memory_name}_{self.task}_{self.split}"
            f"_e{self.examples[0]:06d}-{self.examples[-1]:06d}x{len(self.examples)}"
            f"_c{self.candidates[0]:04d}-{self.candidates[-1]:04d}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """Pooled moments of the features before normalisation (spec 3.3), merged in float64."""

    count: int
    mean: npt.NDArray[np.float64]
    """``[features]``"""
    variance: npt.NDArray[np.float64]
    """``[features]``, population variance"""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredUnit:
    """What came of a unit: one row per (candidate, example), candidate by candidate.

    All arrays share their first axis ``rows = len(candidates) * len(examples)``.
    """

    key: str
    generation: int
    memory_name: str
    task: str
    split: Split
    candidate: npt.NDArray[np.int32]
    example: npt.NDArray[np.int32]
    exact: npt.NDArray[np.float64]
    """Share of the example's questions answered exactly, or the task's score of the completion: 0 to 1."""
    graded: npt.NDArray[np.float64]
    """Mean probability of the gold answers, 0 to 1; of a completion by the token (geometric mean).

    Of a task with completions only one of the two is measured, the other is NaN.
    """
    seen_tokens: npt.NDArray[np.int32]
    """Tokens that the model has read by the end of the example."""
    held_tokens: npt.NDArray[np.int32]
    """``[rows, layers, kv_heads]`` tokens in the cache at the end of the example."""
    mean_bytes: npt.NDArray[np.float64]
    """Bytes of cached keys and values, averaged over the tokens read."""
    peak_bytes: npt.NDArray[np.int64]
    """Most bytes of cached keys and values at any moment."""
    state_bytes: npt.NDArray[np.int64]
    """Bytes that the memory itself keeps beside the cache at the end of the example."""
    seconds: float
    """Wall-clock time of the unit in its worker: information only, nothing may depend on it."""
    statistics: FeatureStatistics | None = None
    is_declared: bool = False
    """Whether the unit was set aside, and got declared scores of 0 instead of its own."""

    @classmethod
    def of(cls, unit: Unit, **values: Any) -> ScoredUnit:
        """What came of a unit: its identity row by row, and the values of all other fields."""
        return cls(
            key=unit.key,
            generation=unit.generation,
            memory_name=unit.memory_name,
            task=unit.task,
            split=unit.split,
            candidate=np.repeat(np.array(unit.candidates, np.int32), len(unit.examples)),
            example=np.tile(np.array(unit.examples, np.int32), len(unit.candidates)),
            **values,
        )


def split(unit: Unit, most_rows: int) -> list[Unit]:
    """The unit in pieces of at most that many (candidate, example) pairs, whose rows follow one another."""
    candidates = max(1, most_rows // len(unit.examples))
    examples = min(most_rows, len(unit.examples))
    return [
        replace(
            unit,
            memory=for_candidates(unit.memory, slice(first, first + candidates)),
            candidates=unit.candidates[first : first + candidates],
            genomes=unit.genomes[first : first + candidates],
            examples=unit.examples[start : start + examples],
        )
        for first in range(0, len(unit.candidates), candidates)
        for start in range(0, len(unit.examples), examples)
    ]


def join(unit: Unit, pieces: Sequence[ScoredUnit]) -> ScoredUnit:
    """The scored unit from its scored pieces, in order."""
    rows: dict[str, Any] = {
        field.name: np.concatenate([getattr(piece, field.name) for piece in pieces])
        for field in fields(ScoredUnit)
        if isinstance(getattr(pieces[0], field.name), np.ndarray)
    }
    return replace(pieces[0], key=unit.key, seconds=sum(piece.seconds for piece in pieces), **rows)

"""The plain values that cross the boundary between the orchestrator and the workers.

A unit goes out, a scored unit comes back: numbers, strings and numpy arrays, never tensors, models or callables.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tasks.task import Split
from workers.memory.specs import MemorySpec

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
    record_statistics: bool = False
    """Whether the feature statistics of the unit are gathered (the full-cache pass)."""

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
    """Share of the example's questions answered exactly, 0 to 1."""
    graded: npt.NDArray[np.float64]
    """Mean probability of the gold answers, 0 to 1."""
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

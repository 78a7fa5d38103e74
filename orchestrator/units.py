"""What there is to score in a generation: drawn and cut by the configuration alone, never by the fleet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config import UnitSettings
from tasks.task import Split
from workers.memory.specs import MemorySpec, for_candidates
from workers.unit import Score, ScoredUnit, Unit

COPIED = ("seen_tokens", "held_tokens", "mean_bytes", "peak_bytes", "state_bytes")
"""Columns that a declared unit takes from the full-cache pass."""


def draw_examples(
    seed: int, generation: int, task_names: Sequence[str], pool: int, count: int
) -> dict[str, tuple[int, ...]]:
    """The examples that every candidate of a generation answers.

    Each (seed, generation, task) has a random stream of its own: another task more or less leaves the draws of the
    others as they are.

    Args:
        seed: seed of the run, 0 or more.
        generation: 0 or more.
        task_names: names of the tasks, in the order of the result.
        pool: examples of every task to draw from, indices 0 to ``pool - 1``.
        count: examples to draw per task, without replacement; at most ``pool``.

    Returns:
        Task name to ascending indices.
    """
    return {name: _draw([seed, generation, _stream(name)], pool, count) for name in task_names}


def plan_units(
    *,
    generation: int,
    memory_name: str,
    memory: MemorySpec,
    genomes: npt.NDArray[np.float32],
    examples: Mapping[str, tuple[int, ...]],
    split: Split,
    settings: UnitSettings,
    score: Score = "exact",
    record_statistics: bool = False,
) -> list[Unit]:
    """Cut the work into units that hold every (candidate, task, example) once.

    Args:
        generation: generation that the units belong to.
        memory_name: row name in tables.
        memory: what to build the memory from.
        genomes: ``[candidates, genome]`` float32; ``[1, 0]`` for a memory without genomes.
        examples: task name to the indices of its examples.
        split: where the examples come from.
        settings: most candidates and examples in a unit.
        score: which one to measure of tasks with completions.
        record_statistics: whether the feature statistics are gathered.

    Returns:
        Units by task, then block of candidates, then shard of examples; a function of the arguments alone.
    """
    blocks = _cut(range(len(genomes)), settings.candidates_per_unit)
    return [
        Unit(
            generation=generation,
            memory_name=memory_name,
            memory=for_candidates(memory, slice(block[0], block[-1] + 1)),
            task=task,
            split=split,
            examples=shard,
            candidates=block,
            genomes=np.array(genomes[block[0] : block[-1] + 1], dtype=np.float32),
            score=score,
            record_statistics=record_statistics,
        )
        for task, indices in examples.items()
        for block in blocks
        for shard in _cut(indices, settings.examples_per_unit)
    ]


def num_units(num_tasks: int, num_candidates: int, num_examples: int, settings: UnitSettings) -> int:
    """How many units ``plan_units`` cuts the same work into."""
    num_blocks = len(_cut(range(num_candidates), settings.candidates_per_unit))
    return num_tasks * num_blocks * len(_cut(range(num_examples), settings.examples_per_unit))


def declare(unit: Unit, full: Sequence[ScoredUnit]) -> ScoredUnit:
    """What a unit counts as that cannot be scored: every answer wrong, and nothing forgotten.

    Args:
        unit: failed on every attempt.
        full: the full-cache pass, which says how many tokens each of the unit's examples has.
    """
    by_example = {
        (whole.task, example): (whole, row) for whole in full for row, example in enumerate(whole.example.tolist())
    }
    sources = [by_example[unit.task, example] for _ in unit.candidates for example in unit.examples]
    rows = len(sources)

    def copied(name: str) -> Any:
        return np.stack([getattr(whole, name)[row] for whole, row in sources])

    return ScoredUnit.of(
        unit,
        exact=np.zeros(rows),
        graded=np.zeros(rows),
        seconds=0.0,
        is_declared=True,
        **{name: copied(name) for name in COPIED},
    )


def _draw(stream: list[int], pool: int, count: int) -> tuple[int, ...]:
    drawn = np.random.default_rng(stream).choice(pool, size=count, replace=False)
    return tuple(sorted(drawn.tolist()))


def _stream(name: str) -> int:
    """A number for a task's name; Python's own hash of a string changes with the process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _cut(indices: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """``indices`` in order, in pieces of ``most``; the last may be shorter."""
    return [tuple(indices[start : start + most]) for start in range(0, len(indices), most)]

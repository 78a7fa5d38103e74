"""What a command may be asked to evaluate: saved memories, champions of runs, and rivals by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.errors import InputError
from orchestrator.evaluation import FULL, RIVALS, EvaluationPlan, Result, ScoreUnits, seen_tokens, summarise
from orchestrator.journal import has_run
from orchestrator.run import CHAMPION
from orchestrator.storage import folder_at, local_copy
from orchestrator.units import plan_units
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalName, RivalSpec
from workers.unit import ScoredUnit, Unit

Contender = PretrainedMemory | RivalName


def contender_named(what: str) -> Contender:
    """The saved memory in a folder, the champion of a run folder, or a rival by its name.

    Raises:
        InputError: it is none of them, or the run has no champion yet.
        MemoryFileError: the memory cannot be read.
    """
    for name in RIVALS:
        if what == name:
            return name
    folder = folder_at(what)
    if not folder.exists():
        raise InputError(
            f"there is nothing to evaluate at {what!r}: name the folder of a saved memory, a run folder, "
            f"or one of {', '.join(RIVALS)}"
        )
    if has_run(folder):
        if not folder.exists(CHAMPION):
            raise InputError(
                f"the run in {folder} has no champion yet, because it has not reached its last generation: "
                f"go on with namm resume {folder}"
            )
        folder = folder.within(CHAMPION)
    with local_copy(folder) as path:
        return PretrainedMemory.from_pretrained(path)


def evaluate_rival(
    name: RivalName, kept_ratio: float, update_every: int, plan: EvaluationPlan, score: ScoreUnits
) -> list[Result]:
    """Score the full cache, then a rival that may hold the same number of tokens in every head.

    Args:
        name: of the rival; ``full`` scores the full cache alone.
        kept_ratio: tokens that the rival holds at the end of an example / tokens seen.
        update_every: tokens between two evictions.
        plan: what to evaluate on.
        score: on whatever fleet.
    """
    full = _by_task(score(_units(plan, FULL, RivalSpec(name="full", update_every=update_every), plan.examples)))
    seen = {task: seen_tokens(scored) for task, scored in full.items()}
    results = [summarise(FULL, task, scored, seen[task]) for task, scored in full.items()]
    if name == "full":
        return results
    units: list[Unit] = []
    for task, scored in full.items():
        shape = scored[0].held_tokens.shape[1:]
        for length in sorted(set(seen[task].values())):
            examples = tuple(example for example, tokens in seen[task].items() if tokens == length)
            spec = _spec(name, kept_ratio, update_every, length, shape, plan.seed)
            units += _units(plan, name, spec, {task: examples})
    rival = _by_task(score(units))
    return results + [summarise(name, task, scored, seen[task]) for task, scored in rival.items()]


def _spec(
    name: RivalName, kept_ratio: float, update_every: int, length: int, shape: tuple[int, ...], seed: int
) -> RivalSpec:
    """What was read since the last update everybody holds, so the budget after it is less by so much."""
    tokens = max(1, math.ceil(kept_ratio * length) - length % update_every)
    budget = tuple(map(tuple, np.full(shape, tokens).tolist()))
    return RivalSpec(name=name, update_every=update_every, budget=budget, seed=seed)


def _units(plan: EvaluationPlan, name: str, memory: RivalSpec, examples: Mapping[str, tuple[int, ...]]) -> list[Unit]:
    return plan_units(
        generation=plan.generation,
        memory_name=name,
        memory=memory,
        genomes=np.zeros((1, 0), np.float32),
        examples=examples,
        split=plan.split,
        settings=plan.units,
        score=plan.score,
    )


def _by_task(scored: Sequence[ScoredUnit]) -> dict[str, list[ScoredUnit]]:
    tasks: dict[str, list[ScoredUnit]] = {}
    for unit in scored:
        tasks.setdefault(unit.task, []).append(unit)
    return tasks

"""A finished memory against the full cache and every rival, on held-out examples, at equal bytes held.

A rival is given what the memory itself holds in the end, on the same task, in three ways: the same number of tokens
in every head (``uniform``), the memory's own split over layers (``layer``), and over layers and KV heads (``head``).
It may hold that many from the start. The control ``one-head`` keeps one KV head as whole as the bytes allow and
elsewhere only the newest tokens; which head is chosen on training examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from orchestrator.config import UnitSettings
from orchestrator.units import plan_units
from tasks.task import Split
from workers.memory.dial import find_threshold
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import MemorySpec, RivalName, RivalSpec
from workers.unit import ScoredUnit, Unit

ScoreUnits = Callable[[Sequence[Unit]], list[ScoredUnit]]
"""Scores units on whatever fleet and returns them in the order given."""

Allocation = Literal["uniform", "layer", "head"]
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "layer", "head")
MEMORY, FULL, CONTROL = "namm", "full", "one-head"
ONE_SHAPE: tuple[RivalName, ...] = ("truncation",)
"""Rivals for which a split over layers and heads means nothing."""

CONTROL_HEADS = 8
"""Heads tried as the whole one: those that the memory itself keeps most of."""
CONTROL_MINIMUM = 8
"""Newest tokens that the control keeps in every other head."""

Budget = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one memory fared on one task."""

    name: str
    """``namm``, ``full``, ``one-head``, or rival and allocation such as ``h2o-layer``."""
    task: str
    exact: float
    """Share of questions answered exactly."""
    graded: float
    """Mean probability of the gold answers."""
    kept_ratio: float
    """Tokens held at the end / tokens seen, mean over layers and KV heads; tokens cut from a prompt count as seen."""
    mean_bytes: float
    """Bytes of keys and values held, averaged over the tokens read."""
    peak_bytes: float
    """Most bytes of keys and values at any moment, mean over examples."""
    state_bytes: float
    """Bytes that the memory itself keeps beside them."""
    num_examples: int
    exact_by_example: tuple[float, ...] = field(default=(), repr=False)
    """``exact`` of each example, in the plan's order: what intervals are made of."""
    graded_by_example: tuple[float, ...] = field(default=(), repr=False)
    """``graded`` of each example."""

    def document(self) -> dict[str, Any]:
        """The means as plain values; the examples are in the ``units`` table."""
        return {key: value for key, value in asdict(self).items() if not key.endswith("_by_example")}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to evaluate on."""

    generation: int
    """Number that the units carry: one after the last generation of the search."""
    tasks: tuple[str, ...]
    examples: tuple[int, ...]
    """Held-out examples of every task."""
    control_examples: tuple[int, ...]
    """Training examples on which the control's head is chosen."""
    rivals: tuple[RivalName, ...]
    units: UnitSettings
    seed: int
    allocations: tuple[Allocation, ...] = ALLOCATIONS
    """How the bytes of each rival are split."""


def evaluate(memory: PretrainedMemory, plan: EvaluationPlan, score: ScoreUnits) -> list[Result]:
    """Score the memory, the full cache and all rivals; results by name, then task, in the plan's order."""
    every = memory.spec.settings.update_every
    full = RivalSpec(name="full", update_every=every)
    units = {
        MEMORY: {task: _units(plan, MEMORY, memory.spec, task, genome=memory.genome) for task in plan.tasks},
        FULL: {task: _units(plan, FULL, full, task) for task in plan.tasks},
    }
    scored = _score_all(score, units)
    held = {task: held_after_update(scored[MEMORY, task], every) for task in plan.tasks}
    seen = {task: int(scored[FULL, task][0].seen_tokens.max()) for task in plan.tasks}
    rivals = _rival_units(plan, held, every) | {CONTROL: _control_units(plan, held, every, score)}
    scored |= _score_all(score, rivals)
    return [summarise(name, task, units, seen[task]) for (name, task), units in scored.items()]


def turn_dial(memory: PretrainedMemory, kept_ratio: float, plan: EvaluationPlan, score: ScoreUnits) -> PretrainedMemory:
    """The memory with its dial turned until it keeps so much in the end, mean over the plan's training examples.

    Raises:
        DialError: no threshold keeps so much.
    """

    def kept_at(threshold: float) -> float:
        spec = replace(memory.spec, threshold=threshold)
        units = {
            task: _units(plan, MEMORY, spec, task, genome=memory.genome, split="train", examples=plan.control_examples)
            for task in plan.tasks
        }
        scored = _score_all(score, {MEMORY: units})
        return float(np.mean([_kept_ratio(each, int(each[0].seen_tokens.max())) for each in scored.values()]))

    found = find_threshold(kept_at, kept_ratio)
    spec = replace(memory.spec, threshold=found.threshold)
    return memory.turned(spec, {"kept_ratio": kept_ratio, "reached": found.kept})


def held_after_update(scored: Sequence[ScoredUnit], update_every: int) -> npt.NDArray[np.float64]:
    """Tokens held after the last update, ``[layers, kv_heads]``, mean over examples.

    What was read since, everybody holds.
    """
    held = np.concatenate([unit.held_tokens for unit in scored]).astype(np.float64)
    since = np.concatenate([unit.seen_tokens for unit in scored]) % update_every
    mean: npt.NDArray[np.float64] = (held - since[:, None, None]).mean(axis=0)
    return mean


def allocate(held: npt.NDArray[np.float64], allocation: Allocation) -> Budget:
    """Tokens by layer and KV head for a rival, rounded up, from what the memory holds ``[layers, kv_heads]``."""
    axes: dict[Allocation, tuple[int, ...]] = {"uniform": (0, 1), "layer": (1,), "head": ()}
    mean = held.mean(axis=axes[allocation], keepdims=True) if axes[allocation] else held
    return _budget(np.broadcast_to(mean, held.shape))


def one_head_budget(held: npt.NDArray[np.float64], layer: int, head: int) -> Budget:
    """All bytes to one KV head, but for the newest few tokens everywhere else."""
    budget = np.full(held.shape, float(min(CONTROL_MINIMUM, held.mean())))
    budget[layer, head] += held.sum() - budget.sum()
    return _budget(budget)


def summarise(name: str, task: str, scored: Sequence[ScoredUnit], full_tokens: int) -> Result:
    """Means over all rows; ``full_tokens`` is how many tokens the whole example has."""

    def mean(values: Callable[[ScoredUnit], npt.NDArray[np.generic]]) -> float:
        return float(np.concatenate([values(unit) for unit in scored]).astype(np.float64).mean())

    return Result(
        name=name,
        task=task,
        exact=mean(lambda unit: unit.exact),
        graded=mean(lambda unit: unit.graded),
        kept_ratio=_kept_ratio(scored, full_tokens),
        mean_bytes=mean(lambda unit: unit.mean_bytes),
        peak_bytes=mean(lambda unit: unit.peak_bytes),
        state_bytes=mean(lambda unit: unit.state_bytes),
        num_examples=sum(len(unit.example) for unit in scored),
        exact_by_example=tuple(np.concatenate([unit.exact for unit in scored]).tolist()),
        graded_by_example=tuple(np.concatenate([unit.graded for unit in scored]).tolist()),
    )


def _kept_ratio(scored: Sequence[ScoredUnit], full_tokens: int) -> float:
    return float(np.concatenate([unit.held_tokens.mean(axis=(1, 2)) / full_tokens for unit in scored]).mean())


def _rival_units(
    plan: EvaluationPlan, held: Mapping[str, npt.NDArray[np.float64]], update_every: int
) -> dict[str, dict[str, list[Unit]]]:
    units = {}
    for rival in plan.rivals:
        for allocation in ALLOCATIONS[:1] if rival in ONE_SHAPE else plan.allocations:
            name = rival if rival in ONE_SHAPE else f"{rival}-{allocation}"
            units[name] = {
                task: _units(plan, name, _rival(plan, rival, update_every, allocate(held[task], allocation)), task)
                for task in plan.tasks
            }
    return units


def _control_units(
    plan: EvaluationPlan, held: Mapping[str, npt.NDArray[np.float64]], update_every: int, score: ScoreUnits
) -> dict[str, list[Unit]]:
    """Held-out units of the control, with the head that served each task's training examples best."""
    specs: dict[tuple[str, str], RivalSpec] = {}
    trials: dict[str, dict[str, list[Unit]]] = {}
    for task, tokens in held.items():
        for layer, head in _heads_by_tokens(tokens)[:CONTROL_HEADS]:
            name = f"{CONTROL}-l{layer}h{head}"
            specs[name, task] = _rival(plan, "recent", update_every, one_head_budget(tokens, layer, head))
            units = _units(plan, name, specs[name, task], task, split="train", examples=plan.control_examples)
            trials.setdefault(name, {})[task] = units
    scored = _score_all(score, trials)
    by_score = sorted(specs, key=lambda key: _mean_graded(scored[key]))
    best = {task: (name, task) for name, task in by_score}  # the last of each task is its best
    return {task: _units(plan, CONTROL, specs[best[task]], task) for task in plan.tasks}


def _heads_by_tokens(held: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    order = np.argsort(-held, axis=None, kind="stable")
    return [(int(index) // held.shape[1], int(index) % held.shape[1]) for index in order]


def _mean_graded(scored: Sequence[ScoredUnit]) -> float:
    return float(np.concatenate([unit.graded for unit in scored]).mean())


def _rival(plan: EvaluationPlan, name: RivalName, update_every: int, budget: Budget) -> RivalSpec:
    return RivalSpec(name=name, update_every=update_every, budget=budget, seed=plan.seed)


def _budget(tokens: npt.NDArray[np.float64]) -> Budget:
    return tuple(tuple(max(1, math.ceil(count - 1e-9)) for count in layer) for layer in tokens.tolist())


def _units(
    plan: EvaluationPlan,
    name: str,
    memory: MemorySpec,
    task: str,
    *,
    genome: npt.NDArray[np.float32] | None = None,
    split: Split = "heldout",
    examples: tuple[int, ...] | None = None,
) -> list[Unit]:
    genomes = np.zeros((1, 0), np.float32) if genome is None else genome[None]
    return plan_units(
        generation=plan.generation,
        memory_name=name,
        memory=memory,
        genomes=genomes,
        examples={task: plan.examples if examples is None else examples},
        split=split,
        settings=plan.units,
    )


def _score_all(
    score: ScoreUnits, units: Mapping[str, Mapping[str, Iterable[Unit]]]
) -> dict[tuple[str, str], list[ScoredUnit]]:
    """Score everything in one go; results by memory name and task."""
    flat = [(name, task, unit) for name, tasks in units.items() for task, shard in tasks.items() for unit in shard]
    scored: dict[tuple[str, str], list[ScoredUnit]] = {}
    for (name, task, _), result in zip(flat, score([unit for *_, unit in flat]), strict=True):
        scored.setdefault((name, task), []).append(result)
    return scored

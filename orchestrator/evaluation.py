"""A finished memory against the full cache and every rival, on held-out examples, at equal bytes held.

A rival is given what the memory itself holds in the end, on the same task (and on examples of the same length, where a
task's differ), in three ways: the same number of tokens in every head (``uniform``), the memory's own split over layers
(``layer``), and over layers and KV heads (``head``). It may hold that many from the start. The control ``one-head``
keeps one KV head as whole as the bytes allow and elsewhere only the newest tokens; which head is chosen on training
examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from orchestrator.config import UnitSettings
from orchestrator.units import plan_units
from tasks.task import Split
from workers.memory.dial import find_threshold
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import MemorySpec, RivalName, RivalSpec
from workers.unit import Score, ScoredUnit, Unit

ScoreUnits = Callable[[Sequence[Unit]], list[ScoredUnit]]
"""Scores units on whatever fleet and returns them in the order given."""

Allocation = Literal["uniform", "layer", "head"]
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "layer", "head")
RIVALS: tuple[RivalName, ...] = get_args(RivalName)
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
    """Share of questions answered exactly, or the task's score of completions; NaN where not measured."""
    graded: float
    """Mean probability of the gold answers; NaN where not measured."""
    kept_ratio: float
    """Tokens held at the end / tokens seen, mean over layers and KV heads; tokens cut from a prompt count as seen."""
    mean_bytes: float
    """Bytes of keys and values held, averaged over the tokens read."""
    peak_bytes: float
    """Most bytes of keys and values at any moment, mean over examples."""
    state_bytes: float
    """Bytes that the memory itself keeps beside them."""
    seen_tokens: float = math.nan
    """Tokens of the whole examples, mean."""
    num_examples: int = 0
    seconds: float = math.nan
    """Wall-clock time of an example in its worker: information only."""
    exact_by_example: tuple[float, ...] = field(default=(), repr=False)
    """``exact`` of each example, in the plan's order: what intervals are made of."""
    graded_by_example: tuple[float, ...] = field(default=(), repr=False)
    """``graded`` of each example."""

    def document(self) -> dict[str, Any]:
        """The means as plain values, but for wall-clock time; the examples are in the ``units`` table."""
        told = {key: value for key, value in asdict(self).items() if not key.endswith("_by_example")}
        return without_nan({key: value for key, value in told.items() if key != "seconds"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What to evaluate on."""

    generation: int
    """Number that the units carry: one after the last generation of the search."""
    examples: Mapping[str, tuple[int, ...]]
    """Held-out examples of every task, by its name."""
    control_examples: tuple[int, ...]
    """Training examples on which the control's head is chosen; without any, there is no control."""
    rivals: tuple[RivalName, ...]
    units: UnitSettings
    seed: int
    score: Score = "exact"
    """Which one is measured of tasks with completions."""
    split: Split = "heldout"
    allocations: tuple[Allocation, ...] = ALLOCATIONS
    """How the bytes of each rival are split."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.examples)


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """With None for what was not measured: JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def evaluate(memory: PretrainedMemory, plan: EvaluationPlan, score: ScoreUnits, name: str = MEMORY) -> list[Result]:
    """Score the memory, the full cache and all rivals; results by name, then task, in the plan's order.

    Args:
        memory: what the rivals are to hold as much as.
        plan: what to evaluate on.
        score: on whatever fleet.
        name: of the memory in tables; of any but ``namm`` the rivals bear it too.
    """
    every = memory.spec.settings.update_every
    full = RivalSpec(name="full", update_every=every)
    units = {
        name: {task: _units(plan, name, memory.spec, task, genome=memory.genome) for task in plan.tasks},
        FULL: {task: _units(plan, FULL, full, task) for task in plan.tasks},
    }
    scored = _score_all(score, units)
    seen = {task: seen_tokens(scored[FULL, task]) for task in plan.tasks}
    held = {task: held_by_length(scored[name, task], seen[task], every) for task in plan.tasks}
    suffix = "" if name == MEMORY else f"-at-{name}"
    rivals = _rival_units(plan, held, every, suffix)
    if plan.control_examples:
        rivals[f"{CONTROL}{suffix}"] = _control_units(plan, held, every, score, suffix)
    scored |= _score_all(score, rivals)
    return [summarise(row, task, units, seen[task]) for (row, task), units in scored.items()]


def turn_dial(
    memory: PretrainedMemory, kept_ratio: float, plan: EvaluationPlan, score: ScoreUnits, name: str = MEMORY
) -> PretrainedMemory:
    """The memory with its dial turned until it keeps so much in the end, mean over the plan's training examples.

    Raises:
        DialError: no threshold keeps so much.
    """
    trials = itertools.count()

    def kept_at(threshold: float) -> float:
        spec, trial = replace(memory.spec, threshold=threshold), f"{name}-dial{next(trials)}"
        units = {
            task: _units(plan, trial, spec, task, genome=memory.genome, split="train", examples=plan.control_examples)
            for task in plan.tasks
        }
        scored = _score_all(score, {trial: units})
        return float(np.mean([_kept_ratio(each, {}).mean() for each in scored.values()]))

    found = find_threshold(kept_at, kept_ratio)
    spec = replace(memory.spec, threshold=found.threshold)
    return memory.turned(spec, {"kept_ratio": kept_ratio, "reached": found.kept})


Held = tuple[tuple[tuple[int, ...], npt.NDArray[np.float64]], ...]
"""Groups of examples of one length, and what the memory holds on them after its last update ``[layers, kv_heads]``."""


def seen_tokens(full: Sequence[ScoredUnit]) -> dict[int, int]:
    """Tokens of every example, by what was read under the full cache."""
    rows = [zip(unit.example.tolist(), unit.seen_tokens.tolist(), strict=True) for unit in full]
    return dict(itertools.chain.from_iterable(rows))


def held_by_length(scored: Sequence[ScoredUnit], seen: Mapping[int, int], update_every: int) -> Held:
    """What a memory holds after its last update, mean over the examples of one length; what came since, all hold.

    Where all examples are equally long there is one group. Elsewhere one budget for all would hold the whole of short
    prompts and starve long ones.
    """
    held: dict[int, list[npt.NDArray[np.float64]]] = {}
    examples: dict[int, list[int]] = {}
    for unit in scored:
        for row, example in enumerate(unit.example.tolist()):
            since = int(unit.seen_tokens[row]) % update_every
            held.setdefault(seen[example], []).append(unit.held_tokens[row].astype(np.float64) - since)
            examples.setdefault(seen[example], []).append(example)
    return tuple((tuple(examples[length]), np.mean(held[length], axis=0)) for length in sorted(held))


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


def summarise(name: str, task: str, scored: Sequence[ScoredUnit], seen: Mapping[int, int]) -> Result:
    """Means over all rows; ``seen`` has how many tokens each whole example has."""

    def mean(values: Callable[[ScoredUnit], npt.NDArray[np.generic]]) -> float:
        return float(np.concatenate([values(unit) for unit in scored]).astype(np.float64).mean())

    return Result(
        name=name,
        task=task,
        exact=mean(lambda unit: unit.exact),
        graded=mean(lambda unit: unit.graded),
        kept_ratio=float(_kept_ratio(scored, seen).mean()),
        seen_tokens=float(np.mean(list(seen.values()))),
        mean_bytes=mean(lambda unit: unit.mean_bytes),
        peak_bytes=mean(lambda unit: unit.peak_bytes),
        state_bytes=mean(lambda unit: unit.state_bytes),
        seconds=sum(unit.seconds for unit in scored) / sum(len(unit.example) for unit in scored),
        num_examples=sum(len(unit.example) for unit in scored),
        exact_by_example=tuple(_by_example(scored, "exact")),
        graded_by_example=tuple(_by_example(scored, "graded")),
    )


def _by_example(scored: Sequence[ScoredUnit], column: str) -> list[float]:
    """A column in the order of the examples, which rivals are not scored in where lengths differ."""
    values = {
        example: value
        for unit in scored
        for example, value in zip(unit.example.tolist(), getattr(unit, column).tolist(), strict=True)
    }
    return [values[example] for example in sorted(values)]


def _kept_ratio(scored: Sequence[ScoredUnit], seen: Mapping[int, int]) -> npt.NDArray[np.float64]:
    """Row by row; of ``seen``, which counts what was cut from a prompt, but completions may be longer than there."""
    ratios = []
    for unit in scored:
        whole = np.array([seen.get(example, 0) for example in unit.example.tolist()])
        ratios.append(unit.held_tokens.mean(axis=(1, 2)) / np.maximum(whole, unit.seen_tokens))
    return np.concatenate(ratios)


def _rival_units(
    plan: EvaluationPlan, held: Mapping[str, Held], update_every: int, suffix: str
) -> dict[str, dict[str, list[Unit]]]:
    units: dict[str, dict[str, list[Unit]]] = {}
    for rival in plan.rivals:
        for allocation in ALLOCATIONS[:1] if rival in ONE_SHAPE else plan.allocations:
            name = (rival if rival in ONE_SHAPE else f"{rival}-{allocation}") + suffix
            units[name] = {
                task: [
                    unit
                    for examples, tokens in held[task]
                    for unit in _units(
                        plan,
                        name,
                        _rival(plan, rival, update_every, allocate(tokens, allocation)),
                        task,
                        examples=examples,
                    )
                ]
                for task in plan.tasks
            }
    return units


def _control_units(
    plan: EvaluationPlan, held: Mapping[str, Held], update_every: int, score: ScoreUnits, suffix: str
) -> dict[str, list[Unit]]:
    """Units of the control, with the head that served each task's training examples best."""
    heads: dict[tuple[str, str], tuple[int, int]] = {}
    trials: dict[str, dict[str, list[Unit]]] = {}
    for task, groups in held.items():
        tokens = np.mean([tokens for _, tokens in groups], axis=0)
        for layer, head in _heads_by_tokens(tokens)[:CONTROL_HEADS]:
            name = f"{CONTROL}-l{layer}h{head}{suffix}"
            heads[name, task] = layer, head
            spec = _rival(plan, "recent", update_every, one_head_budget(tokens, layer, head))
            units = _units(plan, name, spec, task, split="train", examples=plan.control_examples)
            trials.setdefault(name, {})[task] = units
    scored = _score_all(score, trials)
    by_score = sorted(heads, key=lambda key: _mean_score(scored[key]))
    best = {task: heads[name, task] for name, task in by_score}  # the last of each task is its best
    return {
        task: [
            unit
            for examples, tokens in held[task]
            for unit in _units(
                plan,
                f"{CONTROL}{suffix}",
                _rival(plan, "recent", update_every, one_head_budget(tokens, *best[task])),
                task,
                examples=examples,
            )
        ]
        for task in plan.tasks
    }


def _heads_by_tokens(held: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    order = np.argsort(-held, axis=None, kind="stable")
    return [(int(index) // held.shape[1], int(index) % held.shape[1]) for index in order]


def _mean_score(scored: Sequence[ScoredUnit]) -> float:
    """Graded where that was measured, else exact."""
    graded, exact = (np.concatenate([getattr(unit, name) for unit in scored]).mean() for name in ("graded", "exact"))
    return float(exact if np.isnan(graded) else graded)


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
    split: Split | None = None,
    examples: tuple[int, ...] | None = None,
) -> list[Unit]:
    genomes = np.zeros((1, 0), np.float32) if genome is None else genome[None]
    return plan_units(
        generation=plan.generation,
        memory_name=name,
        memory=memory,
        genomes=genomes,
        examples={task: plan.examples[task] if examples is None else examples},
        split=split or plan.split,
        settings=plan.units,
        score=plan.score,
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

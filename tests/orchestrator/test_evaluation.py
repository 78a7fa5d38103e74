"""Rivals are given what the memory holds, never less."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.config import UnitSettings
from orchestrator.evaluation import (
    ALLOCATIONS,
    CONTROL,
    FULL,
    MEMORY,
    EvaluationPlan,
    allocate,
    evaluate,
    held_by_length,
    one_head_budget,
)
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.unit import ScoredUnit, Unit

SETTINGS = NammSettings(update_every=64, hidden_size=4)
HELD = arrays(np.float64, (3, 2), elements=st.floats(1, 500))
SEEN = 276


@given(HELD, st.sampled_from(ALLOCATIONS))
def test_a_rival_gets_at_least_the_bytes_of_the_memory_and_less_than_one_token_a_head_more(held, allocation):
    budget = np.array(allocate(held, allocation))
    assert held.sum() - 1e-6 <= budget.sum() < held.sum() + held.size
    if allocation == "layer":
        assert (budget.sum(axis=1) >= held.sum(axis=1) - 1e-6).all()
    if allocation == "uniform":
        assert len(np.unique(budget)) == 1


@given(HELD, st.integers(0, 2), st.integers(0, 1))
def test_the_control_gives_one_head_all_that_the_others_do_not_need(held, layer, head):
    budget = np.array(one_head_budget(held, layer, head))
    others = np.delete(budget.ravel(), layer * 2 + head)
    assert held.sum() - 1e-6 <= budget.sum() < held.sum() + held.size
    assert others.max() <= 8
    assert budget[layer, head] == budget.max()


def scored_unit(unit: Unit, graded: float, held: np.ndarray) -> ScoredUnit:
    rows = len(unit.examples)
    return ScoredUnit(
        key=unit.key,
        generation=unit.generation,
        memory_name=unit.memory_name,
        task=unit.task,
        split=unit.split,
        candidate=np.zeros(rows, np.int32),
        example=np.array(unit.examples, np.int32),
        exact=np.full(rows, graded),
        graded=np.full(rows, graded),
        seen_tokens=np.full(rows, SEEN, np.int32),
        held_tokens=np.broadcast_to(held.astype(np.int32), (rows, *held.shape)),
        mean_bytes=np.ones(rows),
        peak_bytes=np.ones(rows, np.int64),
        state_bytes=np.ones(rows, np.int64),
        seconds=0.0,
    )


class FakeFleet:
    """Scores by rule: head (1, 0) is the one that matters; remembers what it was asked."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def __call__(self, units: Sequence[Unit]) -> list[ScoredUnit]:
        self.units += units
        return [self.one(unit) for unit in units]

    def one(self, unit: Unit) -> ScoredUnit:
        since = SEEN % SETTINGS.update_every
        if unit.memory_name == MEMORY:
            return scored_unit(unit, 0.9, np.array([[30, 10], [80, 20]]) + since)
        if not isinstance(unit.memory, RivalSpec) or not unit.memory.budget:
            return scored_unit(unit, 1.0, np.full((2, 2), SEEN))
        budget = np.array(unit.memory.budget)
        return scored_unit(unit, float(budget[1, 0] / 200), budget + since)


def plan(**changes) -> EvaluationPlan:
    settings = {
        "generation": 5,
        "examples": {"a-256": (0, 1, 2), "b-256": (0, 1, 2)},
        "control_examples": (0, 1),
        "rivals": ("recent", "h2o", "truncation"),
        "units": UnitSettings(candidates_per_unit=1, examples_per_unit=2),
        "seed": 3,
    }
    return EvaluationPlan(**(settings | changes))


@pytest.fixture
def memory() -> PretrainedMemory:
    genome = np.zeros(SETTINGS.genome_size, np.float32)
    return PretrainedMemory(spec=NammSpec(settings=SETTINGS), genome=genome)


def test_every_rival_stands_beside_the_memory_on_every_task(memory):
    results = evaluate(memory, plan(), FakeFleet())
    rivals = [f"{name}-{allocation}" for name in ("recent", "h2o") for allocation in ALLOCATIONS]
    names = [MEMORY, FULL, CONTROL, "truncation", *rivals]
    expected = {(name, task) for name in names for task in plan().tasks}
    assert {(result.name, result.task) for result in results} == expected
    assert all(result.num_examples == 3 for result in results)


def test_rivals_hold_as_many_bytes_as_the_memory_in_the_end(memory):
    results = evaluate(memory, plan(examples={"a-256": (0, 1, 2)}), FakeFleet())
    kept = {result.name: result.kept_ratio for result in results}
    for name in kept.keys() - {FULL}:
        assert kept[name] == pytest.approx(kept[MEMORY], abs=1 / SEEN), name


def test_with_fewer_splits_a_rival_without_any_still_holds_as_much_as_the_memory(memory):
    """Truncation once got the budget of the first head for all of them, where only ``head`` was asked for."""
    results = evaluate(memory, plan(examples={"a-256": (0, 1, 2)}, allocations=("head",)), FakeFleet())
    kept = {result.name: result.kept_ratio for result in results}
    assert kept.keys() == {MEMORY, FULL, CONTROL, "truncation", "recent-head", "h2o-head"}
    assert kept["truncation"] == pytest.approx(kept[MEMORY], abs=1 / SEEN)


def test_the_whole_head_of_the_control_is_chosen_on_training_examples_only(memory):
    fleet = FakeFleet()
    evaluate(memory, plan(), fleet)
    trials = [unit for unit in fleet.units if unit.memory_name.startswith(f"{CONTROL}-")]
    chosen = [unit for unit in fleet.units if unit.memory_name == CONTROL]
    assert {unit.split for unit in trials} == {"train"}
    assert {unit.split for unit in chosen} == {"heldout"}
    assert all(np.argmax(unit.memory.budget) == 2 for unit in chosen)  # (1, 0): the head that the fake rewards


def test_what_was_read_since_the_last_update_is_nobodys_choice():
    unit = scored_unit(next(iter(_units())), 1.0, np.array([[30.0, 40.0]]) + SEEN % 64)
    ((examples, held),) = held_by_length([unit], {0: SEEN}, 64)
    assert (examples, held.tolist()) == ((0,), [[30.0, 40.0]])


class VariedFleet(FakeFleet):
    """Examples of two lengths; the memory holds a quarter of each."""

    def one(self, unit: Unit) -> ScoredUnit:
        seen = np.array([64 * (2 + 8 * (example % 2)) for example in unit.examples], np.int32)
        scored = super().one(unit)
        held = np.repeat(seen // 4, 4).reshape(-1, 2, 2)
        if isinstance(unit.memory, RivalSpec):
            held = np.broadcast_to(np.array(unit.memory.budget or np.inf), held.shape)
        return dataclasses.replace(scored, seen_tokens=seen, held_tokens=np.minimum(held, seen[:, None, None]))


def test_where_lengths_differ_rivals_hold_what_the_memory_holds_on_examples_of_that_length(memory):
    """One budget for all would have let rivals keep short examples whole, and starved them on long ones."""
    fleet = VariedFleet()
    results = evaluate(memory, plan(examples={"a-256": (0, 1, 2, 3)}), fleet)
    assert {result.kept_ratio for result in results if result.name != FULL} == {0.25}
    budgets = {(unit.examples, unit.memory.budget[0][0]) for unit in fleet.units if unit.memory_name == "h2o-uniform"}
    assert budgets == {((0, 2), 32), ((1, 3), 160)}
    assert all(len(result.graded_by_example) == 4 for result in results)


def _units() -> list[Unit]:
    spec = NammSpec(settings=SETTINGS)
    genomes = np.zeros((1, SETTINGS.genome_size), np.float32)
    return [
        Unit(
            generation=0,
            memory_name=MEMORY,
            memory=spec,
            task="a-256",
            split="heldout",
            examples=(0,),
            candidates=(0,),
            genomes=genomes,
        )
    ]

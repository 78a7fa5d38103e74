import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import UnitSettings
from orchestrator.units import draw_examples, num_units, plan_units
from workers.memory.specs import NammSettings, NammSpec, RivalSpec
from workers.unit import split

TASKS = ["qa", "code", "facts"]
SIZES = st.integers(1, 7)


def planned(population=5, examples=None, candidates_per_unit=2, examples_per_unit=2):
    return plan_units(
        generation=3,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.arange(population * 4, dtype=np.float32).reshape(population, 4),
        examples={"qa": (1, 4, 9), "code": (0, 2)} if examples is None else examples,
        split="train",
        settings=UnitSettings(candidates_per_unit=candidates_per_unit, examples_per_unit=examples_per_unit),
    )


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.integers(1, 60), st.data())
def test_draws_are_ascending_without_replacement_and_from_the_pool(seed, generation, pool, data):
    count = data.draw(st.integers(1, pool))
    for drawn in draw_examples(seed, generation, TASKS, pool, count).values():
        assert len(drawn) == count
        assert all(a < b for a, b in itertools.pairwise(drawn))
        assert drawn[0] >= 0
        assert drawn[-1] < pool
        assert {type(index) for index in drawn} == {int}


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10_000), st.permutations(TASKS), st.integers(1, 3))
def test_the_draw_of_a_task_does_not_depend_on_the_other_tasks(seed, generation, order, number):
    among_all = draw_examples(seed, generation, TASKS, 50, 8)
    some = draw_examples(seed, generation, order[:number], 50, 8)
    assert list(some) == order[:number]
    assert all(some[name] == among_all[name] for name in some)


def test_seeds_generations_and_tasks_draw_differently():
    draws = [
        draw_examples(seed, generation, TASKS, 1000, 10)[task]
        for seed in (0, 1)
        for generation in (0, 1)
        for task in TASKS
    ]
    assert len(set(draws)) == len(draws)


def test_every_example_of_the_pool_is_drawn_about_equally_often():
    """10 of 40 over 1,000 generations: 250 each, standard deviation 14, so a false alarm has odds below 1e-9."""
    counts = Counter(index for g in range(1000) for index in draw_examples(0, g, ["qa"], 40, 10)["qa"])
    assert set(counts) == set(range(40))
    assert 150 < min(counts.values()) <= max(counts.values()) < 350


def test_draws_stay_what_they_were_when_runs_were_started():
    """A run is resumed by drawing again: if numpy or this function ever draws differently, it must show."""
    assert draw_examples(7, 3, ["qa", "code"], 30, 5) == {"qa": (0, 8, 11, 12, 13), "code": (7, 8, 17, 22, 24)}


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.lists(st.integers(0, 99), min_size=1, max_size=7, unique=True))
def test_a_plan_holds_every_candidate_task_and_example_once(population, per_block, per_shard, indices):
    examples = {"qa": tuple(sorted(indices)), "code": (5,)}
    units = planned(population, examples, per_block, per_shard)
    rows = Counter((unit.task, c, e) for unit in units for c in unit.candidates for e in unit.examples)
    wanted = {(task, c, e) for task, drawn in examples.items() for c in range(population) for e in drawn}
    assert set(rows) == wanted
    assert set(rows.values()) == {1}
    assert len({unit.key for unit in units}) == len(units)
    assert max(len(unit.candidates) for unit in units) <= per_block
    assert max(len(unit.examples) for unit in units) <= per_shard


@settings(deadline=None)
@given(SIZES, SIZES, SIZES)
def test_every_unit_carries_the_genomes_of_its_candidates(population, per_block, per_shard):
    genomes = np.arange(population * 4, dtype=np.float32).reshape(population, 4)
    for unit in planned(population, None, per_block, per_shard):
        assert unit.genomes.dtype == np.float32
        np.testing.assert_array_equal(unit.genomes, genomes[list(unit.candidates)])


def test_units_come_by_task_then_block_then_shard():
    assert [(unit.task, unit.candidates, unit.examples) for unit in planned(population=3)] == [
        ("qa", (0, 1), (1, 4)),
        ("qa", (0, 1), (9,)),
        ("qa", (2,), (1, 4)),
        ("qa", (2,), (9,)),
        ("code", (0, 1), (0, 2)),
        ("code", (2,), (0, 2)),
    ]


def test_a_memory_without_genomes_has_the_single_candidate_0():
    unit = plan_units(
        generation=-1,
        memory_name="full",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((1, 0), dtype=np.float32),
        examples={"qa": (0,)},
        split="train",
        settings=UnitSettings(candidates_per_unit=8, examples_per_unit=1),
        record_statistics=True,
    )[0]
    assert unit.candidates == (0,)
    assert unit.genomes.shape == (1, 0)
    assert unit.record_statistics


def test_a_plan_does_not_alias_the_population():
    unit = planned()[0]
    assert unit.genomes.base is None


def test_more_examples_than_the_pool_holds_cannot_be_drawn():
    with pytest.raises(ValueError, match="larger sample than population"):
        draw_examples(0, 0, TASKS, 3, 4)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_units_are_counted_as_they_are_cut(tasks, population, count, candidates_per_unit, examples_per_unit):
    examples = {str(task): tuple(range(count)) for task in range(tasks)}
    units = planned(population, examples, candidates_per_unit, examples_per_unit)
    sizes = UnitSettings(candidates_per_unit=candidates_per_unit, examples_per_unit=examples_per_unit)
    assert num_units(tasks, population, count, sizes) == len(units)


def test_a_block_with_a_threshold_for_each_genome_is_cut_with_its_thresholds():
    units = plan_units(
        generation=0,
        memory_name="namm",
        memory=NammSpec(settings=NammSettings(), threshold=(0.0, 1.0, 2.0)),
        genomes=np.zeros((3, 4), np.float32),
        examples={"qa": (0, 1)},
        split="train",
        settings=UnitSettings(candidates_per_unit=2, examples_per_unit=2),
    )
    assert [unit.memory.threshold for unit in units] == [(0.0, 1.0), (2.0,)]
    assert [piece.memory.threshold for piece in split(units[0], 1)] == [(0.0,), (0.0,), (1.0,), (1.0,)]

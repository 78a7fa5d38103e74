"""However a text is cut into forward calls, and whoever else is in the batch: the same result for every row."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.workers.memory.tiny import (
    MODELS,
    ROUNDING,
    drive,
    held_positions,
    largest_difference,
    random_genomes,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_normalisation,
    tiny_settings,
)
from workers.memory.memory import Memory
from workers.memory.namm import Namm

LENGTH = 43
RAGGED_BUDGET = [[3, 21], [26, 6]]  # more than the 16 newest that SnapKV keeps anyway, and less

MEMORIES: dict[str, Callable[[], Memory]] = {
    "namm-even": lambda: tiny_namm(tiny_settings(heads="even")),
    "namm-ragged": lambda: tiny_namm(tiny_settings(heads="ragged")),
    "namm-even-capped": lambda: tiny_namm(tiny_settings(heads="even", cap=6)),
    "namm-ragged-capped": lambda: tiny_namm(tiny_settings(heads="ragged", cap=6)),
    **{
        f"{name}-{kind}": lambda name=name, budget=budget: rival(name, budget)
        for name in ("recent", "h2o", "l2norm", "random", "snapkv", "tova")
        for kind, budget in (("even", 20), ("ragged", RAGGED_BUDGET))
    },
}
every_memory = pytest.mark.parametrize("memory", MEMORIES)
shared_model = functools.cache(tiny_model)
# Derandomised, because chance would now and then find two importances closer than floating-point noise.
few_examples = settings(max_examples=5, deadline=None, derandomize=True, phases=(Phase.generate,))
cuts = st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=8).map(sorted)


def require_same(ours, theirs, rows=None) -> None:
    """Same logits and held positions; ``rows`` picks those of ``theirs`` to compare with."""
    rows = range(len(theirs[0])) if rows is None else rows
    assert largest_difference(ours[0], theirs[0][list(rows)]) < ROUNDING
    assert held_positions(ours[1]) == [[layer[row] for row in rows] for layer in held_positions(theirs[1])]


@every_memory
def test_token_by_token_equals_one_forward(memory):
    model, ids = shared_model(), random_ids(2, LENGTH)
    require_same(drive(model, MEMORIES[memory](), ids, cuts=range(1, LENGTH)), drive(model, MEMORIES[memory](), ids))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", ["namm-ragged", "l2norm-ragged"])
def test_token_by_token_equals_one_forward_on_every_model(name, memory):
    model, ids = shared_model(name), random_ids(2, LENGTH)
    require_same(drive(model, MEMORIES[memory](), ids, cuts=range(1, LENGTH)), drive(model, MEMORIES[memory](), ids))


@every_memory
@few_examples
@given(cuts=cuts, seed=st.integers(0, 1000))
def test_blocks_of_any_size_equal_one_forward(memory, cuts, seed):
    model, ids = shared_model(), random_ids(2, LENGTH, seed)
    require_same(drive(model, MEMORIES[memory](), ids, cuts), drive(model, MEMORIES[memory](), ids))


@every_memory
@few_examples
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_batch_mates_nor_on_its_place(memory, data, seed):
    model, ids = shared_model(), random_ids(5, LENGTH, seed)
    together = drive(model, MEMORIES[memory](), ids)
    order = data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]
    require_same(drive(model, MEMORIES[memory](), ids[order]), together, order)


@pytest.mark.parametrize("memory_settings", [{"heads": "even"}, {"heads": "ragged"}, {"heads": "ragged", "cap": 6}])
@few_examples
@given(seed=st.integers(0, 1000))
def test_a_block_of_genomes_equals_each_genome_alone_on_each_example(memory_settings, seed):
    shape = tiny_settings(**memory_settings)
    model, ids, genomes = shared_model(), random_ids(2, LENGTH, seed), random_genomes(shape, 3, seed)
    statistics = tiny_normalisation(shape)
    block = drive(model, Namm(shape, genomes, statistics), ids.repeat(3, 1))
    for row in range(6):
        genome, example = divmod(row, 2)
        alone = drive(model, Namm(shape, genomes[genome : genome + 1], statistics), ids[example : example + 1])
        require_same(alone, block, [row])


def test_genomes_of_a_block_decide_differently_so_that_the_comparison_above_can_fail():
    model, ids = shared_model(), random_ids(1, LENGTH)
    _, cache = drive(model, tiny_namm(tiny_settings(heads="ragged"), count=3), ids.repeat(3, 1))
    assert len({str(row) for layer in held_positions(cache) for row in layer}) == 6


def test_another_text_gives_another_result_so_that_the_comparisons_above_can_fail():
    model = shared_model()
    one, other = (drive(model, MEMORIES["namm-ragged"](), random_ids(1, LENGTH, seed)) for seed in (0, 1))
    with pytest.raises(AssertionError):
        require_same(one, other)


def test_with_genome_exchanges_nothing_but_the_genome():
    shape = tiny_settings(heads="ragged")
    model, ids, genomes = shared_model(), random_ids(1, LENGTH), random_genomes(shape, 2)
    first = Namm(shape, genomes[:1], tiny_normalisation(shape))
    second = Namm(shape, genomes[1:], tiny_normalisation(shape))
    before = drive(model, first, ids)
    require_same(drive(model, first.with_genome(genomes[1:]), ids), drive(model, second, ids))
    require_same(drive(model, first, ids), before)
    assert first.with_genome(torch.cat([genomes] * 2)).num_genomes == 4

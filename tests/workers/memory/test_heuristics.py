"""Each rival against an independent, slow implementation of what its paper says, head by head on plain lists."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory.tiny import drive, held_positions, random_ids, rival, tiny_model
from workers.memory.heuristics import HEURISTICS
from workers.memory.memory import LayerView
from workers.memory.packed import at_rest
from workers.memory.slots import Slots

ROWS, HEADS, EVERY, SIZE = 2, 2, 8, 4
BUDGETS = [[1, 2], [5, 12], [20, 24], [7, 40]]
"""By "layer": from a single token to more than the window of SnapKV, and one head that never fills."""


class NaiveHead:
    """One KV head of one row: its tokens by position, with the key and the attention that each received, by query."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.keys: dict[int, list[float]] = {}
        self.received: dict[int, dict[int, float]] = {}

    def read(self, position: int, key: list[float]) -> None:
        self.keys[position], self.received[position] = key, {}

    def attend(self, query: int, weights: dict[int, float]) -> None:
        for position, weight in weights.items():
            self.received[position][query] = weight

    def evict(self, name: str) -> None:
        kept = getattr(self, f"keep_{name}")(sorted(self.keys), max(self.keys))
        self.keys = {p: self.keys[p] for p in kept}
        self.received = {p: self.received[p] for p in kept}

    def best(self, first: list[int], others: list[int], importance) -> list[int]:
        """``first`` in order, then the others by importance, up to the budget."""
        others = sorted((p for p in others if p not in first), key=importance, reverse=True)
        return [*first, *others][: self.budget]

    def keep_recent(self, held: list[int], newest: int) -> list[int]:
        return self.best([newest, *(p for p in held if p < 4 and p != newest)], held, lambda p: p)

    def keep_l2norm(self, held: list[int], newest: int) -> list[int]:
        return self.best([newest], held, lambda p: -math.hypot(*self.keys[p]))

    def keep_h2o(self, held: list[int], newest: int) -> list[int]:
        recent = [p for p in held if newest - p < self.budget // 2]
        return self.best([newest, *(p for p in recent if p != newest)], held, lambda p: sum(self.received[p].values()))

    def keep_tova(self, held: list[int], newest: int) -> list[int]:
        return self.best([newest], held, lambda p: self.received[p].get(newest, 0.0))

    def keep_snapkv(self, held: list[int], newest: int) -> list[int]:
        queries = range(newest - 15, newest + 1)
        mean = [sum(self.received[p].get(q, 0.0) for q in queries) / 16 for p in held]
        padded = [0.0, 0.0, *mean, 0.0, 0.0]
        smooth = {p: sum(padded[i : i + 5]) / 5 for i, p in enumerate(held)}
        window = [p for p in reversed(held) if newest - p < 16]
        return self.best(window, held, smooth.get)


def run_both(name: str, layer: int, tokens: int, seed: int) -> tuple[list, list, list[int]]:
    """The same random keys and attention through both: positions held after each update, and the counts before."""
    generator = torch.Generator().manual_seed(seed)
    memory = rival(name, BUDGETS, EVERY)
    naive = [[NaiveHead(BUDGETS[layer][head]) for head in range(HEADS)] for _ in range(ROWS)]
    nothing = torch.zeros(ROWS, HEADS, 0, SIZE)
    slots = Slots.nothing(nothing, nothing, memory.empty_trace_channels())
    ours, theirs, before = [], [], []
    for position in range(tokens):
        key = torch.randn(ROWS, HEADS, 1, SIZE, generator=generator)
        slots = slots.append(key, key, position)
        occupied = slots.positions >= 0
        logits = 2 * torch.randn(occupied.shape, generator=generator)
        weights = logits.masked_fill(~occupied, -torch.inf).softmax(-1)
        if memory.reads_attention:
            slots = slots.with_trace(memory.observe(slots.full_trace(), weights[:, :, None, :]))
        for row in range(ROWS):
            for head in range(HEADS):
                naive[row][head].read(position, key[row, head, 0].tolist())
                pairs = zip(slots.positions[row, head].tolist(), weights[row, head].tolist(), strict=True)
                naive[row][head].attend(position, {p: w for p, w in pairs if p >= 0})
        if (position + 1) % EVERY == 0:
            view = LayerView(layer, position + 1, slots.keys, slots.values, slots.positions, slots.trace)
            before.append(slots.lengths.tolist())
            decision = memory.decide(view)
            assert slots.select(decision.keep, decision.budget).empty == slots.select(decision.keep).empty
            slots = at_rest(slots.select(decision.keep, decision.budget)).at_work()
            for row in naive:
                for head in row:
                    head.evict(name)
            ours.append([[[p for p in h if p >= 0] for h in row] for row in slots.positions.tolist()])
            theirs.append([[sorted(head.keys) for head in row] for row in naive])
    return ours, theirs, before


@pytest.mark.parametrize("layer", range(len(BUDGETS)))
@pytest.mark.parametrize("name", [name for name in HEURISTICS if name != "random"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_it_keeps_what_a_naive_implementation_keeps(name, layer, seed):
    ours, theirs, _ = run_both(name, layer, 48, seed)
    assert ours == theirs
    assert len(ours) == 6


@pytest.mark.parametrize("name", HEURISTICS)
def test_budgets_are_met_exactly_by_layer_and_head_and_the_newest_is_kept(name):
    budget = [[1, 13], [22, 4]]
    updates: list[tuple[LayerView, torch.Tensor]] = []
    drive(tiny_model(), rival(name, budget), random_ids(3, 64), listener=lambda v, d: updates.append((v, d.keep)))
    assert len(updates) == 16
    for view, keep in updates:
        assert keep[..., -1].all()
        assert not (keep & ~view.occupied).any()
        for head in range(HEADS):
            held = view.occupied[:, head].sum(-1)
            assert keep[:, head].sum(-1).tolist() == held.clamp(max=budget[view.layer][head]).tolist()


@pytest.mark.parametrize("budget", [(5, 5), (5, 7)], ids=["shared", "by-head"])
def test_a_budget_is_met_whatever_the_keys_are(budget):
    keys = torch.randn(1, 2, 20, SIZE, generator=torch.Generator().manual_seed(0))
    keys[:, 0, 3], keys[:, 1, 4] = torch.nan, torch.inf
    slots = Slots.nothing(keys[:, :, :0], keys[:, :, :0], 0).append(keys, keys, 0)
    view = LayerView(0, 20, slots.keys, slots.values, slots.positions, slots.full_trace())
    decision = rival("l2norm", [budget], EVERY).decide(view)
    assert tuple(decision.keep.sum(-1)[0].tolist()) == decision.budget == budget


def test_a_budget_below_one_keeps_the_newest_token():
    _, cache = drive(tiny_model(), rival("l2norm", 0), random_ids(1, 24))
    assert held_positions(cache) == [[[[23], [23]]], [[[23], [23]]]]


def test_recent_keeps_the_sinks_and_the_window():
    _, cache = drive(tiny_model(), rival("recent", 9), random_ids(1, 40))
    assert held_positions(cache)[1][0][0] == [0, 1, 2, 3, 35, 36, 37, 38, 39]


def test_a_budget_of_the_sinks_alone_still_keeps_the_newest_token():
    """The sinks tied with the newest token at infinity, and won because they are older."""
    _, cache = drive(tiny_model(), rival("recent", 4), random_ids(1, 40))
    assert held_positions(cache)[0][0][0] == [0, 1, 2, 39]


def test_snapkv_with_a_budget_below_its_window_keeps_the_newest_tokens():
    """The window's tokens tied at infinity, and the oldest of them won."""
    _, cache = drive(tiny_model(), rival("snapkv", 5), random_ids(1, 40))
    assert held_positions(cache)[0][0][0] == [35, 36, 37, 38, 39]


def test_random_is_a_function_of_seed_layer_head_and_position_alone():
    model, memory = tiny_model(), rival("random", 10)
    together = held_positions(drive(model, memory, random_ids(4, 64, seed=1))[1])
    alone = held_positions(drive(model, memory, random_ids(1, 64, seed=2), cuts=(3, 17))[1])
    assert all(row == alone[layer][0] for layer in range(2) for row in together[layer])
    heads = {str(head) for layer in alone for head in layer[0]}
    other_seed = held_positions(drive(model, rival("random", 10, seed=1), random_ids(1, 64))[1])
    heads |= {str(head) for layer in other_seed for head in layer[0]}
    assert len(heads) == 8  # other in each layer, head and seed


def test_random_favours_no_part_of_the_text():
    """Half of 4096 positions: the mean of those kept is within five standard deviations of the middle."""
    memory = rival("random", 2048)
    positions = torch.arange(4096, dtype=torch.int32).expand(1, 2, -1)
    nothing = torch.zeros(1, 2, 4096, 0)
    for layer in range(2):
        keep = memory.decide(LayerView(layer, 4096, nothing, nothing, positions, nothing)).keep
        for head in range(2):
            mean = positions[0, head][keep[0, head]].double().mean()
            assert abs(mean - 2047.5) < 5 * 4096 / 12**0.5 / 2048**0.5
    assert (keep[0, 0] ^ keep[0, 1]).sum() > 1500  # independent heads disagree on half of the positions


@pytest.mark.parametrize("budget", [(), ((3, 3), (4,)), (5, 6)])
def test_a_budget_that_does_not_name_layers_and_heads_is_refused(budget):
    from workers.memory.specs import RivalSpec

    with pytest.raises(ValueError, match="budget"):
        HEURISTICS["recent"](RivalSpec(name="recent", budget=budget))


@pytest.mark.parametrize("budget", [[[3, 3]], [[3], [3]], [[3] * 4] * 2])
def test_a_budget_for_another_model_is_refused(budget):
    with pytest.raises(ValueError, match="budget"):
        drive(tiny_model(), rival("recent", budget), random_ids(1, 24))


def test_a_word_that_comes_twice_is_as_important_both_times_however_its_keys_were_rotated():
    size, positions = 64, torch.arange(2000, dtype=torch.int32)
    angles = positions[:, None] * 10_000.0 ** -(torch.arange(0, size, 2) / size)
    real, imaginary = torch.randn(2, size // 2, generator=torch.Generator().manual_seed(0))
    keys = torch.cat(
        [real * angles.cos() - imaginary * angles.sin(), real * angles.sin() + imaginary * angles.cos()], 1
    )
    norms = keys.square().sum(-1)
    assert len(norms.unique()) > 1  # what would decide between them is rounding
    view = LayerView(0, 2000, keys[None, None], keys[None, None], positions[None, None], keys.new_zeros(1, 1, 2000, 0))
    keep = rival("l2norm", [[20]]).decide(view).keep
    assert keep[0, 0].nonzero()[:, 0].tolist() == [*range(19), 1999]  # the first ones of what is alike

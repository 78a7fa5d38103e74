"""What is kept, against a slow implementation on plain lists, on importances full of ties and with slots empty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.memory.selection import ranks, select_top
from workers.memory.selection import select_wanted as select_wanted_at

IMPORTANCES = (-math.inf, -1.0, -1e-30, -0.0, 0.0, 0.5, 1.0, math.inf)
"""Few values, so that there are ties; zeros of both signs, which are wanted, and the smallest step below."""


@st.composite
def layers(draw: st.DrawFn, is_even: bool = False) -> tuple[Tensor, Tensor]:
    """Importance and occupied ``[B, H, K]``: slots aligned at the newest, at least one token in each head.

    With ``is_even`` the heads of a row hold equally many, as they do under such a memory.
    """
    rows, heads, slots = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    values = st.lists(st.sampled_from(IMPORTANCES), min_size=slots, max_size=slots)
    held = st.integers(1, slots)
    counts = [[draw(held)] * heads if is_even else [draw(held) for _ in range(heads)] for _ in range(rows)]
    importance = torch.tensor([[draw(values) for _ in range(heads)] for _ in range(rows)])
    return importance, torch.arange(slots) >= slots - torch.tensor(counts)[..., None]


def select_wanted(importance: Tensor, occupied: Tensor, *rules: Any) -> Tensor:
    """Where positions tell no more than which slots hold a token."""
    return select_wanted_at(importance, occupied.int() - 1, *rules)


def best_first(importance: list[float], occupied: list[bool]) -> list[int]:
    """Occupied slots of one head: the newest, then by importance, ties in cache order."""
    newest = len(importance) - 1
    older = [slot for slot in range(newest) if occupied[slot]]
    return [newest, *sorted(older, key=lambda slot: -importance[slot])]  # Python's sort is stable


def heads_of(*tensors: Tensor) -> list[tuple[list, ...]]:
    """The tensors ``[B, H, K]`` head by head, as lists."""
    return list(zip(*(tensor.flatten(0, 1).tolist() for tensor in tensors), strict=True))


def kept_slots(keep: list[bool]) -> set[int]:
    return {slot for slot, kept in enumerate(keep) if kept}


caps = st.none() | st.integers(1, 8)
thorough = settings(max_examples=100, deadline=None)


@thorough
@given(layers())
def test_ranks_are_the_newest_then_by_importance_then_in_cache_order_then_the_empty(layer):
    for importance, occupied, rank in heads_of(*layer, ranks(*layer)):
        best = best_first(importance, occupied)
        assert [rank[slot] for slot in best] == list(range(len(best)))
        assert sorted(rank) == list(range(len(rank)))


@thorough
@given(layers(), caps)
def test_a_ragged_head_keeps_what_it_wants_and_its_newest_up_to_the_cap(layer, cap):
    for importance, occupied, keep in heads_of(*layer, select_wanted(*layer, "ragged", cap)):
        best = best_first(importance, occupied)
        wanted = [slot for slot in best if importance[slot] >= 0 or slot == len(importance) - 1]
        assert kept_slots(keep) == set(wanted[:cap])


@thorough
@given(layers(is_even=True), caps)
def test_even_heads_all_keep_as_many_of_their_best_as_the_greediest_wants(layer, cap):
    keep = select_wanted(*layer, "even", cap)
    for row, wishes in enumerate(select_wanted(*layer, "ragged", cap).sum(-1)):
        greediest = int(wishes.max())
        assert cap is None or greediest <= cap
        for importance, occupied, kept in heads_of(*(tensor[row : row + 1] for tensor in (*layer, keep))):
            assert kept_slots(kept) == set(best_first(importance, occupied)[:greediest])
            assert sum(kept) == greediest


@thorough
@given(layers(), st.lists(st.integers(-1, 8), min_size=3, max_size=3))
def test_the_top_of_a_head_is_its_budget_of_the_best_and_at_least_the_newest(layer, budgets):
    budget = torch.tensor(budgets[: layer[0].shape[1]])
    keep = select_top(*layer, budget)
    repeated = budget.tolist() * len(keep)
    for (importance, occupied, kept), tokens in zip(heads_of(*layer, keep), repeated, strict=True):
        assert kept_slots(kept) == set(best_first(importance, occupied)[: max(1, tokens)])


@pytest.mark.parametrize("heads", ["even", "ragged"])
@thorough
@given(layers(), caps)
def test_the_newest_is_always_kept_and_an_empty_slot_never(heads, layer, cap):
    for keep in (select_wanted(*layer, heads, cap), select_top(*layer, torch.full(layer[0].shape[1:2], cap or 1))):
        assert keep[..., -1].all()
        assert not (keep & ~layer[1]).any()


@pytest.mark.parametrize("heads", ["even", "ragged"])
@thorough
@given(layers(), caps)
def test_a_row_decides_for_itself(heads, layer, cap):
    together = select_wanted(*layer, heads, cap)
    alone = [select_wanted(*(tensor[row : row + 1] for tensor in layer), heads, cap) for row in range(len(together))]
    assert torch.equal(torch.cat(alone), together)


def test_an_even_head_that_wanted_less_is_filled_up_with_its_best_rejected_tokens():
    importance = torch.tensor([[[1.0, -9.0, 2.0, 0.0, -5.0], [-3.0, -1.0, -2.0, -1.0, -5.0]]])
    keep = select_wanted(importance, torch.ones_like(importance, dtype=torch.bool), "even", None)
    assert keep[0].int().tolist() == [[1, 0, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_of_equal_importances_a_cap_keeps_the_oldest():
    importance = torch.zeros(1, 1, 6)
    keep = select_wanted(importance, importance == 0, "ragged", 3)
    assert keep[0, 0].int().tolist() == [1, 1, 0, 0, 0, 1]

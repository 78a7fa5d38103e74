"""Packed slots: attended to where they lie, not moved while tokens are decoded, joined from groups of rows."""

from __future__ import annotations

import pytest
import torch

from tests.workers.memory.test_watching import HELD, NEW, ragged_slots
from tests.workers.memory.tiny import random_ids, rival, tiny_model, tiny_namm, tiny_settings
from workers.memory import token_attention
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, at_rest, joined, packed
from workers.memory.slots import Slots
from workers.memory.tiled_attention import WholeRows, attend
from workers.memory.token_attention import attend_packed, can_attend_packed

AFTER = HELD + NEW
OPTIONS = {
    "plain": AttentionOptions(0.3),
    "softcap": AttentionOptions(0.3, softcap=2.0),
    "sinks": AttentionOptions(0.3, sinks=torch.linspace(-1, 2, 8)),
    "window": AttentionOptions(0.3, sliding_window=120),
}


def normal(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_decoded(held: Slots | PackedSlots, dtype: torch.dtype = torch.float32) -> Slots | PackedSlots:
    """Three tokens later."""
    rows = len(held.row_tokens)
    for token in range(3):
        held = held.append(
            normal(rows, 2, 1, 16, seed=token, dtype=dtype), normal(rows, 2, 1, 16, seed=9, dtype=dtype), AFTER + token
        )
    return held


def first_row(slots: Slots) -> Slots:
    """Of two heads that hold different numbers."""
    rows = (slots.keys[:1], slots.values[:1], slots.positions[:1], slots.trace[:1])
    return Slots(*rows, slots.empty[:2])


WAYS = [("lanes", options) for options in OPTIONS]
WAYS += [(way, options) for way in ("lanes-of-a-row", "together") for options in ("plain", "softcap", "sinks")]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("way", "options"), WAYS)
def test_a_token_attends_to_packed_slots_as_to_padded_ones(way, options, dtype, monkeypatch):
    slots, rows = ragged_slots(dtype), 2
    if way != "lanes":
        slots, rows = first_row(slots), 1
        monkeypatch.setattr(token_attention, "_attend_together" if way != "together" else "_attend_lanes", None)
        monkeypatch.setattr(token_attention, "TOGETHER_SCORES", 1 << 15 if way == "together" else 0)
    query = normal(rows, 8, 1, 16, dtype=dtype)
    padded, lying = with_decoded(slots, dtype), with_decoded(packed(slots), dtype)
    rows = WholeRows(padded, 1)
    expected = attend(query, padded, AFTER + 2, OPTIONS[options], rows)
    output, paid = attend_packed(query, lying, AFTER + 2, OPTIONS[options])
    bound = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(output, expected, rtol=bound, atol=bound)
    torch.testing.assert_close(paid, lying.apart(rows.attention), rtol=bound, atol=bound)


@torch.no_grad()
def test_a_head_is_not_disturbed_by_the_keys_of_another():
    """Whose products may be beyond half precision."""
    held = packed(first_row(ragged_slots(torch.float16)))
    key, query = normal(1, 2, 1, 16, dtype=torch.float16), normal(1, 8, 1, 16, dtype=torch.float16)
    key[:, 0], query[:, 4:] = 1_000.0, 100.0
    output, paid = attend_packed(query, held.append(key, key, AFTER), AFTER, AttentionOptions(0.3))
    assert output[:, 4:].isfinite().all()
    assert paid[:, held.lanes.counts[0] : held.lanes.total].isfinite().all()


def test_a_gradient_is_taken_through_several_decoded_tokens():
    """What it is taken of must not be written to by the tokens that follow."""
    gradients = []
    for budget in ([[3, 9], [4, 6]], [[9, 9], [9, 9]]):
        model, ids = tiny_model().requires_grad_(True), random_ids(1, 28)
        with memory_attached(model, rival("recent", budget, 8)) as cache:
            outputs = [
                model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([24, 1, 1, 1, 1], 1)
            ]
            assert isinstance(cache.layers[0].held, PackedSlots) == (budget[0][0] == 3)
        torch.cat(outputs, dim=1).square().mean().backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_packed_tokens_are_unpacked_for_a_gradient():
    held, query = with_decoded(packed(ragged_slots(torch.float32))), normal(2, 8, 1, 16).requires_grad_()
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            assert can_attend_packed(held, OPTIONS["plain"]) is not enabled
    attend_packed(query, held, AFTER + 2, OPTIONS["plain"])[0].sum().backward()
    assert query.grad is not None


@torch.no_grad()
def test_what_the_memory_is_yet_to_be_told_survives_packing_at_any_moment():
    slots = ragged_slots(torch.float32)
    first, second = (
        normal(2, 2, 1, slots.num_slots + new, seed=new).masked_fill_(
            torch.nn.functional.pad(slots.positions, (0, new))[:, :, None] < 0, 0.0
        )
        for new in (0, 1)
    )
    key = normal(2, 2, 1, 16)
    expected, apart = slots.with_recent(first).append(key, key, AFTER).with_recent(second), packed(slots).apart
    for held in (
        packed(slots).with_recent(apart(first)).append(key, key, AFTER).with_recent(apart(second)),
        packed(slots.with_recent(first)).append(key, key, AFTER).with_recent(apart(second)),
    ):
        again = held.at_work()
        assert held.num_recent == again.num_recent == 2
        assert torch.equal(again.recent_rows(), expected.recent_rows())
        assert torch.equal(again.full_trace(), expected.full_trace())
        assert torch.equal(again.positions, expected.positions)
        assert held.lengths.tolist() == expected.lengths.tolist()
        assert held.row_tokens.tolist() == expected.row_tokens.tolist()


@pytest.mark.parametrize(
    "memory",
    [tiny_namm(tiny_settings(heads="ragged", update_every=64)), rival("l2norm", [[1, 9], [4, 4]], 64)],
    ids=["namm", "l2norm"],
)
def test_decoding_moves_packed_tokens_only_where_room_is_used_up(memory):
    """Unpacking for every token would be as many places as tokens."""
    model, places = tiny_model(), set()
    with torch.inference_mode(), memory_attached(model, memory) as cache:
        model(random_ids(1, 64), past_key_values=cache, use_cache=True)
        assert isinstance(cache.layers[0].held, PackedSlots)
        for token in random_ids(1, 40)[0]:
            model(token[None, None], past_key_values=cache, use_cache=True)
            places.add(cache.layers[0].held.keys.data_ptr())
    assert len(places) == 2


@pytest.mark.parametrize("heads", ["even", "ragged"])
@pytest.mark.parametrize("tokens", [17, 16, 21])
@torch.no_grad()
def test_rows_that_were_read_apart_go_on_together(heads, tokens):
    model, ids = tiny_model(), random_ids(1, tokens)
    memory, more = tiny_namm(tiny_settings(heads=heads), count=3), random_ids(3, 12, seed=3)
    parts = []
    for genome in range(3):
        part = MemoryCache(memory.part(slice(genome, genome + 1)), len(model.model.layers))
        with memory_attached(model, memory) as whole:
            model(ids, past_key_values=part, use_cache=True)
            if genome < 2:
                parts.append(part)
                continue
            whole.join(memory, [*parts, part])
            together = [model(token, past_key_values=whole, use_cache=True).logits for token in more.split(1, dim=1)]
    assert not part.layers[0].cohorts
    with memory_attached(model, memory) as cache:
        model(ids.expand(3, -1), past_key_values=cache, use_cache=True)
        expected = [model(token, past_key_values=cache, use_cache=True).logits for token in more.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(together, dim=1), torch.cat(expected, dim=1), rtol=1e-5, atol=1e-5)
    assert whole.held_tokens().tolist() == cache.held_tokens().tolist()
    for field in ("now", "peak", "area"):
        assert getattr(whole.meter, field).tolist() == getattr(cache.meter, field).tolist()


def test_joined_even_rows_stay_even():
    def even(tokens: int) -> Slots:
        slots = Slots.nothing(normal(1, 2, 0, 4), normal(1, 2, 0, 4), 3)
        slots = slots.append(normal(1, 2, tokens, 4), normal(1, 2, tokens, 4), 0)
        return slots.with_trace(slots.full_trace())

    assert isinstance(joined([even(5), even(5)]), Slots)
    both = joined([even(5), even(7)])
    assert isinstance(both, PackedSlots)
    assert both.lengths.tolist() == [[5, 5], [7, 7]]
    assert at_rest(both) is both

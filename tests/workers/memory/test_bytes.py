"""Reported memory is measured memory: what the tensors' storages hold, and the account of it over time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory.test_chunking import MEMORIES
from tests.workers.memory.tiny import (
    HEAD_SIZE,
    NUM_KV_HEADS,
    NUM_LAYERS,
    drive,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_settings,
)
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.memory import KeepAll
from workers.memory.packed import PackedSlots, at_rest
from workers.memory.slots import LEAST_ROOM, Slots

TOKEN_BYTES = 2 * HEAD_SIZE * 4
"""Keys and values of one token in one KV head, float32."""


def tensors_within(thing: Any) -> Iterator[Tensor]:
    """Every tensor that the cache keeps alive, wherever it hides; the memory is not its own."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from tensors_within(item)
    elif isinstance(thing, dict):
        yield from tensors_within([*thing, *thing.values()])
    elif hasattr(thing, "__dict__"):
        for name, value in vars(thing).items():
            if name not in ("cache", "memory", "listener"):
                yield from tensors_within(value)


def storage_bytes(cache: MemoryCache) -> int:
    """Bytes of all storages behind those tensors, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_within(cache)}
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [*MEMORIES, "full"])
@pytest.mark.parametrize("cuts", [(), (5, 6, 31), (13,)], ids=str)
def test_bytes_reported_are_bytes_of_the_storages_and_of_the_tokens_held(memory, cuts, dtype):
    """A view of a larger tensor, or a padded batch, would hold more than it says."""
    make = MEMORIES.get(memory, lambda: rival("full", ()))
    _, cache = drive(tiny_model().to(dtype), make(), random_ids(3, 43), cuts)
    assert storage_bytes(cache) == cache.cache_bytes + cache.state_bytes
    by_row = cache.held_tokens().sum((1, 2)) * TOKEN_BYTES * dtype.itemsize // 4
    assert cache.cache_bytes - cache.spare_bytes == by_row.sum()
    assert cache.meter.now.tolist() == by_row.tolist()
    by_token = int(cache.row_state_bytes().sum())
    # Beside the tokens' own there are room and lists of lanes; the newest have no trace of their own yet.
    lists = sum(layer.held.lanes.nbytes for layer in cache.layers if isinstance(layer.held, PackedSlots))
    assert by_token >= cache.state_bytes - cache.spare_bytes - lists
    assert by_token <= 1.6 * cache.state_bytes


def test_bytes_of_a_row_that_is_decoded_for_long():
    """Its heads attend together; turns of several tokens pack it anew, and nothing of former packings stays."""
    model, ids = tiny_model(), random_ids(1, 120)
    with torch.no_grad(), memory_attached(model, rival("l2norm", [[1, 9], [4, 6]], 1_000)) as cache:
        turns = [*[16] * 2, *[1] * 40, *[3, 1] * 12]
        cache.memory.update_every = 16
        for turn, tokens in enumerate(ids.split(turns, dim=1)):
            model(tokens, past_key_values=cache, use_cache=True)
            if turn == 1:
                cache.memory.update_every = 1_000
            assert storage_bytes(cache) == cache.cache_bytes + cache.state_bytes
        for layer in cache.layers:
            assert isinstance(layer.held, PackedSlots)
            lanes, tokens = layer.held.lanes, layer.held.keys.shape[0]
            assert 2 * tokens <= lanes.nbytes - 4 * (2 + 1) <= 2 * (tokens + 2 * LEAST_ROOM)


def test_heads_and_rows_of_different_length_are_packed():
    _, cache = drive(tiny_model(), rival("l2norm", [[1, 9], [4, 4]]), random_ids(2, 40))
    ragged, even = (layer.held for layer in cache.layers)
    assert isinstance(ragged, PackedSlots)
    assert ragged.keys.shape == (2 * (1 + 9), HEAD_SIZE)
    assert isinstance(even, Slots)
    assert even.keys.shape == (2, 2, 4, HEAD_SIZE)
    _, cache = drive(tiny_model(), tiny_namm(tiny_settings(heads="even"), count=2), random_ids(2, 43))
    assert all(isinstance(layer.held, PackedSlots) for layer in cache.layers)  # even by row, but rows differ


def area_token_by_token(memory, ids: Tensor) -> list[int]:
    """By row, the sum over the tokens read of the bytes held after each."""
    model, area = tiny_model(), torch.zeros(len(ids), dtype=torch.int64)
    with torch.no_grad(), memory_attached(model, memory) as cache:
        for token in ids.split(1, dim=1):
            model(token, past_key_values=cache, use_cache=True)
            area += cache.held_tokens().sum((1, 2)) * TOKEN_BYTES
    return area.tolist()


@pytest.mark.parametrize("memory", ["namm-even", "namm-ragged", "recent-ragged", "snapkv-even"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 42), unique=True, max_size=6).map(sorted), seed=st.integers(0, 99))
def test_the_area_equals_a_token_by_token_sum_however_the_text_is_cut(memory, cuts, seed):
    ids = random_ids(2, 43, seed)
    _, cache = drive(tiny_model(), MEMORIES[memory](), ids, cuts)
    assert cache.meter.area.tolist() == area_token_by_token(MEMORIES[memory](), ids)
    assert all(cache.meter.peak >= cache.meter.now)
    assert all(cache.meter.area / 43 <= cache.meter.peak)


@pytest.mark.parametrize("cuts", [[], [8, 16, 24, 32, 40], [13, 30], list(range(1, 43))], ids=len)
@pytest.mark.parametrize("memory", ["namm-even", "namm-ragged", "recent-ragged"])
def test_the_peak_equals_the_largest_sum_over_the_layers_at_any_moment(memory, cuts):
    ids, edges = random_ids(2, 43), [0, *cuts, 43]
    log: list[tuple[int, int, Tensor, Tensor]] = []

    def listener(view, decision):
        log.append((view.layer, view.seen_tokens, view.occupied.sum((1, 2)), decision.keep.sum((1, 2))))

    _, cache = drive(tiny_model(), MEMORIES[memory](), ids, cuts, listener)
    held, peak = [torch.zeros(2, dtype=torch.int64)] * NUM_LAYERS, torch.zeros(2, dtype=torch.int64)
    for start, stop in pairwise(edges):
        for layer in range(NUM_LAYERS):
            seen = start
            for _, at, before, after in [e for e in log if e[0] == layer and start < e[1] <= stop]:
                held[layer] = before
                peak = torch.maximum(peak, sum(held) * TOKEN_BYTES)
                held[layer], seen = after, at
            held[layer] = held[layer] + NUM_KV_HEADS * (stop - seen)
            peak = torch.maximum(peak, sum(held) * TOKEN_BYTES)
    assert cache.meter.peak.tolist() == peak.tolist()
    assert cache.meter.now.tolist() == (sum(held) * TOKEN_BYTES).tolist()


@pytest.mark.parametrize("shared", [1, 5, 8])
def test_a_branched_cache_accounts_like_one_that_never_was(shared):
    """The start that no genome can have changed is read once; 8 is just where the first update is due."""
    model, ids, memory = tiny_model(), random_ids(2, 43), tiny_namm(tiny_settings(heads="ragged"), count=3)
    with torch.no_grad(), memory_attached(model, KeepAll(memory)) as cache:
        model(ids[:, :shared], past_key_values=cache, use_cache=True)
        assert cache.meter.now.tolist() == [shared * NUM_LAYERS * NUM_KV_HEADS * TOKEN_BYTES] * 2
        cache = cache.branch(memory, 3)
        assert storage_bytes(cache) == cache.cache_bytes + cache.state_bytes
        logits = model(ids[:, shared:].repeat(3, 1), past_key_values=cache, use_cache=True).logits
    plain_logits, plain = drive(model, memory, ids.repeat(3, 1), cuts=(shared,))
    torch.testing.assert_close(logits, plain_logits[:, shared:], rtol=1e-5, atol=1e-5)
    for field in ("now", "peak", "area", "highest"):
        ours, theirs = getattr(cache.meter, field), getattr(plain.meter, field)
        assert torch.as_tensor(ours).tolist() == torch.as_tensor(theirs).tolist()
    assert cache.held_tokens().tolist() == plain.held_tokens().tolist()


def test_nothing_large_is_kept_alive_by_a_finished_call():
    """The staged keys must be let go, or a whole prompt's keys would live on uncounted."""
    from workers.memory import cache as module

    model, memory = tiny_model(), rival("recent", 3)
    with torch.no_grad(), memory_attached(model, memory) as cache:
        model(random_ids(2, 40), past_key_values=cache, use_cache=True)
        assert module._staged.keys is None
        assert module._staged.layer is None


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=2), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_packing_and_unpacking_give_the_same_slots(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), 9
    full = Slots.nothing(torch.zeros(rows, 2, 1, 4), torch.zeros(rows, 2, 1, 4), 3)
    full = full.append(*(torch.randn(rows, 2, longest, 4, generator=generator) for _ in range(2)), first_position=5)
    full = full.with_trace(torch.randn(rows, 2, longest, 3, generator=generator))
    keep = torch.zeros(rows, 2, longest, dtype=torch.bool)
    for row, heads in enumerate(lengths):
        for head, length in enumerate(heads):
            keep[row, head, torch.randperm(longest, generator=generator)[:length]] = True
    chosen = full.select(keep)
    again = at_rest(chosen).at_work()
    assert chosen.lengths.tolist() == again.lengths.tolist() == lengths
    assert torch.equal(chosen.positions, again.positions)
    assert torch.equal(chosen.trace, again.trace)  # zero where empty, so that neighbours read nothing there
    assert chosen.is_even == again.is_even == (len({n for row in lengths for n in row}) == 1)
    twice = at_rest(chosen).repeat(2)
    for slots, copies in ((chosen, 1), (again, 1), (twice.at_work(), 2)):
        held = slots.positions >= 0
        for name in ("keys", "values", "positions", "trace"):
            expected = torch.cat([getattr(full, name)[keep]] * copies)
            assert torch.equal(getattr(slots, name)[held], expected)

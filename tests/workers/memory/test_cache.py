"""The cache that forgets, as transformers and a user see it: positions, lengths, and what is refused."""

from __future__ import annotations

import copy
import gc
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from tests.workers.memory.test_pretrained import example_memory
from tests.workers.memory.tiny import (
    ROUNDING,
    drive,
    held_positions,
    largest_difference,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_settings,
)
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.errors import UnsupportedUseError
from workers.memory.hooks import hooked_cache
from workers.memory.memory import Decision, KeepAll, Memory


def test_get_seq_length_is_the_number_of_tokens_seen_not_held():
    _, cache = drive(tiny_model(), rival("recent", 5), random_ids(1, 80), cuts=(3, 40))
    assert [cache.get_seq_length(layer) for layer in range(2)] == [80, 80]
    assert cache.held_tokens().tolist() == [[[5, 5], [5, 5]]]


def test_before_the_first_token_nothing_is_held():
    with memory_attached(tiny_model(), rival("recent", 5)) as cache:
        assert (cache.held_tokens().shape, cache.held_tokens().dtype) == ((0, 2, 0), torch.int32)
        assert cache.seen_tokens().shape == (0,)


@pytest.mark.parametrize("model", [None, "small-llama", torch.nn.Linear(1, 1)], ids=["None", "a-name", "a-module"])
def test_what_is_no_model_is_named(model):
    memory = example_memory()
    told = f"no memory can be attached to a {type(model).__name__}: give a model of transformers"
    with pytest.raises(UnsupportedUseError, match=told):
        memory.cache(model)
    with pytest.raises(UnsupportedUseError, match=told):
        memory.generate(model, random_ids(1, 5))


def test_keys_and_values_of_the_first_layer_are_the_plain_models_at_the_positions_held():
    """The first layer reads embeddings, which no eviction changes: ten evictions must leave its keys as they were."""
    model, ids = tiny_model(), random_ids(2, 83)
    plain = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=plain)
    _, cache = drive(model, tiny_namm(tiny_settings(heads="ragged")), ids, cuts=range(0, 83, 7)[1:])
    slots = cache.layers[0].held.at_work()
    for row, heads in enumerate(held_positions(cache)[0]):
        for head, positions in enumerate(heads):
            assert positions == sorted(set(positions))
            assert positions[-1] == 82
            for name in ("keys", "values"):
                ours = getattr(slots, name)[row, head, -len(positions) :]
                theirs = getattr(plain.layers[0], name)[row, head, positions]
                assert largest_difference(ours, theirs) < ROUNDING


class Watcher(Memory):
    """Evicts like another memory and remembers every attention row that it was shown."""

    reads_attention = True

    def __init__(self, other: Memory) -> None:
        self.other, self.update_every, self.rows = other, other.update_every, []

    def empty_trace_channels(self) -> int:
        return self.other.empty_trace_channels()

    def observe(self, trace, attention):
        assert attention.shape[0::3] == trace.shape[0:3:2]  # a weight for each slot
        rows, held = attention.shape[2:]  # told together, each sees what was there when it was paid
        self.rows += [attention[:, :, row : row + 1, : held - rows + 1 + row] for row in range(rows)]
        return self.other.observe(trace, attention)

    def decide(self, view) -> Decision:
        return self.other.decide(view)


@pytest.mark.parametrize("heads", ["even", "ragged"])
def test_attention_sums_to_one_and_stays_sharp_after_ten_evictions(heads):
    """Fixed masks over a cache that shrank have made attention silently uniform in published systems."""
    model, ids = tiny_model(), random_ids(2, 96)
    watcher, plain = Watcher(tiny_namm(tiny_settings(heads=heads))), Watcher(KeepAll(tiny_namm(tiny_settings())))
    _, cache = drive(model, watcher, ids, cuts=range(1, 96))
    drive(model, plain, ids, cuts=range(1, 96))
    assert cache.held_tokens().max() < 60
    for weights in watcher.rows:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 1))
    late = watcher.rows[-2 * 10 :]
    entropy = [-(w * w.clamp(min=1e-12).log()).sum(-1) / max(1.0, torch.tensor(w.shape[-1]).log()) for w in late]
    assert torch.cat(entropy).mean() < 0.8  # 1 is uniform
    # The newest token's own weight does not drown: a misaligned mask would spread it.
    own = [torch.stack([w[..., -1].mean() for w in memory.rows]).mean() for memory in (watcher, plain)]
    assert own[0] > own[1]


def test_a_hand_made_attention_mask_is_refused():
    model, ids = tiny_model(), random_ids(1, 12)
    mask = torch.zeros(1, 1, 12, 12)
    with memory_attached(model, rival("recent", 5)) as cache, pytest.raises(UnsupportedUseError, match="4-D"):
        model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)


def test_beam_search_is_refused():
    model, ids = tiny_model(), random_ids(1, 12)
    with memory_attached(model, rival("recent", 5)) as cache, pytest.raises(UnsupportedUseError, match="num_beams=1"):
        model.generate(ids, past_key_values=cache, num_beams=2, max_new_tokens=4)


def test_cropping_is_refused():
    _, cache = drive(tiny_model(), rival("recent", 5), random_ids(1, 12))
    with pytest.raises(UnsupportedUseError, match="cropped"):
        cache.crop(-1)
    with pytest.raises(UnsupportedUseError, match="cropped"):
        cache.layers[0].crop(-1)


def test_a_call_without_the_cache_is_refused_inside_the_with_block():
    model, ids = tiny_model(), random_ids(1, 12)
    with memory_attached(model, rival("recent", 5)):
        for arguments in ({}, {"use_cache": False}, {"past_key_values": DynamicCache()}):
            with pytest.raises(UnsupportedUseError, match="past_key_values=cache"):
                model(ids, **arguments)
        with pytest.raises(UnsupportedUseError, match="past_key_values=cache"):
            model.generate(ids, max_new_tokens=2)


def test_the_cache_is_refused_outside_the_with_block():
    """The model's own attention would read the new tokens alone and answer nonsense without a word."""
    model, ids = tiny_model(), random_ids(1, 12)
    with memory_attached(model, rival("recent", 5)) as cache:
        before = model(ids, past_key_values=cache, use_cache=True).logits
    with pytest.raises(UnsupportedUseError, match="inside the `with"):
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    assert torch.equal(drive(model, rival("recent", 5), ids)[0], before)


def test_a_cache_passed_to_another_model_than_the_attached_one_is_refused():
    model, other, ids = tiny_model(), tiny_model(seed=1), random_ids(1, 12)
    with (
        memory_attached(model, rival("recent", 5)) as cache,
        pytest.raises(UnsupportedUseError, match="inside the `with"),
    ):
        other(ids, past_key_values=cache, use_cache=True)
    assert other(ids).logits.isfinite().all()


def test_reset_starts_over_with_any_number_of_rows():
    model, memory = tiny_model(), rival("recent", 5)
    fresh, expected = drive(model, memory, random_ids(3, 30))
    with memory_attached(model, memory) as cache:
        model(random_ids(2, 20), past_key_values=cache, use_cache=True)
        cache.reset()
        assert (cache.get_seq_length(), cache.cache_bytes) == (0, 0)
        again = model(random_ids(3, 30), past_key_values=cache, use_cache=True).logits
    assert largest_difference(again.detach(), fresh) < 1e-6
    assert cache.meter.area.tolist() == expected.meter.area.tolist()
    assert cache.meter.peak.tolist() == expected.meter.peak.tolist()


def test_an_empty_cache_has_no_bytes_and_no_tokens():
    cache = MemoryCache(KeepAll(), 2)
    assert (cache.cache_bytes, cache.state_bytes, cache.get_seq_length()) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_everything_like_the_plain_model(dtype):
    model, ids = tiny_model().to(dtype), random_ids(2, 40)
    with torch.no_grad():
        plain = model(ids).logits
    settings = tiny_settings(heads="ragged")
    memory = tiny_namm(settings).with_genome(torch.zeros(1, settings.genome_size))
    logits, cache = drive(model, memory, ids, cuts=(9, 10, 30))
    assert largest_difference(logits.float(), plain.float()) < 0.1
    assert cache.layers[0].held.keys.dtype == dtype
    assert cache.layers[0].held.trace.dtype == torch.float32
    evicting, _ = drive(model, tiny_namm(settings), ids)
    assert evicting.isfinite().all()


# --- copies -----------------------------------------------------------------------------------------------------------


@contextmanager
def attached_or_hooked(model, memory, way):
    if way == "attached":
        with memory_attached(model, memory) as cache:
            yield cache
    else:
        yield hooked_cache(model, memory)


def fed(model, cache, ids, cuts, mask=None):
    """Logits of the pieces of a text."""
    said = [
        model(ids[:, start:stop], attention_mask=None if mask is None else mask[:, :stop], past_key_values=cache)
        for start, stop in pairwise(cuts)
    ]
    return torch.cat([one.logits for one in said], dim=1)


def accounts(cache):
    tensors = (cache.held_tokens(), cache.seen_tokens(), cache.meter.now, cache.meter.peak, cache.meter.area)
    return [cache.meter.highest, *(tensor.tolist() for tensor in tensors)]


@torch.no_grad()
@pytest.mark.parametrize("is_padded", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("prompt", [21, 24], ids=["between-updates", "after-update"])
@pytest.mark.parametrize("heads", ["even", "ragged"])
@pytest.mark.parametrize("way", ["attached", "hooked"])
def test_a_copy_goes_on_by_itself_from_what_both_have_read(way, heads, prompt, is_padded):
    """transformers' own way to use a prefix twice; a copy's layers used to belong to the cache that it was made of."""
    model, memory = tiny_model(), tiny_namm(tiny_settings(heads=heads))
    mask = None
    if is_padded:
        mask = torch.ones(2, 50, dtype=torch.long)
        mask[1, :5] = 0
    prefix, first = random_ids(2, prompt + 1), [0, prompt, prompt + 1]  # a single token has made room for more
    texts = [torch.cat([prefix, random_ids(2, 20, seed)], 1) for seed in (1, 2)]
    rest = list(range(prompt + 1, prompt + 22))
    expected = []
    for ids in texts:
        with attached_or_hooked(model, memory, way) as cache:
            fed(model, cache, ids, first, mask)
            expected.append((fed(model, cache, ids, rest, mask), accounts(cache)))
    with attached_or_hooked(model, memory, way) as cache:
        fed(model, cache, prefix, first, mask)
        both = (cache, copy.deepcopy(cache))
        assert accounts(both[1]) == accounts(cache)
        ours = [[], []]
        for cut in pairwise(rest):  # by turns
            for logits, one, ids in zip(ours, both, texts, strict=True):
                logits.append(fed(model, one, ids, cut, mask))
        for logits, one, (theirs, account) in zip(ours, both, expected, strict=True):
            assert torch.equal(torch.cat(logits, 1), theirs)
            assert accounts(one) == account


def test_a_copy_is_as_open_as_its_original():
    model, ids = tiny_model(), random_ids(1, 9)
    with memory_attached(model, KeepAll()) as cache:
        copied = copy.deepcopy(cache)
    with pytest.raises(UnsupportedUseError, match="no memory is attached"):
        model(ids, past_key_values=copied)
    assert not copied.layers[0].is_initialized


def test_a_copy_without_the_model_is_refused():
    model = tiny_model()
    cache = hooked_cache(model, KeepAll())
    del model
    gc.collect()
    with pytest.raises(UnsupportedUseError, match="keep the model"):
        copy.deepcopy(cache)

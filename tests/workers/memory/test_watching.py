"""Attention swept in tiles: the same for tiles of any size and in half precision; decoding copies no cache."""

from __future__ import annotations

import pytest
import torch

from tests.workers.memory.tiny import random_ids, tiny_model, tiny_namm, tiny_settings
from workers.memory import tiled_attention, watching
from workers.memory.attention import memory_attached
from workers.memory.features import SpectralSums
from workers.memory.options import AttentionOptions
from workers.memory.packed import packed
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings
from workers.memory.token_attention import attend_packed, attend_token

SETTINGS = NammSettings(update_every=64)
HELD, NEW = 70, 96


def ragged_slots(dtype: torch.dtype) -> Slots:
    """Two rows of two heads that hold different numbers, and the tokens of a block behind them."""
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int) -> torch.Tensor:
        return torch.randn(2, 2, tokens, 16, generator=generator).to(dtype)

    slots = Slots.nothing(normal(0), normal(0), SETTINGS.num_bins + SETTINGS.hop)
    slots = slots.append(normal(HELD), normal(HELD), 0)
    slots = slots.with_trace(torch.rand(2, 2, HELD, SETTINGS.num_bins + SETTINGS.hop, generator=generator))
    keep = torch.rand(2, 2, HELD, generator=generator) < torch.tensor([[0.2, 0.9], [0.5, 0.6]])[..., None]
    keep[..., -1] = True
    slots = slots.select(keep).append(normal(NEW), normal(NEW), HELD)
    return slots.with_trace(slots.full_trace())


def swept(dtype: torch.dtype, window: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and trace of a block."""
    slots = ragged_slots(dtype)
    query = torch.randn(2, 8, NEW, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    sums = SpectralSums(slots.trace, NEW, SETTINGS)
    output = tiled_attention.attend(query, slots, HELD, AttentionOptions(0.3, sliding_window=window), sums)
    return output.float(), sums.trace.masked_fill((slots.positions < 0)[..., None], 0)


@pytest.mark.parametrize("window", [None, 50], ids=["full", "window"])
@pytest.mark.parametrize("queries", [16, 32, 64])
def test_tiles_of_any_size_give_the_same(queries, window, monkeypatch):
    at_once = swept(torch.float32, window)
    monkeypatch.setattr(tiled_attention, "TILE_SCORES", {"cpu": 1})
    monkeypatch.setattr(tiled_attention, "SMALLEST_TILE", queries)
    for ours, theirs in zip(swept(torch.float32, window), at_once, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_as_its_rounding(dtype):
    for ours, exact in zip(swept(dtype), swept(torch.float32), strict=True):
        assert float((ours - exact).norm() / exact.norm()) < (1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("way", ["tiles", "token", "packed", "lanes"])
def test_products_beyond_float16_are_no_matter_when_their_scores_are_within_it(way):
    """Queries and keys with large biases, as of Qwen 2: products before scaling were infinite, and outputs NaN."""
    torch.manual_seed(0)
    rows, num_queries = 1 + (way == "lanes"), 5 if way == "tiles" else 1
    shapes = ((rows, 4, num_queries, 128), (rows, 2, 20, 128), (rows, 2, 20, 128))
    query, keys, values = (torch.randn(shape) for shape in shapes)
    query, keys = (40 * (1 + 0.5 * noise) for noise in (query, keys))
    assert float((query[:, ::2] @ keys.mT).min()) > torch.finfo(torch.float16).max
    outputs = []
    for dtype in (torch.float16, torch.float32):
        slots = Slots.nothing(*(tensor[:, :, :0].to(dtype) for tensor in (keys, values)), 0)
        slots = slots.append(*(tensor.half().to(dtype) for tensor in (keys, values)), 0)
        asked, options = query.half().to(dtype), AttentionOptions(2**-12)
        with torch.no_grad():
            if way == "tiles":
                outputs.append(tiled_attention.attend(asked, slots, 15, options, None))
            elif way == "token":
                outputs.append(attend_token(asked, slots.keys, slots.values, options)[0])
            else:
                outputs.append(attend_packed(asked, packed(slots), 19, options)[0])
    ours, exact = (output.float() for output in outputs)
    assert float((ours - exact).norm() / exact.norm()) < 2e-2


def test_decoding_writes_behind_the_cache_and_moves_it_once_in_a_while():
    """A copy of the cache for every token would be as many places as tokens."""
    model, memory, places = tiny_model(), tiny_namm(tiny_settings(update_every=64)), set()
    with torch.inference_mode(), memory_attached(model, memory) as cache:
        model(random_ids(1, 8), past_key_values=cache, use_cache=True)
        for token in random_ids(1, 40)[0]:
            model(token[None, None], past_key_values=cache, use_cache=True)
            places.add(cache.layers[0].held.keys.data_ptr())
    assert len(places) <= 2


def test_a_memory_is_told_of_single_tokens_in_one_go_and_before_it_decides():
    model, memory = tiny_model(), tiny_namm(tiny_settings())
    with torch.inference_mode(), memory_attached(model, memory) as cache:
        for number, token in enumerate(random_ids(1, 40)[0], start=1):
            model(token[None, None], past_key_values=cache, use_cache=True)
            slots = cache.layers[0].held.at_work()
            assert slots.num_recent < watching.RIPE_ROWS
            if number % memory.update_every == 0:
                assert slots.num_recent == 0

"""Left-padded batches: a row's result is the one it has alone, whatever the memory and however the prompt is cut."""

from __future__ import annotations

import pytest
import torch

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
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import KeepAll

LENGTHS = (13, 40, 27, 40, 3, 1)
WIDTH = max(LENGTHS)
TEXTS = [random_ids(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]
IDS = torch.stack([torch.cat([torch.zeros(WIDTH - len(text), dtype=torch.long), text]) for text in TEXTS])
MASK = (IDS != 0).long()

MEMORIES = {
    "full": KeepAll,
    "namm-even": lambda: tiny_namm(tiny_settings(heads="even")),
    "namm-ragged": lambda: tiny_namm(tiny_settings(heads="ragged")),
    "recent": lambda: rival("recent", 9),
    "h2o": lambda: rival("h2o", [[3, 21], [9, 5]]),
    "random": lambda: rival("random", [[3, 21], [9, 5]]),
    "snapkv": lambda: rival("snapkv", 18),
}


@torch.no_grad()
def read(model, cache, cuts) -> torch.Tensor:
    """Logits of all columns of the batch, read in the pieces between ``cuts``."""
    logits = []
    for start, stop in zip((0, *cuts), (*cuts, WIDTH), strict=True):
        positions = (MASK.cumsum(1) - 1).clamp(min=0)[:, start:stop]
        call = {"attention_mask": MASK[:, :stop], "position_ids": positions}
        logits.append(model(IDS[:, start:stop], past_key_values=cache, use_cache=True, **call).logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("cuts", [(), (7, 14, 21), range(1, WIDTH)], ids=["at-once", "chunks", "token-by-token"])
def test_every_row_is_what_it_is_alone(name, memory, cuts):
    model = tiny_model(name)
    with memory_attached(model, MEMORIES[memory]()) as cache:
        together = read(model, cache, cuts)
    assert cache.seen_tokens().tolist() == list(LENGTHS)
    assert cache.get_seq_length() == WIDTH
    for row, text in enumerate(TEXTS):
        logits, alone = drive(model, MEMORIES[memory](), text[None])
        assert largest_difference(together[row, WIDTH - len(text) :], logits[0]) < ROUNDING
        assert cache.held_tokens()[row].tolist() == alone.held_tokens()[0].tolist()
        for field in ("now", "area") if cuts else ("now", "area", "peak"):  # a peak depends on how the text was cut
            assert getattr(cache.meter, field)[row] == getattr(alone.meter, field)[0]
        place = LENGTHS[: row + 1].count(len(text)) - 1  # within the rows of as much padding
        for ours, theirs in zip(cache.layers, held_positions(alone), strict=True):
            positions = ours.cohorts[WIDTH - len(text)].at_work().positions[place]
            assert [[p for p in head if p >= 0] for head in positions.tolist()] == theirs[0]
    assert cache.cache_bytes - cache.spare_bytes == int(cache.meter.now.sum()) <= cache.peak_bytes


def test_padding_matters_so_that_the_comparison_above_can_fail():
    model = tiny_model()
    with memory_attached(model, KeepAll()) as cache, torch.no_grad():
        unmasked = model(IDS, past_key_values=cache, use_cache=True).logits
    alone, _ = drive(model, KeepAll(), TEXTS[0][None])
    assert largest_difference(unmasked[0, -len(TEXTS[0]) :], alone[0]) > 0.1


def test_padding_is_remembered_when_later_calls_bring_no_mask():
    model, new = tiny_model(), random_ids(len(LENGTHS), 1)
    logits = []
    for mask in (None, torch.cat([MASK, torch.ones_like(new)], dim=1)):
        with memory_attached(model, rival("recent", 9)) as cache, torch.no_grad():
            read(model, cache, ())
            logits.append(model(new, attention_mask=mask, past_key_values=cache, use_cache=True).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    "mask",
    [[[1, 1, 1, 1, 0, 0]], [[1, 1, 0, 1, 1, 1]], [[0, 1, 0, 1, 1, 1]]],
    ids=["right", "hole", "left-and-hole"],
)
def test_other_padding_is_refused_with_the_remedy(mask):
    model = tiny_model()
    with (
        memory_attached(model, rival("recent", 5)) as cache,
        pytest.raises(UnsupportedUseError, match="padding_side = 'left'"),
    ):
        model(random_ids(1, 6), attention_mask=torch.tensor(mask), past_key_values=cache, use_cache=True)


def test_padding_a_second_turn_anew_is_refused():
    model = tiny_model()
    with memory_attached(model, rival("recent", 5)) as cache:
        read(model, cache, ())
        mask = torch.cat([MASK, torch.ones(len(LENGTHS), 3, dtype=torch.long)], dim=1)
        mask[0] = 1
        mask[1, :2] = 0
        with pytest.raises(UnsupportedUseError, match="without padding it anew"):
            model(random_ids(len(LENGTHS), 3), attention_mask=mask, past_key_values=cache, use_cache=True)


def test_a_mask_of_the_new_tokens_alone_is_refused():
    model, ids = tiny_model(), random_ids(1, 6)
    with memory_attached(model, rival("recent", 5)) as cache:
        model(ids, past_key_values=cache, use_cache=True)
        with pytest.raises(UnsupportedUseError, match="covers 6 tokens, but the cache has read 6"):
            model(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)


def test_a_block_of_genomes_takes_no_padded_batch():
    model = tiny_model()
    memory = tiny_namm(tiny_settings(), count=2)
    with memory_attached(model, memory) as cache, pytest.raises(UnsupportedUseError, match="block of genomes"):
        read(model, cache, ())

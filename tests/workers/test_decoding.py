"""Teacher-forced answers and greedy decoding against plain transformers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory.tiny import (
    drive,
    held_positions,
    largest_difference,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_normalisation,
    tiny_settings,
)
from workers import decoding
from workers.decoding import Footprint, decode_greedily, score_answers
from workers.memory.attention import memory_attached
from workers.memory.memory import KeepAll
from workers.memory.namm import Namm

LENGTH = 45
SPANS = [(30, 31), (33, 37), (37, 38), (43, 45)]
"""Answers of one and of several tokens, one right after another, the last at the very end."""


def zero_genomes(count: int) -> Namm:
    """Keeps everything, through the whole machinery."""
    shape = tiny_settings(heads="ragged")
    return Namm(shape, torch.zeros(count, shape.genome_size), tiny_normalisation(shape))


@torch.no_grad()
def plain_answers(model, ids: Tensor, spans) -> tuple[Tensor, Tensor]:
    """Probability and "is just what greedy decoding gives" of each answer, from one forward of the plain model."""
    logits = model(ids, use_cache=False).logits.double()
    probability = torch.ones(len(ids), len(spans), dtype=torch.float64)
    is_greedy = torch.ones(len(ids), len(spans), dtype=torch.bool)
    for answer, (start, stop) in enumerate(spans):
        for place in range(start, stop):
            distribution = logits[:, place - 1].softmax(-1)
            probability[:, answer] *= distribution.gather(-1, ids[:, place, None])[:, 0]
            is_greedy[:, answer] &= distribution.argmax(-1) == ids[:, place]
    return probability, is_greedy


def greedy_text(model, ids: Tensor, new: int) -> Tensor:
    return model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("prefill_tokens", [7, 16, 2048])
@pytest.mark.parametrize("copies", [1, 3])
def test_under_a_memory_that_keeps_all_answers_fare_as_in_the_plain_model(prefill_tokens, copies, monkeypatch):
    """Chunks without an answer in them and answers cut by a chunk's edge included."""
    monkeypatch.setattr("workers.decoding.PREFILL_TOKENS", {"cpu": prefill_tokens})
    model, ids = tiny_model(), random_ids(2, LENGTH)
    ids[0, 33:38] = greedy_text(model, ids[:1, :33], 5)[0, 33:]  # two answers that are greedy
    ids[1, 33] = greedy_text(model, ids[1:, :33], 1)[0, 33]  # and one that only begins so
    probability, is_greedy = plain_answers(model, ids, SPANS)
    assert is_greedy.tolist() == [[False, True, True, False], [False] * 4]
    answers, cache = score_answers(model, zero_genomes(copies), ids, SPANS, copies)
    torch.testing.assert_close(answers.probability, probability.repeat(copies, 1), rtol=1e-5, atol=1e-9)
    assert answers.is_greedy.tolist() == is_greedy.repeat(copies, 1).tolist()
    assert answers.probability.dtype == torch.float64
    assert cache.get_seq_length() == LENGTH


@pytest.mark.parametrize("start", [1, 2, 8, 9, 17])
def test_answers_may_stand_anywhere_after_the_first_token(start):
    """Before, at and after the first update, until when the genomes share their reading."""
    model, ids, spans = tiny_model(), random_ids(2, 20), [(start, start + 3)]
    answers, _ = score_answers(model, zero_genomes(2), ids, spans, 2)
    probability, _ = plain_answers(model, ids, spans)
    torch.testing.assert_close(answers.probability, probability.repeat(2, 1), rtol=1e-5, atol=1e-9)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    num_genomes=st.integers(1, 4), num_examples=st.integers(1, 3), prompt=st.integers(1, 30), seed=st.integers(0, 99)
)
def test_a_block_scores_like_each_genome_alone_on_each_example_read_from_the_start(
    num_genomes, num_examples, prompt, seed
):
    """Here nothing is shared or branched: each row goes by itself through one plain forward call under its genome."""
    model, ids = tiny_model(), random_ids(num_examples, LENGTH, seed)
    memory, spans = tiny_namm(tiny_settings(heads="ragged"), num_genomes, seed), [(prompt, prompt + 2), (40, 45)]
    block, cache = score_answers(model, memory, ids, spans, num_genomes)
    held = held_positions(cache)
    for row in range(num_genomes * num_examples):
        genome, example = divmod(row, num_examples)
        alone, text = memory.with_genome(memory._genomes[genome : genome + 1]), ids[example : example + 1]
        logits, small = drive(model, alone, text)
        log_p = logits[0, :-1].double().log_softmax(-1).gather(-1, text[0, 1:, None])[:, 0]
        probability = torch.stack([log_p[start - 1 : stop - 1].sum().exp() for start, stop in spans])
        torch.testing.assert_close(block.probability[row], probability, rtol=1e-4, atol=1e-9)
        assert [layer[row] for layer in held] == [layer[0] for layer in held_positions(small)]


def test_what_was_evicted_is_missed_in_the_answers():
    model, ids = tiny_model(), random_ids(2, LENGTH)
    evicting, _ = score_answers(model, rival("recent", 5), ids, SPANS, 1)
    assert largest_difference(evicting.probability.log(), plain_answers(model, ids, SPANS)[0].log()) > 0.1


# Greedy decoding -----------------------------------------------------------------------------------------------------


def decode(model, memory, ids: Tensor, **options):
    with memory_attached(model, memory) as cache:
        return decode_greedily(model, cache, ids, **{"stop_ids": (), **options}), cache


@pytest.mark.parametrize("prefill_tokens", [1, 5, 2048])
@pytest.mark.parametrize("make", [KeepAll, lambda: zero_genomes(1)], ids=["full", "zero-genome"])
def test_decoding_under_a_memory_that_keeps_all_is_that_of_generate(make, prefill_tokens):
    model, ids = tiny_model(), random_ids(2, 21)
    plain = greedy_text(model, ids, 12)
    completions, cache = decode(model, make(), ids, max_new_tokens=12, prefill_tokens=prefill_tokens)
    assert torch.cat([ids, completions.ids], dim=1).tolist() == plain.tolist()
    assert cache.get_seq_length() == 21 + 12 - 1  # the last decoded token is not fed back
    with torch.no_grad():
        logits = model(plain, use_cache=False).logits[:, 20:-1]
    assert largest_difference(completions.logits, logits) < 1e-5


def test_decoding_stops_when_every_row_has_stopped_and_fills_up_rows_that_stopped_earlier():
    model, ids = tiny_model(), random_ids(3, 21)
    free = greedy_text(model, ids, 12)[:, 21:].tolist()
    stops = {free[0][2], free[1][5], free[2][0]}
    expected = []
    for row in free:
        place = next(i for i, token in enumerate(row) if token in stops)
        expected.append((row[: place + 1], row[place]))
    longest = max(len(row) for row, _ in expected)
    assert longest < 12
    completions, cache = decode(model, KeepAll(), ids, max_new_tokens=12, stop_ids=sorted(stops))
    assert completions.ids.tolist() == [row + [stop] * (longest - len(row)) for row, stop in expected]
    assert completions.logits.shape == (3, longest, model.config.vocab_size)
    assert cache.get_seq_length() == 21 + longest - 1


@pytest.mark.parametrize("memory", ["namm", "recent"])
def test_decoding_evicts_as_reading_the_same_text_does(memory):
    model, ids = tiny_model(), random_ids(1, 21)
    make = {"namm": lambda: tiny_namm(tiny_settings()), "recent": lambda: rival("recent", 5)}[memory]
    completions, cache = decode(model, make(), ids, max_new_tokens=30)
    text = torch.cat([ids, completions.ids], dim=1)
    edges = [0, *range(21, text.shape[1])]
    with memory_attached(model, make()) as other, torch.no_grad():
        for start, stop in pairwise(edges):
            logits = model(text[:, start:stop], past_key_values=other, use_cache=True).logits
    assert held_positions(cache) == held_positions(other)
    assert cache.held_tokens().max() < 50
    assert largest_difference(completions.logits[:, -1], logits[:, -1]) < 1e-5


@pytest.mark.parametrize("heads", ["even", "ragged"])
def test_a_block_gives_the_same_in_groups_of_any_size(heads, monkeypatch):
    model, ids = tiny_model(), random_ids(2, 45, seed=4)
    memory, spans, rows_of_calls = tiny_namm(tiny_settings(heads=heads), count=5), [(20, 22), (40, 45)], []
    model.register_forward_pre_hook(
        lambda _model, _arguments, named: rows_of_calls.append(len(named["input_ids"])), with_kwargs=True
    )
    found = []
    for tokens in (1, 160, 100_000):
        monkeypatch.setattr(decoding, "CPU_GROUP_TOKENS", tokens)
        found.append(score_answers(model, memory, ids, spans, 5))
    assert rows_of_calls == [2, 2, 2, 2, 2, 2, 2, 4, 4, 2, 2, 10]
    for answers, cache in found[:-1]:
        expected, whole = found[-1]
        torch.testing.assert_close(answers.probability, expected.probability, rtol=1e-5, atol=1e-7)
        assert cache.held_tokens().tolist() == whole.held_tokens().tolist()
        ours, theirs = Footprint.of(cache), Footprint.of(whole)
        for field in ("mean_bytes", "peak_bytes", "state_bytes"):
            assert getattr(ours, field).tolist() == getattr(theirs, field).tolist()

"""The streamed spectrogram against a slow one by FFT, however the queries are cut; and the recency embedding."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.memory.features import empty_trace_channels, magnitudes, observe, recency
from workers.memory.specs import NammSettings

LENGTH, HEADS = 37, 2


def settings_of(hop: int, ema: float = 0.9) -> NammSettings:
    return NammSettings(update_every=hop, window=2 * hop, hop=hop, ema=ema)


def causal_attention(length: int, seed: int) -> Tensor:
    """Softmaxed ``[1, H, length, length]``: row i attends to tokens 0 to i."""
    logits = 2 * torch.randn(1, HEADS, length, length, generator=torch.Generator().manual_seed(seed))
    return logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def streamed(attention: Tensor, architecture: NammSettings, cuts: list[int]) -> Tensor:
    """The traces of all tokens after the rows were fed in the pieces between ``cuts``; tokens come with their rows."""
    trace = torch.zeros(1, HEADS, 0, empty_trace_channels(architecture))
    for start, stop in pairwise([0, *cuts, attention.shape[2]]):
        trace = torch.cat([trace, trace.new_zeros(1, HEADS, stop - start, trace.shape[-1])], dim=2)
        trace = observe(trace, attention[:, :, start:stop, :stop], architecture)
    return trace


def slow_average(signal: np.ndarray, architecture: NammSettings) -> np.ndarray:
    """Moving average of the magnitudes of one token's whole signal, frame by frame with numpy's FFT (spec 3.1, 3.2)."""
    hop, window = architecture.hop, architecture.window
    padded, average = np.concatenate([np.zeros(hop), signal]), np.zeros(architecture.num_bins)
    hann = torch.hann_window(window, periodic=True, dtype=torch.float64).numpy()
    for start in range(0, len(padded) - window + 1, hop):
        spectrum = np.abs(np.fft.rfft(hann * padded[start : start + window]))
        average = architecture.ema**hop * average + (1 - architecture.ema**hop) * spectrum
    return average


every_way = given(
    hop=st.integers(1, 9),
    cuts=st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=LENGTH).map(sorted),
    seed=st.integers(0, 10**6),
)


@settings(max_examples=50, deadline=None)
@every_way
def test_any_cut_into_chunks_gives_the_same_traces(hop, cuts, seed):
    attention, architecture = causal_attention(LENGTH, seed), settings_of(hop)
    at_once, in_pieces = (streamed(attention, architecture, some) for some in ([], cuts))
    torch.testing.assert_close(in_pieces, at_once, rtol=1e-6, atol=1e-7)
    pending = in_pieces.shape[-1] - architecture.num_bins
    assert hop <= pending < 2 * hop


@settings(max_examples=15, deadline=None)
@every_way
def test_the_traces_are_those_of_a_slow_spectrogram_of_the_whole_attention(hop, cuts, seed):
    attention, architecture = causal_attention(LENGTH, seed), settings_of(hop)
    trace = streamed(attention, architecture, cuts)[0]
    for head in range(HEADS):
        for token in range(LENGTH):
            slow = slow_average(attention[0, head, :, token].double().numpy(), architecture)
            np.testing.assert_allclose(trace[head, token, : architecture.num_bins], slow, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), cut=st.integers(1, LENGTH - 1))
def test_forgetting_some_tokens_does_not_change_the_traces_of_the_others(data, seed, cut):
    """An eviction gathers traces; what a token remembers is about itself alone."""
    attention, architecture = causal_attention(LENGTH, seed), settings_of(4)
    kept = sorted(data.draw(st.sets(st.integers(0, LENGTH - 1), min_size=1)))
    before, after = [token for token in kept if token < cut], kept
    trace = streamed(attention[:, :, :cut, :cut], architecture, [])[:, :, before]
    new = trace.new_zeros(1, HEADS, len(after) - len(before), trace.shape[-1])
    trace = observe(torch.cat([trace, new], dim=2), attention[:, :, cut:, after], architecture)
    torch.testing.assert_close(trace, streamed(attention, architecture, [])[:, :, kept], rtol=1e-6, atol=1e-7)


def test_a_constant_attention_is_seen_in_the_two_lowest_frequencies_only():
    """The Hann window's own spectrum: half of the window at frequency 0, a quarter at the next, nothing elsewhere."""
    spectrum = magnitudes(torch.full((32,), 0.25))
    expected = torch.zeros(17)
    expected[:2] = torch.tensor([0.25 * 16, 0.25 * 8])
    torch.testing.assert_close(spectrum, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [15, 16, 31, 32, 33])
def test_a_frame_counts_when_its_last_row_was_read_and_not_before(rows):
    """The first frame ends with the first hop (16), because a hop of zeros stands before the first row."""
    architecture = settings_of(16, ema=0.99)
    attention = torch.full((1, 1, rows, 1), 0.5)
    trace = observe(torch.zeros(1, 1, 1, empty_trace_channels(architecture)), attention, architecture)
    finished_frames = rows // 16
    assert trace.shape[-1] == architecture.num_bins + 16 + rows % 16
    assert bool(trace[..., : architecture.num_bins].any()) == (finished_frames > 0)
    assert trace[..., architecture.num_bins :].sum() == 0.5 * min(rows, 16 + rows % 16)


def test_attention_in_half_precision_is_averaged_in_float32():
    attention, architecture = causal_attention(LENGTH, 0).to(torch.bfloat16), settings_of(4)
    trace = streamed(attention, architecture, [11])
    assert trace.dtype == torch.float32
    assert torch.equal(trace, streamed(attention.float(), architecture, [11]))


def test_observing_leaves_the_old_trace_as_it_was():
    architecture = settings_of(4)
    trace = streamed(causal_attention(8, 0), architecture, [])
    copy = trace.clone()
    observe(trace, causal_attention(8, 1), architecture)
    assert torch.equal(trace, copy)


@settings(max_examples=50, deadline=None)
@given(
    ages=st.lists(st.integers(0, 100_000), min_size=1, max_size=8),
    size=st.sampled_from((2, 6, 8)),
    slack=st.integers(0, 10**6),
)
def test_recency_is_sines_then_cosines_of_the_age_whatever_the_upper_bound(ages, size, slack):
    """Ages beyond 32,768, where the published table ends, included."""
    architecture = NammSettings(recency_size=size)
    embedding = recency(torch.tensor(ages), max(ages) + slack, architecture)
    phi = [50_000.0 ** (-m / (size // 2)) for m in range(size // 2)]
    expected = [[f(age * p) for f in (math.sin, math.cos) for p in phi] for age in ages]
    torch.testing.assert_close(embedding, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_newest_token_has_age_zero():
    assert recency(torch.tensor([0]), 0, NammSettings()).tolist() == [[0.0] * 4 + [1.0] * 4]

"""The evolved memory's parts beside features and selection: statistics, normalisation, genome layout, scorer."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory.tiny import (
    drive,
    random_genomes,
    random_ids,
    tiny_model,
    tiny_namm,
    tiny_normalisation,
    tiny_settings,
)
from workers.memory.memory import LayerView
from workers.memory.namm import Moments, Namm, StatisticsPass
from workers.memory.scorer import importances, unfold_genomes
from workers.memory.specs import NammSettings, Normalisation

# Statistics ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    offset=st.sampled_from((0.0, 1e4)),
    seed=st.integers(0, 10**6),
)
def test_moments_of_parts_are_the_moments_of_the_whole(sizes, offset, seed):
    """Far from zero too, where sums of squares in float32 would have lost the variance."""
    values = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) + offset
    moments = Moments()
    for part in values.split(sizes):
        moments.add(part)
    whole = values.double().numpy()
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-9, atol=1e-12)


def views_of(memory, ids: Tensor, cuts=()) -> list[LayerView]:
    views: list[LayerView] = []
    drive(tiny_model(), memory, ids, cuts, listener=lambda view, _: views.append(view))
    return views


@settings(max_examples=8, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 42), unique=True, max_size=6).map(sorted), seed=st.integers(0, 99))
def test_the_statistics_pass_pools_every_token_at_every_update_however_the_text_is_cut(cuts, seed):
    memory, bins = StatisticsPass(tiny_settings()), tiny_settings().num_bins
    views = views_of(memory, random_ids(2, 43, seed), cuts)
    values = torch.cat([view.trace[..., :bins].flatten(0, 2) for view in views]).double()
    assert memory.moments.count == len(values) == 2 * 2 * 2 * (8 + 16 + 24 + 32 + 40)  # layers, rows, heads
    torch.testing.assert_close(memory.moments.mean, values.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(memory.moments.variance, values.var(0, correction=0), rtol=1e-9, atol=1e-12)


def test_normalised_by_its_own_statistics_the_spectrum_has_mean_0_and_variance_1():
    architecture, ids = tiny_settings(), random_ids(2, 43)
    pooled = StatisticsPass(architecture)
    drive(tiny_model(), pooled, ids)
    statistics = Normalisation(tuple(pooled.moments.mean.tolist()), tuple(pooled.moments.variance.tolist()))
    memory = Namm(architecture, torch.zeros(1, architecture.genome_size), statistics)  # zeros keep everything
    read = torch.cat([memory.features(view).flatten(0, 2) for view in views_of(memory, ids)]).double()
    spectrum = read[:, architecture.recency_size :]
    torch.testing.assert_close(spectrum.mean(0), torch.zeros_like(spectrum[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(spectrum.var(0, correction=0), torch.ones_like(spectrum[0]), atol=1e-5, rtol=0)


def test_features_are_recency_then_the_normalised_spectrum_and_no_variance_divides_by_zero():
    architecture = tiny_settings()
    bins = architecture.num_bins
    statistics = Normalisation(mean=(0.5,) * bins, variance=(4.0,) * (bins - 1) + (0.0,))
    genomes = torch.zeros(1, architecture.genome_size)
    view = views_of(Namm(architecture, genomes, None), random_ids(1, 8))[0]
    raw = Namm(architecture, genomes, None).features(view)
    normalised = Namm(architecture, genomes, statistics).features(view)
    size = architecture.recency_size
    assert raw.shape[-1] == architecture.num_features
    assert torch.equal(raw[..., size:], view.trace[..., :bins])
    assert torch.equal(normalised[..., :size], raw[..., :size])
    torch.testing.assert_close(normalised[..., size:-1], (raw[..., size:-1] - 0.5) / 2)
    assert normalised.isfinite().all()


# The scorer ----------------------------------------------------------------------------------------------------------


def slow_importances(x: np.ndarray, genome: np.ndarray, architecture: NammSettings) -> np.ndarray:
    """Importances of one head's tokens ``x [n, F]``, token by token, as spec 4 writes them."""
    f, h = architecture.num_features, architecture.hidden_size
    ends = np.cumsum([0, f * 3 * h, 3 * h, h * 2 * f, 2 * f, f, 1])
    w1, b1, w2, b2, w3, b3 = (genome[start:stop] for start, stop in pairwise(ends))
    q, k, v = np.split(x @ w1.reshape(f, 3 * h) + b1, 3, axis=1)
    scores = []
    for i in range(len(x)):
        logits = k[i:] @ q[i] / np.sqrt(h)  # itself and newer tokens
        weights = np.exp(logits - logits.max())
        z = (weights / weights.sum()) @ v[i:] @ w2.reshape(h, 2 * f) + b2
        scores.append((x[i] * (1 + z[f:]) + z[:f]) @ w3 + b3[0])
    return np.array(scores)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=2), min_size=2, max_size=2),
    num_genomes=st.integers(1, 3),
    hidden=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_a_block_of_genomes_scores_like_each_genome_on_each_head_alone(counts, num_genomes, hidden, seed):
    """Two examples of two heads that hold different numbers of tokens; empty slots hold rubbish that nobody may see."""
    generator, architecture = torch.Generator().manual_seed(seed), tiny_settings(hidden_size=hidden)
    genomes = random_genomes(architecture, num_genomes, seed)
    features = torch.randn(2 * num_genomes, 2, 9, architecture.num_features, generator=generator)
    scores = importances(features, unfold_genomes(genomes, architecture))
    for row in range(2 * num_genomes):
        for head, held in enumerate(counts[row % 2]):
            x, genome = features[row, head, -held:].double().numpy(), genomes[row // 2].double().numpy()
            expected = slow_importances(x, genome, architecture)
            np.testing.assert_allclose(scores[row, head, -held:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0, 1, 4171, 4173])
def test_a_genome_of_another_size_is_refused_in_one_line_with_the_remedy(size):
    with pytest.raises(ValueError, match=rf"^the genome has {size} numbers, .* needs 4172 .*: use the settings .*$"):
        Namm(NammSettings(), torch.zeros(1, size), None)


def test_the_published_genome_has_4172_numbers():
    assert NammSettings().genome_size == 4172


def test_with_genome_keeps_settings_and_statistics():
    architecture = tiny_settings(cap=3)
    memory = Namm(architecture, torch.zeros(1, architecture.genome_size), tiny_normalisation(architecture))
    other = memory.with_genome(random_genomes(architecture, 2))
    assert (other.settings, other.normalisation) == (architecture, memory.normalisation)
    assert (memory.num_genomes, other.num_genomes) == (1, 2)


def test_ragged_heads_hold_no_more_than_even_ones_and_in_a_case_less():
    ids = random_ids(1, 8)
    even, ragged = (drive(tiny_model(), tiny_namm(tiny_settings(heads=heads)), ids)[1] for heads in ("even", "ragged"))
    assert (ragged.held_tokens() <= even.held_tokens()).all()
    assert ragged.held_tokens().sum() < even.held_tokens().sum()


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window", 31),
        ("hop", 0),
        ("update_every", 0),
        ("update_every", 40),
        ("ema", 0.0),
        ("ema", 1.0),
        ("hidden_size", 0),
        ("recency_size", 7),
        ("recency_size", 0),
        ("max_frequency", 1.0),
        ("heads", "odd"),
        ("cap", 0),
    ],
)
def test_impossible_settings_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"memory\.{key}\b.*{value}"):
        dataclasses.replace(NammSettings(), **{key: value})

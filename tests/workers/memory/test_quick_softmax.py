"""What is exponentiated as it is equals the softmax, and takes the usual way where it would not."""

from __future__ import annotations

import pytest
import torch

from workers.memory import folded_scorer, tiled_attention
from workers.memory.options import AttentionOptions
from workers.memory.quick_softmax import LEAST_SCORES, Scratch, can_exponentiate, exponentiated
from workers.memory.scorer import importances, unfold_genomes
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings

SETTINGS = NammSettings()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_exponentials_over_their_sums_are_the_softmax_of_what_is_visible():
    scores, visible = 10 * normal(3, 8, 20), torch.ones(8, 8).tril()
    expected = scores.clone()
    expected[..., 12:].masked_fill_(visible == 0, -torch.inf)
    sums = exponentiated(scores, visible, slice(12, None))
    assert sums is not None
    torch.testing.assert_close(scores / sums, expected.softmax(-1), rtol=1e-5, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("score", [90.0, -90.0, float("nan"), float("inf")], ids=str)
def test_a_row_beyond_float32_is_found_out(score):
    scores = normal(2, 4, 6)
    scores[1, 2] = score
    assert exponentiated(scores, None, slice(None)) is None


@torch.no_grad()
def test_a_score_that_is_hidden_may_not_hide_that_it_was_too_large():
    """Infinity times nothing is no number."""
    scores = normal(1, 2, 2)
    scores[0, 0, 1] = 200.0
    assert exponentiated(scores, torch.ones(2, 2).tril(), slice(None)) is None


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3], ids=["all tiles do without", "some tiles", "few"])
def test_attention_is_as_near_to_float64_whatever_the_size_of_scores(size, monkeypatch):
    monkeypatch.setattr(tiled_attention, "TILE_SCORES", {"cpu": 1})
    queries, keys, values = normal(1, 4, 192, 16), normal(1, 2, 192, 16, seed=1), normal(1, 2, 192, 16, seed=2)
    keys[:, :, 100:] *= size  # the first tile does without in any case
    options = AttentionOptions(0.25)

    def attended(dtype: torch.dtype) -> torch.Tensor:
        slots = Slots.nothing(keys[:, :, :0].to(dtype), values[:, :, :0].to(dtype), 0)
        slots = slots.append(keys.to(dtype), values.to(dtype), 0)
        return tiled_attention.attend(queries.to(dtype), slots, 0, options, None).double()

    with torch.no_grad():
        ours, usual = attended(torch.float32), attended(torch.float64)
    torch.testing.assert_close(ours, usual, rtol=0, atol=1e-6 * max(1.0, size))


def test_a_gradient_takes_the_usual_way():
    assert not can_exponentiate(normal(1), LEAST_SCORES)
    with torch.no_grad():
        assert can_exponentiate(normal(1), LEAST_SCORES)
        assert not can_exponentiate(normal(1), LEAST_SCORES - 1)
        assert not can_exponentiate(normal(1).bfloat16(), LEAST_SCORES)
        with torch.autocast("cpu", torch.bfloat16):
            assert not can_exponentiate(normal(1), LEAST_SCORES)


def test_scratch_is_one_piece_of_memory():
    scratch = Scratch(normal(1), 50)
    first = scratch.shaped(2, 3, 40)
    second = scratch.shaped(2, 3, 50)
    assert first.data_ptr() == second.data_ptr()
    assert second.shape == (2, 3, 50)


@torch.no_grad()
@pytest.mark.parametrize("genomes", [1, 3])
def test_the_folded_scorer_is_the_scorer(genomes):
    parameters = unfold_genomes(0.2 * normal(genomes, SETTINGS.genome_size), SETTINGS)
    features = normal(2 * genomes, 3, 150, SETTINGS.num_features, seed=1)
    empty = [0, 7, 100, 149, 64, 0] * genomes
    ours = folded_scorer.importances(features, *folded_scorer.folded(parameters), empty)
    exact = importances(
        features.double(), type(parameters)(*(getattr(parameters, n).double() for n in parameters.__slots__))
    )
    assert ours is not None
    for lane, (found, expected) in enumerate(zip(ours.flatten(0, 1), exact.flatten(0, 1), strict=True)):
        torch.testing.assert_close(found[empty[lane] :].double(), expected[empty[lane] :], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_folded_scorer_refuses_scores_beyond_float32():
    parameters = unfold_genomes(3.0 * normal(1, SETTINGS.genome_size), SETTINGS)
    features = 10 * normal(1, 2, 80, SETTINGS.num_features, seed=1)
    assert folded_scorer.importances(features, *folded_scorer.folded(parameters), [0, 0]) is None


@torch.no_grad()
def test_the_folded_scorer_refuses_features_that_their_weights_make_infinite():
    """Sums of exponentials are within bounds, their products with a feature of no variance are not."""
    hidden = SETTINGS.hidden_size
    parameters = unfold_genomes(0.3 * normal(1, SETTINGS.genome_size), SETTINGS)
    for tensor in (parameters.qkv_weight, parameters.qkv_bias):
        tensor[..., : 2 * hidden] = 0
    parameters.qkv_weight[:, 0, 0] = 7.7
    parameters.qkv_weight[:, 0, hidden] = 7.7 * hidden**0.5  # scores are 59 times the first feature of both
    features = normal(1, 2, 300, SETTINGS.num_features)
    features[..., 0] = 1.0
    features[..., 10] *= 1e7
    assert bool(importances(features, parameters).isfinite().all())
    assert folded_scorer.importances(features, *folded_scorer.folded(parameters), [0, 0]) is None

"""Which features an evolved memory listens to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from workers.memory.scorer import importances, unfold_genomes
from workers.memory.specs import NammSettings

NUM_TOKENS, NUM_TEXTS = 64, 8
"""Made-up texts on which a memory is probed."""


def feature_sensitivity(settings: NammSettings, genome: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How much a token's importance moves when one of its features moves by one, mean over made-up tokens.

    The features are drawn from a standard normal distribution, which is what normalisation makes of the spectrum
    (spec 3.3); so features of the spectrum can be compared with one another, and ages (between -1 and 1) among
    themselves.

    Args:
        settings: the architecture.
        genome: ``[genome_size]``, of a memory that has a network.

    Returns:
        ``[num_features]``: mean absolute derivative, in the order of the scorer's input (:func:`feature_names`).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_TEXTS, 1, NUM_TOKENS, settings.num_features)
    features = torch.randn(shape, generator=generator).requires_grad_()
    parameters = unfold_genomes(torch.from_numpy(np.ascontiguousarray(genome))[None], settings)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(importances(features, parameters).sum(), features)
    sensitivity: npt.NDArray[np.float64] = gradient.abs().double().mean(dim=(0, 1, 2)).numpy()
    return sensitivity


def feature_names(settings: NammSettings) -> list[str]:
    """Sines and cosines of the age by their wavelengths in tokens, then frequencies of the attention received."""
    half = settings.recency_size // 2
    waves = [2 * np.pi * settings.max_frequency ** (place / half) for place in range(half)]
    ages = [f"age, {wave} {length:,.0f}" for wave in ("sin", "cos") for length in waves]
    newest = ["newest queries", "newest queries, neighbours"] if settings.lookahead else []
    return [*ages, *(f"attention, {place}/{settings.window}" for place in range(settings.num_bins)), *newest]

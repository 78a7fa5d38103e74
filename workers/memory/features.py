"""What a Neural Attention Memory Model reads about every cached token (spec 3).

Shapes: B rows, H KV heads, K cached slots, n queries, C trace channels.
The spectrogram is streamed: a token's trace holds the moving average over its finished frames, then the last ``hop``
to ``2 * hop - 1`` attention values that unfinished frames still need. Nothing else of the attention is kept.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from workers.memory.specs import NammSettings


@functools.lru_cache(maxsize=16)
def spectrum_basis(window: int, device: torch.device) -> Tensor:
    """Hann-windowed cosines and sines as one real matrix, float32 ``[window, 2 * bins]`` (spec 3.1).

    ``signal @ basis`` gives the real parts of the one-sided spectrum, then its imaginary parts: no FFT, so it works in
    any dtype and on any accelerator.
    """
    m = torch.arange(window, dtype=torch.float64)
    k = torch.arange(window // 2 + 1, dtype=torch.float64)
    hann = 0.5 * (1.0 - torch.cos(2.0 * torch.pi * m / window))
    angle = 2.0 * torch.pi * m[:, None] * k[None, :] / window
    basis = torch.cat([torch.cos(angle), -torch.sin(angle)], dim=1) * hann[:, None]
    return basis.to(torch.float32).to(device)


def magnitudes(signal: Tensor) -> Tensor:
    """Magnitudes of one frame's spectrum: ``[..., window]`` float32 to ``[..., bins]``."""
    window = signal.shape[-1]
    real, imaginary = (signal @ spectrum_basis(window, signal.device)).chunk(2, dim=-1)
    return torch.sqrt(real.square() + imaginary.square())


def empty_trace_channels(settings: NammSettings) -> int:
    """Channels of the trace before the first token: a zero average and one hop of zeros (spec 3.1, first update)."""
    return settings.num_bins + settings.hop


def observe(trace: Tensor, attention: Tensor, settings: NammSettings) -> Tensor:
    """Feed new attention rows into the traces (spec 3.1 and 3.2), however many there are.

    Args:
        trace: ``[B, H, K, bins + pending]`` float32; new tokens start with zeros, which is what the published
            restriction to frames ``f >= b_j`` amounts to: nobody attended to a token before it existed.
        attention: ``[B, H, n, K]`` attention of the new queries, averaged over each group of query heads.
        settings: the memory's architecture.

    Returns:
        The new trace, ``[B, H, K, bins + pending']`` with ``hop <= pending' < 2 * hop``.
    """
    hop, window, bins = settings.hop, settings.window, settings.num_bins
    signal = torch.cat([trace[..., bins:], attention.transpose(-1, -2).float()], dim=-1)
    frames = (signal.shape[-1] - hop) // hop
    if frames == 0:
        return torch.cat([trace[..., :bins], signal], dim=-1)
    decay = settings.ema**hop
    ema = trace[..., :bins].clone()
    for frame in range(frames):
        spectrum = magnitudes(signal[..., frame * hop : frame * hop + window])
        ema.mul_(decay).add_(spectrum, alpha=1.0 - decay)
    return torch.cat([ema, signal[..., frames * hop :]], dim=-1)


@functools.lru_cache(maxsize=16)
def _recency_table(num_ages: int, settings: NammSettings, device: torch.device) -> Tensor:
    half = settings.recency_size // 2
    phi = settings.max_frequency ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(num_ages, dtype=torch.float64)[:, None] * phi
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1).to(torch.float32).to(device)


def recency(ages: Tensor, oldest: int, settings: NammSettings) -> Tensor:
    """Sines and cosines of the tokens' ages (spec 3.4): integers ``[...]`` to float32 ``[..., recency_size]``.

    ``oldest`` is an upper bound of the ages, known on the host; the table grows in powers of two, without an end.
    """
    num_ages = 1 << max(10, oldest.bit_length())
    return _recency_table(num_ages, settings, ages.device)[ages]

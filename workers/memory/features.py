"""What a Neural Attention Memory Model reads about every cached token (spec 3).

Shapes: B rows, H KV heads, K cached slots, n queries, C trace channels.
The spectrogram is streamed: a token's trace holds the moving average over its finished frames, then the last ``hop``
to ``2 * hop - 1`` attention values that unfinished frames still need. Nothing else of the attention is kept.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from workers.memory.kernels import kernels_for
from workers.memory.quick_softmax import Scratch
from workers.memory.specs import NammSettings

OBSERVED_TOGETHER = 1 << 18
"""Rows times slots of the lanes whose attention is taken in together on a processor: its cache holds two such."""


@functools.lru_cache(maxsize=16)
def spectrum_basis(window: int, device: torch.device) -> Tensor:
    """Hann-windowed cosines and sines as one real matrix, float32 ``[window, window]`` (spec 3.1).

    ``basis @ signal`` gives the real parts of the one-sided spectrum, ``window / 2 + 1`` of them, then its imaginary
    parts but for the first and the last, which are zero. No FFT, so it works in any dtype and on any accelerator.
    """
    m = torch.arange(window, dtype=torch.float64)
    k = torch.arange(window // 2 + 1, dtype=torch.float64)
    hann = 0.5 * (1.0 - torch.cos(2.0 * torch.pi * m / window))
    angle = 2.0 * torch.pi * k[:, None] * m[None, :] / window
    basis = torch.cat([torch.cos(angle), -torch.sin(angle[1:-1])]) * hann
    return basis.to(torch.float32).to(device)


def magnitudes(signal: Tensor) -> Tensor:
    """Magnitudes of one frame's spectrum: ``[..., window]`` float32 to ``[..., bins]``."""
    return _magnitudes(spectrum_basis(signal.shape[-1], signal.device) @ signal[..., None])[..., 0]


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
    kernels = kernels_for(trace, "fused_attention")
    if kernels is not None and kernels.can_observe(trace, attention, settings):
        observed: Tensor = kernels.observe(trace, attention, settings)
        return observed
    paid = attention.flatten(0, 1)
    num_lanes, num_queries, num_slots = paid.shape
    sums = SpectralSums(trace, num_queries, settings)
    num_rows = trace.shape[3] - settings.num_bins + num_queries
    together = num_lanes if trace.is_cuda else max(1, OBSERVED_TOGETHER // max(1, num_rows * num_slots))
    for first in range(0, num_lanes, max(1, together)):
        lanes = slice(first, min(first + together, num_lanes))
        sums.room(lanes, slice(0, num_queries), slice(0, num_slots)).copy_(paid[lanes])
        sums.take_in()
    return sums.trace


class SpectralSums:
    """Streams the attention of a block of queries into traces, a tile at a time (an ``Observer``).

    Inside, slots come last: a row of attention is then contiguous, and a frame's spectrum one matrix product.
    """

    def __init__(self, trace: Tensor, num_queries: int, settings: NammSettings) -> None:
        """``trace [B, H, K, bins + pending]`` is of all slots, those of the block's own tokens included."""
        self._shape, self._settings = trace.shape[:3], settings
        lanes, bins = trace.flatten(0, 1).transpose(1, 2), settings.num_bins
        self._pending = lanes[:, bins:]
        pending = self._pending.shape[1] + num_queries
        num_left = pending - (pending - settings.hop) // settings.hop * settings.hop
        self._new = trace.new_empty(len(lanes), bins + num_left, trace.shape[2])
        self._average, self._left = self._new[:, :bins], self._new[:, bins:]
        self._average.copy_(lanes[:, :bins])
        self._left.zero_()
        self._num_queries = num_queries
        self._row_room, self._spectrum_room = Scratch(trace, trace.shape[2]), Scratch(trace, trace.shape[2])
        self._carried = self._pending[:0]
        """The rows behind the last complete frame of the lanes whose tile was taken in last."""

    def room(self, lanes: slice, queries: slice, columns: slice) -> Tensor:
        """Behind the rows that unfinished frames of these lanes still need."""
        former = self._pending[lanes] if queries.start == 0 else self._carried
        count, held = queries.stop - queries.start, former.shape[1]
        rows = self._row_room.shaped(former.shape[0], held + count, columns.stop - columns.start)
        if queries.start == 0:
            rows[:, :held] = former[..., columns]
        else:  # nobody of the tile before has seen the tokens that are new to this one
            width = former.shape[2]
            rows[:, :held, :width] = former
            rows[:, :held, width:] = 0
        self._lanes, self._queries, self._columns, self._rows = lanes, queries, columns, rows
        return rows[:, held:]

    def take_in(self) -> None:
        """Fold the frames that are complete into the moving average."""
        hop = self._settings.hop
        frames = (self._rows.shape[1] - hop) // hop
        average = self._average[self._lanes, :, self._columns]
        _fold(self._rows, frames, average, self._settings.ema**hop, self._spectrum_room)
        unfinished = self._rows[:, frames * hop :]
        if self._queries.stop == self._num_queries:
            self._left[self._lanes, :, self._columns] = unfinished
        else:
            self._carried = unfinished.clone()

    @property
    def trace(self) -> Tensor:
        """The new traces, ``[B, H, K, bins + pending']``."""
        return self._new.transpose(1, 2).view(*self._shape, self._new.shape[1])


def _fold(rows: Tensor, frames: int, average: Tensor, decay: float, room: Scratch) -> None:
    """Into ``average [l, bins, c]`` the first ``frames`` of the frames of ``rows [l, m, c]``."""
    if len(average) > frames:
        _fold_lanes(rows, frames, average, decay, room)
        return
    for lane_rows, lane_average in zip(rows, average, strict=True):
        _fold_frames(lane_rows, frames, lane_average, decay, room)


def _fold_frames(rows: Tensor, frames: int, average: Tensor, decay: float, room: Scratch) -> None:
    """Into ``average [bins, c]`` of one lane, all frames of its ``rows [m, c]`` at once."""
    bins, columns = average.shape
    hop = bins - 1
    overlapping = rows.as_strided((frames, 2 * hop, columns), (hop * columns, columns, 1))
    basis = spectrum_basis(2 * hop, rows.device)
    spectra = _magnitudes(torch.bmm(basis.expand(frames, -1, -1), overlapping, out=room.shaped(*overlapping.shape)))
    weights = frame_weights(frames, decay, rows.device)
    average.mul_(decay**frames).add_(torch.mm(weights, spectra.flatten(1)).view(bins, columns))


def _fold_lanes(rows: Tensor, frames: int, average: Tensor, decay: float, room: Scratch) -> None:
    """Into ``average [l, bins, c]``, frame by frame, all lanes of ``rows [l, m, c]`` at once."""
    hop = average.shape[1] - 1
    basis = spectrum_basis(2 * hop, rows.device).expand(len(rows), -1, -1)
    for frame in range(frames):
        overlapping = rows[:, frame * hop : (frame + 2) * hop]
        spectra = _magnitudes(torch.bmm(basis, overlapping, out=room.shaped(*overlapping.shape)))
        average.mul_(decay).add_(spectra, alpha=1.0 - decay)


def spectrum_parts(spectra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of spectra ``[..., 2 * hop, c]``: real parts, those of bins that have imaginary ones too, and these."""
    hop = spectra.shape[-2] // 2
    return spectra[..., : hop + 1, :], spectra[..., 1:hop, :], spectra[..., hop + 1 :, :]


def rooted(real: Tensor, inner: Tensor, imaginary: Tensor) -> Tensor:
    """Magnitudes ``[..., bins, c]`` in the place of the real parts, from what :func:`spectrum_parts` gives."""
    torch.addcmul(_least_power(real.device).to(real.dtype), real, real, out=real)
    inner.addcmul_(imaginary, imaginary)
    return real.sqrt_()


def _magnitudes(spectra: Tensor) -> Tensor:
    """Of spectra ``[..., 2 * hop, c]``, real parts before imaginary ones, to ``[..., bins, c]``, in their place."""
    return rooted(*spectrum_parts(spectra))


@functools.lru_cache(maxsize=16)
def _least_power(device: torch.device) -> Tensor:
    """What is added to every power: a root of zero takes a processor twenty times as long, and many are zero."""
    return torch.tensor(1e-36, device=device)


@functools.lru_cache(maxsize=64)
def frame_weights(frames: int, decay: float, device: torch.device) -> Tensor:
    """Of consecutive frames in the moving average, float32 ``[1, frames]``."""
    powers = decay ** torch.arange(frames - 1, -1, -1, dtype=torch.float64)
    return ((1.0 - decay) * powers).to(torch.float32).to(device)[None]


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
    return recency_table(oldest, settings, ages.device)[ages]


def recency_table(oldest: int, settings: NammSettings, device: torch.device) -> Tensor:
    """:func:`recency` of all ages up to ``oldest`` and some more, float32 ``[ages, recency_size]``."""
    return _recency_table(1 << max(10, oldest.bit_length()), settings, device)

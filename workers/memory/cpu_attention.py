"""Attention and spectrogram on a processor: ``tiled_attention.py`` and ``features.SpectralSums`` in one loop.

A tile is some queries of one lane under all query heads of its group. Its scores stay in a core's own cache from one
step to the next, and every step is as few calls as can be, on views that lanes of equal length share: a call costs as
much there as the arithmetic of a thousand scores.

Exponentials are never divided by their sums. The output is, afterwards; and the mean over a group's heads is taken as
``e_0 + e_1 s_0 / s_1 + …``, where ``e`` are the exponentials of a head and ``s`` their sums: too large by ``r s_0``,
which differs from query to query, and which the cosines and sines that a frame is multiplied with take back.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size; L = B * H lanes; t and c are
queries and slots of a tile, f its frames, p the rows of attention that unfinished frames still need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.memory.features import frame_weights, rooted, spectrum_basis, spectrum_parts
from workers.memory.options import AttentionOptions
from workers.memory.quick_softmax import can_exponentiate, usable_bounds
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings
from workers.memory.tiled_attention import SMALLEST_TILE, TILE_SCORES

LARGEST_RATIO = 1e30
"""Of two sums in a tile: beyond, what one head pays would be lost beside another one."""
CACHE_LINE = 16
"""Float32 numbers."""


def can_serve(query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings) -> bool:  # noqa: ARG001
    """Whether this computes just this, and pays; the portable path computes all."""
    is_plain = options.is_plain and options.sliding_window is None
    num_scores = query.shape[1] // slots.keys.shape[1] * query.shape[2] * slots.num_slots
    return is_plain and can_exponentiate(query, num_scores)


def attend_and_observe(
    query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings
) -> tuple[Tensor, Tensor]:
    """The output ``[B, H * r, n, d of the values]`` and the new trace ``[B, H, K, bins + p']``; see :func:`can_serve`.

    Args:
        query: ``[B, H * r, n, d]``.
        slots: what the layer holds, the queries' own tokens last, of which the trace says nothing yet.
        options: of them, the scaling.
        spectrum: hop and decay.
    """
    rows, query_heads, num_queries, _ = query.shape
    heads, num_slots = slots.positions.shape[1:]
    lanes, group = rows * heads, query_heads // heads
    former = slots.trace.flatten(0, 1).transpose(1, 2)
    work = _Work(query, spectrum, slots, former.shape[1] - spectrum.num_bins)
    trace = former.new_zeros(lanes, max(former.shape[1], work.num_channels), num_slots)
    trace[:, : former.shape[1], : former.shape[2]] = former
    by_head = query.unflatten(1, (heads, group)).split(work.tile_queries, dim=3)
    queries = [_contiguous(part, options.scaling) for part in by_head]
    outputs = [part.new_empty(*part.shape[:2], slots.values.shape[-1]) for part in queries]
    both = zip(queries, outputs, strict=True)
    by_tile = [list(zip(asked.unbind(), mixed.unbind(), strict=True)) for asked, mixed in both]
    tensors = (tensor.unbind() for tensor in (slots.keys.flatten(0, 1), slots.values.flatten(0, 1), trace))
    for lane, (empty, keys, values, lane_trace) in enumerate(zip(slots.empty, *tensors, strict=True)):
        held = lane_trace[:, empty:]
        work.begin(held)
        keys, values, average = keys[empty:].T, values[empty:], held[: spectrum.num_bins]
        for tile, queries_of_lane in zip(work.tiles(num_slots - empty), by_tile, strict=True):
            asked, mixed = queries_of_lane[lane]
            work.is_quick = tile.weigh(asked, keys, is_quick=work.is_quick)
            tile.mix(values, mixed)
            tile.observe(average)
        work.end(held)
    output = torch.cat([part.view(lanes, group, -1, part.shape[-1]) for part in outputs], dim=2)
    trace = trace[:, : work.num_channels].reshape(rows, heads, -1, num_slots).transpose(2, 3)
    return output.view(rows, query_heads, num_queries, -1), trace


def _contiguous(query: Tensor, scaling: float) -> Tensor:
    """Scaled queries of a tile, ``[L, r * t, d]`` from ``[B, H, r, t, d]``."""
    laid_out = query.new_empty(query.shape)
    torch.mul(query, scaling, out=laid_out)
    return laid_out.view(-1, query.shape[2] * query.shape[3], query.shape[4])


class _Work:
    """Memory that the tiles of all lanes are computed in, one after the other."""

    def __init__(self, query: Tensor, spectrum: NammSettings, slots: Slots, pending: int) -> None:
        hop, self.num_bins, num_slots = spectrum.hop, spectrum.num_bins, slots.num_slots
        self.hop, self.pending, self.num_queries = hop, pending, query.shape[2]
        self.group = group = query.shape[1] // slots.keys.shape[1]
        mean_slots = num_slots - sum(slots.empty) // len(slots.empty)
        self.tile_queries = _tile_queries(self.num_queries, group * mean_slots, hop)
        self.num_channels = spectrum.num_bins + hop + (pending + self.num_queries) % hop
        self.decay = spectrum.ema**hop
        self.basis = spectrum_basis(2 * hop, query.device) / group
        self.is_quick = True
        """Until a tile had scores that were too much: others will have, too."""
        # An odd number of cache lines, so that the rows of a frame do not get in each other's way there.
        self.pitch = (-(-num_slots // CACHE_LINE) | 1) * CACHE_LINE
        frames = (pending + self.tile_queries) // hop - 1
        self.rows = query.new_empty(pending + group * self.tile_queries, self.pitch)
        self.sums = query.new_empty(len(self.rows), 1)
        self.spectra = query.new_empty(frames * 2 * hop * num_slots)
        self.averages = query.new_empty(spectrum.num_bins * num_slots)
        self._sums: dict[int, _Sums] = {}
        self._tiles: dict[int, list[_Tile]] = {}

    def tiles(self, width: int) -> list[_Tile]:
        """Of a lane with so many slots, in the order of its queries."""
        if width not in self._tiles:
            total, step = self.num_queries, self.tile_queries
            stops = [min(start + step, total) for start in range(0, total, step)]
            self._tiles[width] = [
                _Tile(self, self._sums_of(stop - start), width - total + stop, is_last=stop == total)
                for start, stop in zip([0, *stops], stops, strict=False)
            ]
        return self._tiles[width]

    def _sums_of(self, count: int) -> _Sums:
        if count not in self._sums:
            self._sums[count] = _Sums(self, count)
        return self._sums[count]

    def begin(self, trace: Tensor) -> None:
        """A lane with such a trace ``[bins + p, K]``."""
        self.rows[: self.pending, : trace.shape[1]] = trace[self.num_bins : self.num_bins + self.pending]
        self.sums[: self.pending] = 1.0 / self.group

    def end(self, trace: Tensor) -> None:
        """The rows that the frames of this lane still need, into ``[bins + p', K]``."""
        stop = self.pending + (self.num_queries - 1) % self.tile_queries + 1
        rest = slice(stop - (self.num_channels - self.num_bins), stop)
        left = trace[self.num_bins : self.num_channels]
        torch.div(self.rows[rest, : trace.shape[1]], self.sums[rest] * self.group, out=left)


class _Sums:
    """Views of the sums of exponentials, ``[…, 1]``, of a tile with ``t`` queries."""

    def __init__(self, work: _Work, count: int) -> None:
        self.count, self.frames = count, (work.pending + count) // work.hop - 1
        self.all = work.sums[work.pending : work.pending + work.group * count]
        self.first, *self.others = self.all.split(count)
        self.by_frame = work.sums.as_strided((self.frames, 1, 2 * work.hop), (work.hop, 0, 1))
        self.frame_weights = frame_weights(self.frames, work.decay, work.rows.device)
        self.decay = work.decay**self.frames
        self.carried, self.last = work.sums[: work.pending], work.sums[count : count + work.pending]


class _Tile:
    """Views of the work memory, ``t`` queries of a lane wide and ``c`` slots long, and what is done with them.

    It does not know the :class:`_Work` that knows it: in a cycle that memory would wait for the garbage collector.
    """

    def __init__(self, work: _Work, sums: _Sums, columns: int, *, is_last: bool) -> None:
        pending, pitch, hop, count, frames = work.pending, work.pitch, work.hop, sums.count, sums.frames
        self._basis, self._sums, self._columns, self._is_last = work.basis, sums, columns, is_last

        def rows(first: int, number: int) -> Tensor:
            return work.rows.as_strided((number, columns), (pitch, 1), first * pitch)

        self._weights = rows(pending, work.group * count)
        own = pending * pitch + columns - count
        self._own = work.rows.as_strided((work.group, count, count), (count * pitch, pitch, 1), own)
        self._mean, *self._others = (rows(pending + head * count, count) for head in range(work.group))
        self._overlapping = work.rows.as_strided((frames, 2 * hop, columns), (hop * pitch, pitch, 1))
        self._spectra = work.spectra[: frames * 2 * hop * columns].view(frames, 2 * hop, columns)
        self._parts = spectrum_parts(self._spectra)
        self._magnitudes = self._parts[0].flatten(1)
        self._average = work.averages[: (hop + 1) * columns].view(1, -1)
        self._average_by_bin = self._average.view(hop + 1, columns)
        if not is_last:
            self._carried, self._last = rows(0, pending), rows(count, pending)

    def weigh(self, queries: Tensor, keys: Tensor, *, is_quick: bool) -> bool:
        """Exponentials of the products of ``queries [r * t, d]`` with ``keys [d, K]``, and their sums.

        ``is_quick`` and the result say whether exponentials are, and were, of use as they are.
        """
        keys = keys.narrow(1, 0, self._columns)
        torch.mm(queries, keys, out=self._weights)
        if is_quick:
            self._weights.exp_()
            self._own.tril_()
            torch.sum(self._weights, -1, keepdim=True, out=self._sums.all)
            bounds = usable_bounds(self._sums.all)
            if bounds is not None and bounds[1] < LARGEST_RATIO * bounds[0]:
                return True
            torch.mm(queries, keys, out=self._weights)
        newer = torch.ones(self._own.shape[1:], dtype=torch.bool).triu_(1)
        self._own.masked_fill_(newer, -torch.inf)
        self._weights.copy_(torch.softmax(self._weights, -1))
        self._sums.all.fill_(1.0)
        return False

    def mix(self, values: Tensor, output: Tensor) -> None:
        """Values ``[K, d]`` by the weights into ``output [r * t, d]``."""
        torch.mm(self._weights, values.narrow(0, 0, self._columns), out=output)
        output.div_(self._sums.all)

    def observe(self, average: Tensor) -> None:
        """The frames that are complete into the moving ``average [bins, K]``; what others need to the front."""
        sums = self._sums
        for weights, other in zip(self._others, sums.others, strict=True):
            self._mean.addcmul_(weights, sums.first / other)
        if sums.frames:
            torch.bmm(self._basis / sums.by_frame, self._overlapping, out=self._spectra)
            rooted(*self._parts)
            torch.mm(sums.frame_weights, self._magnitudes, out=self._average)
            former = average.narrow(1, 0, self._columns)
            torch.add(self._average_by_bin, former, alpha=sums.decay, out=former)
        if not self._is_last:
            self._carried.copy_(self._last)
            sums.carried.copy_(sums.last)


def _tile_queries(num_queries: int, by_query: int, hop: int) -> int:
    """Of a tile, where each has so many scores: whole hops, no fewer than frames carry over; or all of them."""
    num_tiles = max(1, round(num_queries * by_query / TILE_SCORES["cpu"]))
    least = max(2, -(-SMALLEST_TILE // hop))
    return min(num_queries, max(least, -(-num_queries // (num_tiles * hop))) * hop)

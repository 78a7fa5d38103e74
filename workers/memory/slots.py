"""The tokens that one layer holds: as a working set while its attention runs, and packed at rest.

Shapes: B rows, H KV heads, K slots, T tokens of all rows and heads together, d head size, C trace channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """A layer's tokens, padded to the longest head and aligned at the newest token (the last slot)."""

    keys: Tensor
    """``[B, H, K, d]``, after rotation; anything where a slot is empty."""
    values: Tensor
    """``[B, H, K, d]``; anything finite where a slot is empty."""
    positions: Tensor
    """int32 ``[B, H, K]``; -1 where a slot is empty, ascending otherwise."""
    trace: Tensor
    """float32 ``[B, H, K, C]``, zero where a slot is empty."""
    is_even: bool
    """Whether all rows and heads hold the same number of tokens, so that no slot is empty."""

    @staticmethod
    def empty(keys: Tensor, values: Tensor, trace_channels: int) -> Slots:
        """No tokens; shapes, dtypes and device as of ``keys [B, H, n, d]`` and ``values [B, H, n, d]``."""
        rows, heads = keys.shape[:2]
        return Slots(
            keys=keys.new_empty(rows, heads, 0, keys.shape[-1]),
            values=values.new_empty(rows, heads, 0, values.shape[-1]),
            positions=torch.empty(rows, heads, 0, dtype=torch.int32, device=keys.device),
            trace=torch.empty(rows, heads, 0, trace_channels, dtype=torch.float32, device=keys.device),
            is_even=True,
        )

    def append(self, keys: Tensor, values: Tensor, first_position: int) -> Slots:
        """With new tokens ``[B, H, n, d]`` at consecutive positions; their traces are zero."""
        rows, heads, new = keys.shape[:3]
        positions = torch.arange(first_position, first_position + new, dtype=torch.int32, device=keys.device)
        trace = self.trace.new_zeros(rows, heads, new, self.trace.shape[-1])
        return Slots(
            keys=torch.cat([self.keys, keys], dim=2),
            values=torch.cat([self.values, values], dim=2),
            positions=torch.cat([self.positions, positions.expand(rows, heads, new)], dim=2),
            trace=torch.cat([self.trace, trace], dim=2),
            is_even=self.is_even,
        )

    def select(self, keep: Tensor) -> Slots:
        """Only the tokens where ``keep`` (bool ``[B, H, K]``) holds, in the same order, physically moved together."""
        counts = keep.sum(-1)
        shortest, longest = torch.stack(torch.aminmax(counts)).tolist()
        # A stable sort of booleans moves the kept slots to the end and leaves them in ascending order.
        order = keep.to(torch.uint8).argsort(dim=-1, stable=True)[..., keep.shape[-1] - longest :]
        is_even = shortest == longest
        positions, trace = self.positions.gather(2, order), _gather(self.trace, order)
        if not is_even:
            dropped = ~keep.gather(2, order)
            positions = positions.masked_fill(dropped, -1)
            trace = trace.masked_fill(dropped[..., None], 0)
        return Slots(
            keys=_gather(self.keys, order),
            values=_gather(self.values, order),
            positions=positions,
            trace=trace,
            is_even=is_even,
        )

    def with_trace(self, trace: Tensor) -> Slots:
        """With another trace ``[B, H, K, C']``."""
        return replace(self, trace=trace)

    def repeat(self, copies: int) -> Slots:
        """The rows ``copies`` times over, copy by copy: ``[copies * B, …]``."""
        return Slots(
            keys=self.keys.repeat(copies, 1, 1, 1),
            values=self.values.repeat(copies, 1, 1, 1),
            positions=self.positions.repeat(copies, 1, 1),
            trace=self.trace.repeat(copies, 1, 1, 1),
            is_even=self.is_even,
        )

    def at_rest(self) -> Slots | PackedSlots:
        """In the form that holds no empty slot: itself when even, packed otherwise."""
        if self.is_even:
            return self
        occupied = self.positions >= 0
        return PackedSlots(
            keys=self.keys[occupied],
            values=self.values[occupied],
            positions=self.positions[occupied],
            trace=self.trace[occupied],
            lengths=occupied.sum(-1, dtype=torch.int32),
            longest=self.positions.shape[-1],
        )

    def at_work(self) -> Slots:
        """Itself."""
        return self

    @property
    def lengths(self) -> Tensor:
        """int32 ``[B, H]``: tokens held."""
        return (self.positions >= 0).sum(-1, dtype=torch.int32)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def state_bytes(self) -> int:
        """Bytes of what the memory adds: positions and traces."""
        return self.positions.nbytes + self.trace.nbytes


@dataclass(frozen=True)
class PackedSlots:
    """A layer's tokens at rest when heads or rows hold different numbers: one after the other, nothing between."""

    keys: Tensor
    """``[T, d]``, row by row, head by head."""
    values: Tensor
    """``[T, d]``"""
    positions: Tensor
    """int32 ``[T]``"""
    trace: Tensor
    """float32 ``[T, C]``"""
    lengths: Tensor
    """int32 ``[B, H]``: tokens held."""
    longest: int
    """Most tokens that any head holds."""

    def at_work(self) -> Slots:
        """Unpacked into padded slots."""
        occupied = self._occupied
        positions = self.positions.new_full(occupied.shape, -1)
        positions[occupied] = self.positions
        return Slots(
            keys=_scatter(self.keys, occupied),
            values=_scatter(self.values, occupied),
            positions=positions,
            trace=_scatter(self.trace, occupied),
            is_even=False,
        )

    def repeat(self, copies: int) -> Slots:
        """The rows ``copies`` times over, copy by copy: ``[copies * B, …]``."""
        return self.at_work().repeat(copies)

    @property
    def _occupied(self) -> Tensor:
        slots = torch.arange(self.longest, device=self.lengths.device)
        return slots >= (self.longest - self.lengths)[..., None]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def state_bytes(self) -> int:
        """Bytes of what the memory adds: positions, traces and lengths."""
        return self.positions.nbytes + self.trace.nbytes + self.lengths.nbytes


def _gather(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(2, order[..., None].expand(*order.shape, values.shape[-1]))


def _scatter(packed: Tensor, occupied: Tensor) -> Tensor:
    padded = packed.new_zeros(*occupied.shape, packed.shape[-1])
    padded[occupied] = packed
    return padded

"""The tokens that one layer holds while its attention runs, and at rest too where all heads hold as many.

Shapes: B rows, H KV heads, K slots, d head size, C trace channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.memory.kernels import kernels_for

LEAST_ROOM = 32
"""Tokens that fit behind the last one before all are moved: each decoded token costs a 32nd of a copy at most."""


class Aligned(NamedTuple):
    """A layer's tokens, aligned at the newest of as many places in every lane, and the block that comes next."""

    keys: Tensor
    """``[B, H, places + n, d]``"""
    values: Tensor
    """``[B, H, places + n, d]``; anything finite where a place is empty."""
    positions: Tensor
    """int32 ``[B, H, places + n]``; -1 where a place is empty."""
    trace: Tensor
    """float32 ``[B, H, K', C]``, as the tokens lay at the last update; that of the new tokens is zero."""
    sources: Tensor
    """int32 ``[B, H, places]``: the slot of ``trace`` that is each place's, -1 where a place is empty."""
    empty: Tensor
    """int32 ``[L]``: empty places before each lane's first token, which the host need not know."""

    @property
    def places(self) -> int:
        """Slots for tokens that are held."""
        return self.sources.shape[2]


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
    """float32 ``[B, H, K', C]``, zero where a slot is empty; of the first K' slots, the others' is still zero."""
    empty: tuple[int, ...]
    """Empty slots before each head's first token, row by row: known on the host without asking the device."""
    recent: tuple[Tensor, ...] = ()
    """Attention that the memory has not been told yet: float32 ``[B, H, n, K'']`` over the first K'' slots."""
    buffers: tuple[Tensor, Tensor, Tensor] | None = None
    """What ``keys``, ``values`` and ``positions`` are the beginning of, where there is room behind them."""

    @staticmethod
    def nothing(keys: Tensor, values: Tensor, trace_channels: int) -> Slots:
        """No tokens; shapes, dtypes and device as of ``keys [B, H, n, d]`` and ``values [B, H, n, d]``."""
        rows, heads = keys.shape[:2]
        return Slots(
            keys=keys.new_empty(rows, heads, 0, keys.shape[-1]),
            values=values.new_empty(rows, heads, 0, values.shape[-1]),
            positions=torch.empty(rows, heads, 0, dtype=torch.int32, device=keys.device),
            trace=torch.empty(rows, heads, 0, trace_channels, dtype=torch.float32, device=keys.device),
            empty=(0,) * (rows * heads),
        )

    @property
    def num_slots(self) -> int:
        """Slots of a head, K."""
        return self.positions.shape[2]

    @property
    def heads(self) -> int:
        """H."""
        return self.positions.shape[1]

    @property
    def is_even(self) -> bool:
        """Whether all rows and heads hold the same number of tokens, so that no slot is empty."""
        return not any(self.empty)

    def append(self, keys: Tensor, values: Tensor, first_position: int) -> Slots:
        """With new tokens ``[B, H, n, d]`` at consecutive positions; their traces are zero.

        Written behind the others where there is room: these slots must not be appended to again.
        """
        held, new = self.positions.shape[2], keys.shape[2]
        buffers = self.buffers
        if torch.is_grad_enabled():  # what a gradient is to be taken of must stay as it is
            buffers = self.moved(held + new)
        elif buffers is None or held + new > buffers[2].shape[2]:
            # Single tokens are followed by more of them, the block of a prompt by an eviction.
            buffers = self.moved(held + new + (max(LEAST_ROOM, held // LEAST_ROOM) if new == 1 else 0))
        positions: int | Tensor = first_position
        if new > 1:
            positions = torch.arange(first_position, first_position + new, dtype=torch.int32, device=keys.device)
        for buffer, added in zip(buffers, (keys, values), strict=False):
            buffer.narrow(2, held, new).copy_(added)
        buffers[2][:, :, held : held + new] = positions
        return self.in_buffers(buffers, held + new)

    def in_buffers(self, buffers: tuple[Tensor, Tensor, Tensor], count: int) -> Slots:
        """With the first ``count`` tokens of buffers in the place of its own."""
        keys, values, positions = (buffer.narrow(2, 0, count) for buffer in buffers)
        return replace(self, keys=keys, values=values, positions=positions, buffers=buffers)

    def moved(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens in buffers for ``capacity`` of them."""
        return roomy(self.keys, capacity, 2), roomy(self.values, capacity, 2), roomy(self.positions, capacity, 2)

    def select(self, keep: Tensor, budget: tuple[int, ...] | None = None) -> Slots:
        """Only the tokens where ``keep`` (bool ``[B, H, K]``) holds, in the same order, physically moved together.

        ``budget`` as of a decision.
        """
        rows, heads, num_slots = keep.shape
        if budget is None:
            counts: list[int] = keep.flatten(0, 1).sum(-1).tolist()  # the one time that the host asks the device
        else:
            counts = [min(most, num_slots - empty) for most, empty in zip(budget * rows, self.empty, strict=True)]
        longest = max(counts)
        empty = tuple(longest - count for count in counts)
        kernels = kernels_for(keep, "fused_selection")
        if kernels is not None and kernels.can_move(self.keys, self.values):
            nothing = self.keys[:, :, :0], self.values[:, :, :0]
            moved = kernels.moved(keep, longest, self.keys, self.values, self.positions, self.trace, *nothing)
            return Slots(moved.keys, moved.values, moved.positions, kernels.own_trace(moved), empty)
        total = longest * len(empty) - sum(empty)
        order = torch.nonzero_static(keep.flatten(), size=total)[:, 0]  # by lane, then in ascending order
        vacant = None
        if any(empty):
            vacant = vacant_slots(empty, longest, keep.device)
            order = order.new_zeros(vacant.shape).masked_scatter_(~vacant, order).flatten()

        def chosen(held: Tensor) -> Tensor:
            flat = held.reshape(rows * heads * num_slots, *held.shape[3:])
            return flat.index_select(0, order).view(rows, heads, longest, *held.shape[3:])

        positions, trace = chosen(self.positions), chosen(self.trace)
        if vacant is not None:
            positions = positions.masked_fill_(vacant.view_as(positions), -1)
            trace = trace.masked_fill_(vacant.view_as(positions)[..., None], 0)
        return Slots(chosen(self.keys), chosen(self.values), positions, trace, empty)

    def with_trace(self, trace: Tensor) -> Slots:
        """With another trace ``[B, H, K', C']``; nothing is left to tell the memory."""
        return replace(self, trace=trace, recent=())

    def with_recent(self, rows: Tensor) -> Slots:
        """With attention ``[B, H, n, K]`` that the memory is told later."""
        return replace(self, recent=(*self.recent, rows))

    @property
    def num_recent(self) -> int:
        """Rows of attention that the memory has not been told yet."""
        return sum(rows.shape[2] for rows in self.recent)

    def full_trace(self) -> Tensor:
        """The trace of all slots, ``[B, H, K, C]``."""
        return full_trace(self.trace, self.num_slots)

    def recent_rows(self) -> Tensor:
        """All of ``recent`` as one, ``[B, H, n, K]``."""
        return gathered_rows(self.recent, self.trace.new_empty(*self.positions.shape[:2], 0, self.num_slots))

    def repeat(self, copies: int) -> Slots:
        """The rows ``copies`` times over, copy by copy: ``[copies * B, …]``."""
        return Slots(
            keys=self.keys.repeat(copies, 1, 1, 1),
            values=self.values.repeat(copies, 1, 1, 1),
            positions=self.positions.repeat(copies, 1, 1),
            trace=self.trace.repeat(copies, 1, 1, 1),
            empty=self.empty * copies,
            recent=tuple(rows.repeat(copies, 1, 1, 1) for rows in self.recent),
        )

    def at_work(self) -> Slots:
        """Itself."""
        return self

    @property
    def lengths(self) -> Tensor:
        """int32 ``[B, H]`` on the CPU: tokens held."""
        return (self.num_slots - torch.tensor(self.empty, dtype=torch.int32)).view(self.positions.shape[0], -1)

    @property
    def row_tokens(self) -> NDArray[np.int64]:
        """``[B]``: tokens held by all heads."""
        rows, heads, num_slots = self.positions.shape
        held: NDArray[np.int64] = heads * num_slots - np.array(self.empty, np.int64).reshape(rows, heads).sum(-1)
        return held

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values, the room behind them included."""
        return self.keys.nbytes + self.values.nbytes + self.spare_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes of the room for more keys and values."""
        if self.buffers is None:
            return 0
        return sum(buffer.nbytes for buffer in self.buffers[:2]) - self.keys.nbytes - self.values.nbytes

    @property
    def state_bytes(self) -> int:
        """Bytes of what the memory adds: positions, traces and attention that it is yet to be told."""
        positions = self.buffers[2] if self.buffers else self.positions
        return positions.nbytes + self.trace.nbytes + stored_bytes(self.recent)

    @property
    def token_state_bytes(self) -> int:
        """Bytes of a token's position, trace and untold attention, however it is stored beside others."""
        return 4 * (1 + self.trace.shape[-1] + self.num_recent)


def roomy(held: Tensor, capacity: int, axis: int) -> Tensor:
    """A copy with anything behind its end along an axis."""
    buffer = held.new_empty(*held.shape[:axis], capacity, *held.shape[axis + 1 :])
    buffer.narrow(axis, 0, held.shape[axis]).copy_(held)
    return buffer


def full_trace(trace: Tensor, num_tokens: int) -> Tensor:
    """Of a trace ``[..., N', C]`` that of ``num_tokens``, whose newest are zero; in memory as a memory leaves it."""
    *outer, told, channels = trace.shape
    if told == num_tokens:
        return trace
    whole = trace.new_zeros(*outer, channels, num_tokens).mT
    whole[..., :told, :] = trace
    return whole


def gathered_rows(parts: Sequence[Tensor], none: Tensor) -> Tensor:
    """Rows of attention ``[..., n, N'']`` as one, ``[..., n, N]``, zero where there was no token yet.

    ``none`` is ``[..., 0, N]``.
    """
    num_tokens = none.shape[-1]
    if len(parts) == 1 and parts[0].shape[-1] == num_tokens:
        return parts[0]
    gathered = none.new_zeros(*none.shape[:-2], sum(part.shape[-2] for part in parts), num_tokens)
    start = 0
    for part in parts:
        gathered[..., start : start + part.shape[-2], : part.shape[-1]] = part
        start += part.shape[-2]
    return gathered


def stored_bytes(parts: Sequence[Tensor]) -> int:
    """Of what is behind tensors that may be views of something larger, of which a call that is replayed writes rows."""
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


def vacant_slots(empty: tuple[int, ...], num_slots: int, device: torch.device) -> Tensor:
    """Bool ``[L, K]``: the slots before each head's first token."""
    count = torch.tensor(empty).to(device, non_blocking=True)[:, None]
    return torch.arange(num_slots, device=device) < count

"""The tokens of a layer whose heads or rows hold different numbers: one after the other, nothing between.

What was there when they were packed is not moved again until the memory decides. Tokens decoded since, as
many in every head, are the *tail*: slots of their own, which grow in place. A decoded token attends to both where they
lie (``token_attention.py``).

Shapes: B rows, H KV heads, T packed tokens of all rows and heads together, L = B * H lanes, d head size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.memory.slots import Slots, stored_bytes, vacant_slots


class Paid(NamedTuple):
    """Attention of ``n`` queries, averaged over the query heads of a group."""

    packed: Tensor
    """float32 ``[n, T]``"""
    tail: Tensor
    """float32 ``[B, H, n, K]`` to the K tokens of each lane's tail."""


@dataclass(frozen=True)
class PackedSlots:
    """A layer's tokens, lane by lane (row by row, head by head), and behind those of each lane its part of the tail."""

    keys: Tensor
    """``[T, d]``"""
    values: Tensor
    """``[T, d]``"""
    positions: Tensor
    """int32 ``[T]``"""
    trace: Tensor
    """float32 ``[T, C]``"""
    recent: tuple[Tensor, ...]
    """Attention that the memory has not been told yet: float32 ``[n, T]``; what the tail received, it has itself."""
    counts: tuple[int, ...]
    """Tokens of each lane, the tail left out."""
    row_counts: tuple[int, ...]
    """Their sum by row."""
    starts: Tensor
    """int32 ``[L + 1]``: where the tokens of each lane begin, and where the last one's end."""
    tail: Slots
    """Tokens since."""

    @property
    def longest(self) -> int:
        """Most tokens of any lane, the tail left out."""
        return max(self.counts)

    @property
    def num_slots(self) -> int:
        """Slots of a head when unpacked."""
        return self.longest + self.tail.num_slots

    def append(self, keys: Tensor, values: Tensor, first_position: int) -> PackedSlots:
        """With new tokens ``[B, H, n, d]`` at consecutive positions; these slots must not be appended to again."""
        return replace(self, tail=self.tail.append(keys, values, first_position))

    def with_recent(self, paid: Paid) -> PackedSlots:
        """With attention that the memory is told later."""
        return replace(self, recent=(*self.recent, paid.packed), tail=self.tail.with_recent(paid.tail))

    def apart(self, rows: Tensor) -> Paid:
        """Of attention ``[B, H, n, longest + tail]``, aligned at the newest token, what the tokens held were paid."""
        longest = self.longest
        lanes = rows.flatten(0, 1)
        packed = [lane[:, longest - count : longest] for lane, count in zip(lanes, self.counts, strict=True)]
        return Paid(torch.cat(packed, dim=1), rows[..., longest:].contiguous())

    def with_trace(self, trace: Tensor, tail: Slots) -> PackedSlots:
        """With other traces ``[T, C']`` and a tail with its own; nothing is left to tell the memory."""
        return replace(self, trace=trace, recent=(), tail=tail)

    @property
    def num_recent(self) -> int:
        """Rows of attention that the memory has not been told yet."""
        return sum(rows.shape[0] for rows in self.recent)

    def at_work(self) -> Slots:
        """Unpacked into padded slots."""
        slots = self.unpacked(self.trace)
        if self.tail.trace.shape[2]:
            slots = slots.with_trace(torch.cat([slots.trace, self.tail.trace], dim=2))
        return replace(slots, recent=self._unpacked_recent())

    def in_view(self) -> Slots:
        """Unpacked, without traces: all that attention needs."""
        return self.unpacked(self.trace[:, :0])

    def unpacked(self, trace: Tensor) -> Slots:
        """Padded slots with a trace of these ``[T, channels]``."""
        tail, place = self.tail, self._places()
        slots = Slots(
            self._padded(self.keys, place),
            self._padded(self.values, place),
            self._padded(self.positions, place, -1),
            self._padded(trace, place),
            tuple(self.longest - count for count in self.counts),
        )
        if not tail.num_slots:
            return slots
        keys, values, positions = (
            torch.cat(both, dim=2)
            for both in ((slots.keys, tail.keys), (slots.values, tail.values), (slots.positions, tail.positions))
        )
        return replace(slots, keys=keys, values=values, positions=positions)

    def _unpacked_recent(self) -> tuple[Tensor, ...]:
        if not self.recent:
            return ()
        rows = torch.cat([part.T for part in self.recent], dim=1)
        packed = self._padded(rows, self._places()).transpose(2, 3)
        return (torch.cat([packed, self.tail.recent_rows()], dim=3),)

    def _places(self) -> Tensor:
        """int64 ``[T]``: where each token stands among the padded slots ``[L * longest]``."""
        empty = tuple(self.longest - count for count in self.counts)
        occupied = ~vacant_slots(empty, self.longest, self.keys.device)
        return torch.nonzero_static(occupied.flatten(), size=sum(self.counts))[:, 0]

    def _padded(self, packed: Tensor, place: Tensor, filling: int = 0) -> Tensor:
        rows, heads = self.tail.positions.shape[:2]
        slots = packed.new_full((len(self.counts) * self.longest, *packed.shape[1:]), filling)
        return slots.index_copy_(0, place, packed).view(rows, heads, self.longest, *packed.shape[1:])

    def repeat(self, copies: int) -> Slots:
        """The rows ``copies`` times over, copy by copy: ``[copies * B, …]``."""
        return self.at_work().repeat(copies)

    @property
    def is_even(self) -> bool:
        """Whether all rows and heads hold the same number of tokens: slots that do are not packed."""
        return False

    @property
    def lengths(self) -> Tensor:
        """int32 ``[B, H]`` on the CPU: tokens held."""
        packed = torch.tensor(self.counts, dtype=torch.int32).view(self.tail.positions.shape[0], -1)
        return packed + self.tail.num_slots

    @property
    def row_tokens(self) -> NDArray[np.int64]:
        """``[B]``: tokens held by all heads."""
        return np.array(self.row_counts, np.int64) + self.tail.positions.shape[1] * self.tail.num_slots

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values, the room behind the tail included."""
        return self.keys.nbytes + self.values.nbytes + self.tail.cache_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes of the room for more keys and values."""
        return self.tail.spare_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of what the memory adds: positions, traces, attention that it is yet to be told, where lanes begin."""
        recent = stored_bytes(self.recent)
        return self.positions.nbytes + self.trace.nbytes + recent + self.starts.nbytes + self.tail.state_bytes

    @property
    def token_state_bytes(self) -> int:
        """Bytes of a token's position, trace and untold attention, however it is stored beside others."""
        return 4 * (1 + self.trace.shape[-1] + self.num_recent)


def at_rest(held: Slots | PackedSlots) -> Slots | PackedSlots:
    """In the form that holds no empty slot: as it is when even or packed, packed otherwise."""
    return held if isinstance(held, PackedSlots) or held.is_even else packed(held)


def packed(slots: Slots) -> PackedSlots:
    """Its tokens moved together, behind them an empty tail."""
    longest = slots.num_slots
    counts = tuple(longest - empty for empty in slots.empty)
    occupied = ~vacant_slots(slots.empty, longest, slots.keys.device)
    place = torch.nonzero_static(occupied.flatten(), size=sum(counts))[:, 0]

    def chosen(held: Tensor) -> Tensor:
        return held.flatten(0, 2).index_select(0, place)

    recent = (slots.recent_rows().transpose(2, 3),) if slots.recent else ()
    return PackedSlots(
        keys=chosen(slots.keys),
        values=chosen(slots.values),
        positions=chosen(slots.positions),
        trace=chosen(slots.full_trace()),
        recent=tuple(chosen(rows).T.contiguous() for rows in recent),
        counts=counts,
        row_counts=tuple(slots.row_tokens.tolist()),
        starts=_starts(counts, slots.keys.device),
        tail=_empty_tail(slots, slots.positions.shape[0], slots.num_recent),
    )


def _starts(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Where as many tokens of each lane begin, and where the last one's end."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device, non_blocking=True)


def _empty_tail(like: Slots, rows: int, num_recent: int) -> Slots:
    """As many rows of attention as the packed tokens have are yet to be told of it: they saw none of its tokens."""
    shape = (rows, like.positions.shape[1], 0)
    tail = Slots.nothing(
        like.keys.new_empty(*shape, like.keys.shape[-1]),
        like.values.new_empty(*shape, like.values.shape[-1]),
        like.trace.shape[-1],
    )
    return tail.with_recent(like.trace.new_empty(*shape[:2], num_recent, 0)) if num_recent else tail


def joined(parts: Sequence[Slots | PackedSlots]) -> Slots | PackedSlots:
    """The rows of all parts, which have read as many tokens and told the memory as many, one after the other."""
    if len(parts) == 1:
        return parts[0]
    even = [part for part in parts if isinstance(part, Slots)]
    if len(even) == len(parts) and len({part.num_slots for part in even}) == 1:
        return Slots(
            keys=torch.cat([part.keys for part in even]),
            values=torch.cat([part.values for part in even]),
            positions=torch.cat([part.positions for part in even]),
            trace=torch.cat([part.full_trace() for part in even]),
            empty=sum((part.empty for part in even), ()),
            recent=(torch.cat([part.recent_rows() for part in even]),) if even[0].recent else (),
        )
    flat = [
        part if isinstance(part, PackedSlots) and not part.tail.num_slots else packed(part.at_work()) for part in parts
    ]
    counts, row_counts = (sum((part.counts for part in flat), ()), sum((part.row_counts for part in flat), ()))
    first = flat[0]
    return PackedSlots(
        keys=torch.cat([part.keys for part in flat]),
        values=torch.cat([part.values for part in flat]),
        positions=torch.cat([part.positions for part in flat]),
        trace=torch.cat([part.trace for part in flat]),
        recent=(torch.cat([part.recent[0] for part in flat], dim=1),) if first.recent else (),
        counts=counts,
        row_counts=row_counts,
        starts=_starts(counts, first.keys.device),
        tail=_empty_tail(first.tail, len(row_counts), first.num_recent),
    )

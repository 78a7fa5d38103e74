"""The tokens of a layer whose heads or rows hold different numbers: one after the other, nothing between.

What was there when they were packed lies lane by lane (row by row, head by head). Tokens decoded since, one in every
lane at a time, lie behind in the order in which they came: these are the *later* ones. So a decoded token moves nothing
while there is room, and attends to all where they lie (``token_attention.py``).

Shapes: B rows, H KV heads, L = B * H lanes, P packed tokens of all lanes together, K later ones of each lane,
N = P + K * L, d head size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.memory.slots import LEAST_ROOM, Slots, full_trace, gathered_rows, roomy, stored_bytes, vacant_slots


class Lanes:
    """Whose tokens lie where: lists that all states of a layer share from one packing to the next."""

    def __init__(self, counts: tuple[int, ...], heads: int, device: torch.device) -> None:
        """``counts``: packed tokens of each lane."""
        self.counts, self.heads = counts, heads
        self.row_counts: NDArray[np.int64] = np.array(counts, np.int64).reshape(-1, heads).sum(-1)
        """``[B]``: packed tokens of each row."""
        self.total, self.longest = sum(counts), max(counts)
        """Packed tokens of all lanes, and of the one that has most."""
        self.starts = torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device, non_blocking=True)
        """int32 ``[L + 1]``: where the packed tokens of each lane begin, and where the last one's end."""
        self._others: Tensor | None = None

    @property
    def rows(self) -> int:
        """B."""
        return len(self.row_counts)

    def others(self, num_tokens: int) -> Tensor:
        """Of so many tokens, later ones included, which are another lane's: bool ``[L, 1, N]``."""
        if self._others is None or self._others.shape[-1] < num_tokens:
            lane = torch.arange(len(self.counts), device=self.starts.device)
            counts = torch.tensor(self.counts, device=lane.device)
            places = (num_tokens - self.total) // len(lane) + LEAST_ROOM
            owner = torch.cat([lane.repeat_interleave(counts), lane.repeat(places)])
            self._others = owner != lane[:, None, None]
        return self._others[..., :num_tokens]

    @property
    def nbytes(self) -> int:
        """Of the lists, and of what :meth:`others` has made."""
        return self.starts.nbytes + (0 if self._others is None else self._others.nbytes)


@dataclass(frozen=True)
class PackedSlots:
    """A layer's tokens, packed ones first."""

    keys: Tensor
    """``[N, d]``"""
    values: Tensor
    """``[N, d]``"""
    positions: Tensor
    """int32 ``[N]``"""
    trace: Tensor
    """float32 ``[N', C]``; of the first N' tokens, the others' is still zero."""
    recent: tuple[Tensor, ...]
    """Attention that the memory has not been told yet: float32 ``[n, N'']`` over the first N'' tokens."""
    lanes: Lanes
    buffers: tuple[Tensor, Tensor, Tensor] | None = None
    """What ``keys``, ``values`` and ``positions`` are the beginning of, where there is room behind them."""

    @property
    def num_later(self) -> int:
        """K."""
        return (self.keys.shape[0] - self.lanes.total) // len(self.lanes.counts)

    @property
    def num_slots(self) -> int:
        """Slots of a head when unpacked."""
        return self.lanes.longest + self.num_later

    def append(self, key: Tensor, value: Tensor, position: int) -> PackedSlots:
        """With one new token in every lane, ``[B, H, 1, d]``; these slots must not be appended to again."""
        held, new = self.keys.shape[0], len(self.lanes.counts)
        buffers = self.buffers
        if torch.is_grad_enabled():  # what a gradient is to be taken of must stay as it is
            buffers = self.moved(held + new)
        elif buffers is None or held + new > buffers[2].shape[0]:
            buffers = self.moved(held + new * max(LEAST_ROOM, held // (new * LEAST_ROOM)))
        for buffer, added in zip(buffers, (key, value), strict=False):
            buffer.narrow(0, held, new).copy_(added.flatten(0, 2))
        buffers[2].narrow(0, held, new).fill_(position)
        return self.in_buffers(buffers, held + new)

    def in_buffers(self, buffers: tuple[Tensor, Tensor, Tensor], count: int) -> PackedSlots:
        """With the first ``count`` tokens of buffers in the place of its own."""
        keys, values, positions = (buffer.narrow(0, 0, count) for buffer in buffers)
        return replace(self, keys=keys, values=values, positions=positions, buffers=buffers)

    def moved(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens in buffers for ``capacity`` of them."""
        return roomy(self.keys, capacity, 0), roomy(self.values, capacity, 0), roomy(self.positions, capacity, 0)

    def later(self, tensor: Tensor) -> Tensor:
        """Of ``tensor [N, …]`` the later tokens' part, by lane, as a view: ``[B, H, K, …]``."""
        behind = tensor[self.lanes.total :]
        return behind.view(self.num_later, self.lanes.rows, self.lanes.heads, *behind.shape[1:]).movedim(0, 2)

    def with_recent(self, paid: Tensor) -> PackedSlots:
        """With attention ``[n, N]`` that the memory is told later."""
        return replace(self, recent=(*self.recent, paid))

    def apart(self, rows: Tensor) -> Tensor:
        """Of attention ``[B, H, n, slots]``, aligned at the newest token, what each token was paid: ``[n, N]``."""
        longest, lanes = self.lanes.longest, rows.flatten(0, 1)
        packed = [lane[:, longest - count : longest] for lane, count in zip(lanes, self.lanes.counts, strict=True)]
        return torch.cat([*packed, lanes[..., longest:].permute(1, 2, 0).flatten(1)], dim=1)

    def with_trace(self, trace: Tensor) -> PackedSlots:
        """With another trace ``[N', C']``; nothing is left to tell the memory."""
        return replace(self, trace=trace, recent=())

    def full_trace(self) -> Tensor:
        """The trace of all tokens, ``[N, C]``."""
        return full_trace(self.trace, self.keys.shape[0])

    def recent_rows(self) -> Tensor:
        """All of ``recent`` as one, ``[n, N]``."""
        return gathered_rows(self.recent, self.trace.new_empty(0, self.keys.shape[0]))

    @property
    def num_recent(self) -> int:
        """Rows of attention that the memory has not been told yet."""
        return sum(rows.shape[0] for rows in self.recent)

    def at_work(self) -> Slots:
        """Unpacked into padded slots."""
        slots = self._unpacked(self.full_trace())
        if not self.recent:
            return slots
        return replace(slots, recent=(self._padded(self.recent_rows().T, self._places()).transpose(2, 3),))

    def in_view(self) -> Slots:
        """Unpacked, without traces: all that attention needs."""
        return self._unpacked(self.keys.new_empty(self.keys.shape[0], 0, dtype=torch.float32))

    def _unpacked(self, trace: Tensor) -> Slots:
        place = self._places()
        return Slots(
            self._padded(self.keys, place),
            self._padded(self.values, place),
            self._padded(self.positions, place, -1),
            self._padded(trace, place),
            tuple(self.lanes.longest - count for count in self.lanes.counts),
        )

    def _places(self) -> Tensor:
        """int64 ``[P]``: where each packed token stands among the padded slots ``[L * longest]``."""
        longest = self.lanes.longest
        empty = tuple(longest - count for count in self.lanes.counts)
        occupied = ~vacant_slots(empty, longest, self.keys.device)
        return torch.nonzero_static(occupied.flatten(), size=self.lanes.total)[:, 0]

    def _padded(self, held: Tensor, place: Tensor, filling: int = 0) -> Tensor:
        lanes = self.lanes
        slots = held.new_full((len(lanes.counts) * lanes.longest, *held.shape[1:]), filling)
        slots = slots.index_copy_(0, place, held[: lanes.total])
        slots = slots.view(lanes.rows, lanes.heads, lanes.longest, *held.shape[1:])
        return torch.cat([slots, self.later(held)], dim=2) if self.num_later else slots

    def repeat(self, copies: int) -> Slots:
        """The rows ``copies`` times over, copy by copy: ``[copies * B, …]``."""
        return self.at_work().repeat(copies)

    @property
    def is_even(self) -> bool:
        """Whether all rows and heads hold the same number of tokens: slots that do are not packed."""
        return False

    @property
    def heads(self) -> int:
        """H."""
        return self.lanes.heads

    @property
    def lengths(self) -> Tensor:
        """int32 ``[B, H]`` on the CPU: tokens held."""
        return torch.tensor(self.lanes.counts, dtype=torch.int32).view(-1, self.lanes.heads) + self.num_later

    @property
    def row_tokens(self) -> NDArray[np.int64]:
        """``[B]``: tokens held by all heads."""
        return self.lanes.row_counts + self.lanes.heads * self.num_later

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
        """Bytes of what the memory adds: positions, traces, attention that it is yet to be told, lists of lanes."""
        positions = self.buffers[2] if self.buffers else self.positions
        return positions.nbytes + self.trace.nbytes + stored_bytes(self.recent) + self.lanes.nbytes

    @property
    def token_state_bytes(self) -> int:
        """Bytes of a token's position, trace and untold attention, however it is stored beside others."""
        return 4 * (1 + self.trace.shape[-1] + self.num_recent)


def at_rest(held: Slots | PackedSlots) -> Slots | PackedSlots:
    """In the form that holds no empty slot: as it is when even or packed, packed otherwise."""
    return held if isinstance(held, PackedSlots) or held.is_even else packed(held)


def packed(slots: Slots) -> PackedSlots:
    """Its tokens moved together."""
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
        lanes=Lanes(counts, slots.heads, slots.keys.device),
    )


def duplicated(held: Slots | PackedSlots) -> Slots | PackedSlots:
    """The same in memory of its own, so that both can go on; no room behind."""
    keys, values, positions = held.keys.clone(), held.values.clone(), held.positions.clone()
    trace, recent = held.trace.clone(), tuple(rows.clone() for rows in held.recent)
    return replace(held, keys=keys, values=values, positions=positions, trace=trace, recent=recent, buffers=None)


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
    flat = [part if isinstance(part, PackedSlots) and not part.num_later else packed(part.at_work()) for part in parts]
    first = flat[0]
    return PackedSlots(
        keys=torch.cat([part.keys for part in flat]),
        values=torch.cat([part.values for part in flat]),
        positions=torch.cat([part.positions for part in flat]),
        trace=torch.cat([part.trace for part in flat]),
        recent=(torch.cat([part.recent_rows() for part in flat], dim=1),) if first.recent else (),
        lanes=Lanes(sum((part.lanes.counts for part in flat), ()), first.heads, first.keys.device),
    )

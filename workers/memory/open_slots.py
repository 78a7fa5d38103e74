"""A layer's tokens with open places behind them, for calls that are recorded once and replayed for many tokens.

Nothing in a replayed call can depend on what the host knows: which place a token takes, and so which are still open,
stands in tensors that all layers share (:class:`Places`).

Shapes: B rows, H KV heads, r query heads per KV head, K places, N tokens that are packed and places behind
them, d head size; L = B * H lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.memory.memory import Memory
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots
from workers.memory.slots import Slots
from workers.memory.token_attention import attend_packed, attend_token, can_attend_packed
from workers.memory.watching import RIPE_ROWS, told, told_packed


class Places:
    """Where the token of a call goes, on the device; set by the host before each call."""

    def __init__(self, room: int, device: torch.device) -> None:
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        """Which of the ``room`` places behind the tokens held it takes."""
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        """Which of the rows of attention that the memory is told of together is its own."""
        self._all = torch.arange(room, device=device)

    @property
    def room(self) -> int:
        """Tokens that can come."""
        return len(self._all)

    def open(self) -> Tensor:
        """Which places no token has taken yet, bool ``[room]``."""
        return self._all > self.token


def can_open(held: Slots | PackedSlots | None, options: AttentionOptions | None) -> bool:
    """Whether a layer that has read something can have open places behind what it holds."""
    if held is None or options is None or options.sliding_window is not None:
        return False
    return isinstance(held, Slots) or can_attend_packed(held, options)


def opened(
    held: Slots | PackedSlots, places: Places, seen_tokens: int, *, reads_attention: bool
) -> OpenSlots | OpenPacked:
    """Places for the next tokens of a text of which ``seen_tokens`` were read; slots ``held`` have no gaps."""
    if isinstance(held, Slots):
        return OpenSlots.after(held, places, seen_tokens, reads_attention=reads_attention)
    return OpenPacked.after(held, places, seen_tokens, reads_attention=reads_attention)


@dataclass
class OpenSlots:
    """As many tokens in every lane, ``room`` places behind them, and the rows of attention of the newest tokens."""

    held: Slots
    """What is held now. Its buffers have ``first + room`` places, and their positions are all filled in."""
    first: int
    """Tokens held when the places were made."""
    places: Places
    rows: Tensor | None
    """float32 ``[B, H, RIPE_ROWS, K]``; None for a memory that does not read attention."""

    @staticmethod
    def after(held: Slots, places: Places, seen_tokens: int, *, reads_attention: bool) -> OpenSlots:
        """See :func:`opened`."""
        first, room = held.num_slots, places.room
        buffers = held.moved(first + room)
        for tensor in buffers[:2]:
            tensor[:, :, first:] = 0  # weights of open places are zero, and so must be what they are multiplied with
        buffers[2][:, :, first:] = _next_positions(seen_tokens, places)
        rows = None
        if reads_attention:
            rows = held.trace.new_zeros(*held.positions.shape[:2], RIPE_ROWS, first + room)
            rows[:, :, : held.num_recent, :first] = held.recent_rows()
        return OpenSlots(held.in_buffers(buffers, first), first, places, rows)

    @property
    def num_taken(self) -> int:
        """Places that have a token."""
        return self.held.num_slots - self.first

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Take in one token, ``key`` and ``value [B, H, 1, d]``, and attend: ``query [B, H * r, 1, d]`` likewise."""
        assert self.held.buffers is not None
        keys, values, _ = self.held.buffers
        place = self.places.token + self.first
        keys.index_copy_(2, place, key)
        values.index_copy_(2, place, value)
        output, paid = attend_token(query, keys, values, options, self.places.open())
        if self.rows is not None:
            self.rows.index_copy_(2, self.places.row, paid)
        return output

    def grow(self, memory: Memory) -> None:
        """Hold the token of the last call; the memory is told when enough of them are yet to be told."""
        assert self.held.buffers is not None
        count = self.held.num_slots + 1
        recent = () if self.rows is None else (self.rows[:, :, : self.held.num_recent + 1, :count],)
        grown = replace(self.held.in_buffers(self.held.buffers, count), recent=recent)
        self.held = told(grown, memory) if grown.num_recent >= RIPE_ROWS else grown


@dataclass
class OpenPacked:
    """As :class:`OpenSlots`, of packed tokens."""

    held: PackedSlots
    """What is held now. Its buffers have places for ``room`` more tokens of every lane than ``first``."""
    first: int
    """Later tokens of each lane that were held when the places were made."""
    places: Places
    rows: Tensor | None
    """float32 ``[RIPE_ROWS, N]``; None for a memory that does not read attention."""

    @staticmethod
    def after(held: PackedSlots, places: Places, seen_tokens: int, *, reads_attention: bool) -> OpenPacked:
        """See :func:`opened`."""
        first, num_tokens, room = held.num_later, held.keys.shape[0], places.room
        buffers = held.moved(num_tokens + room * len(held.lanes.counts))
        for tensor in buffers[:2]:
            tensor[num_tokens:] = 0  # weights of open places are zero, and so must be what they are multiplied with
        buffers[2][num_tokens:].view(room, -1)[:] = _next_positions(seen_tokens, places)[:, None]
        rows = None
        if reads_attention:
            rows = held.trace.new_zeros(RIPE_ROWS, buffers[2].shape[0])
            rows[: held.num_recent, :num_tokens] = held.recent_rows()
        return OpenPacked(held.in_buffers(buffers, num_tokens), first, places, rows)

    @property
    def num_taken(self) -> int:
        """Places that have a token."""
        return self.held.num_later - self.first

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """As :meth:`OpenSlots.attend`."""
        assert self.held.buffers is not None
        lanes = self.held.lanes
        place, first = self.places.token, lanes.total + self.first * len(lanes.counts)
        for buffer, added in zip(self.held.buffers, (key, value), strict=False):
            behind = buffer[first:].view(self.places.room, *added.shape[:2], added.shape[3])
            behind.index_copy_(0, place, added.movedim(2, 0))
        everything = self.held.in_buffers(self.held.buffers, self.held.buffers[2].shape[0])
        output, paid = attend_packed(query, everything, 0, options, self.places.open())
        if self.rows is not None:
            self.rows.index_copy_(0, self.places.row, paid)
        return output

    def grow(self, memory: Memory) -> None:
        """As :meth:`OpenSlots.grow`."""
        assert self.held.buffers is not None
        count = self.held.keys.shape[0] + len(self.held.lanes.counts)
        recent = () if self.rows is None else (self.rows[: self.held.num_recent + 1, :count],)
        grown = replace(self.held.in_buffers(self.held.buffers, count), recent=recent)
        self.held = told_packed(grown, memory) if grown.num_recent >= RIPE_ROWS else grown


def _next_positions(seen_tokens: int, places: Places) -> Tensor:
    """int32 ``[room]``, of a text of which so many tokens were read."""
    return torch.arange(seen_tokens, seen_tokens + places.room, dtype=torch.int32, device=places.token.device)

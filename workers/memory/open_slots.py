"""A layer's tokens with open places behind them, for calls that are recorded once and replayed for many tokens.

Nothing in a replayed call can depend on what the host knows: which place a token takes, and so which are still open,
stands in tensors that all layers share (:class:`Places`).

Shapes: B rows, H KV heads, r query heads per KV head, K places, d head size; L = B * H lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.memory.options import AttentionOptions
from workers.memory.slots import Slots
from workers.memory.watching import RIPE_ROWS, attend_token


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


@dataclass
class OpenSlots:
    """As many tokens in every lane, ``room`` places behind them, and the rows of attention of the newest tokens."""

    slots: Slots
    """What is held now. Its buffers have ``first + room`` places, and their positions are all filled in."""
    first: int
    """Tokens held when the places were made."""
    places: Places
    rows: Tensor | None
    """float32 ``[B, H, RIPE_ROWS, K]``; None for a memory that does not read attention."""

    @staticmethod
    def after(held: Slots, places: Places, seen_tokens: int, *, reads_attention: bool) -> OpenSlots:
        """Places for the next ``room`` tokens of a text of which ``seen_tokens`` were read; ``held`` has no gaps."""
        first, room = held.num_slots, places.room
        buffers = held.moved(first + room)
        for tensor in buffers[:2]:
            tensor[:, :, first:] = 0  # weights of open places are zero, and so must be what they are multiplied with
        buffers[2][:, :, first:] = torch.arange(
            seen_tokens, seen_tokens + room, dtype=torch.int32, device=places.token.device
        )
        rows = None
        if reads_attention:
            rows = held.trace.new_zeros(*held.positions.shape[:2], RIPE_ROWS, first + room)
            rows[:, :, : held.num_recent, :first] = held.recent_rows()
        return OpenSlots(held.in_buffers(buffers, first), first, places, rows)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Take in one token, ``key`` and ``value [B, H, 1, d]``, and attend: ``query [B, H * r, 1, d]`` likewise."""
        assert self.slots.buffers is not None
        keys, values, _ = self.slots.buffers
        place = self.places.token + self.first
        keys.index_copy_(2, place, key)
        values.index_copy_(2, place, value)
        output, paid = attend_token(query, keys, values, options, self.places.open())
        if self.rows is not None:
            self.rows.index_copy_(2, self.places.row, paid)
        return output

    def grown(self) -> Slots:
        """With the token of the last call among the slots, and its row of attention among those not told yet."""
        assert self.slots.buffers is not None
        count = self.slots.num_slots + 1
        recent = () if self.rows is None else (self.rows[:, :, : self.slots.num_recent + 1, :count],)
        return replace(self.slots.in_buffers(self.slots.buffers, count), recent=recent)

"""The account of a cache's bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.memory.padding import Cohort
from workers.memory.slots import Slots


@dataclass
class Meter:
    """Bytes of keys and values by row, as they come and go: now, at the peak, and summed over the tokens read."""

    now: Tensor | None = None
    """int64 ``[B]``: all layers together."""
    peak: Tensor | None = None
    """int64 ``[B]``: highest value of ``now``, reached before an eviction."""
    area: Tensor | None = None
    """int64 ``[B]``: sum over the tokens read of the bytes held after each."""
    highest: int = 0
    """Most bytes that all rows held together."""

    def appended(self, slots: Slots, new_tokens: int, cohort: Cohort, num_rows: int) -> None:
        """``new_tokens`` were appended to the rows of a cohort; ``slots`` holds them already."""
        rows, heads = slots.positions.shape[:2]
        token_bytes = _token_bytes(slots)
        if self.now is None or self.peak is None or self.area is None:
            self.now, self.peak, self.area = (torch.zeros(3, num_rows, dtype=torch.int64)).unbind()
        grown = heads * new_tokens * token_bytes
        if slots.is_even:
            held = torch.full((rows,), heads * slots.positions.shape[-1] * token_bytes)
        else:
            held = slots.lengths.sum(-1).cpu() * token_bytes
        # Bytes of this layer after each new token: before + 1, before + 2, … tokens in every head.
        area = new_tokens * (held - grown) + heads * token_bytes * new_tokens * (new_tokens + 1) // 2
        self.now = _added(self.now, torch.full((rows,), grown), cohort)
        self.peak = torch.maximum(self.peak, self.now)
        self.area = _added(self.area, area, cohort)
        self.highest = max(self.highest, int(self.now.sum()))

    def evicted(self, before: Slots, after: Slots, cohort: Cohort) -> None:
        """``before`` became ``after`` at the newest token."""
        assert self.now is not None
        assert self.area is not None
        dropped = (before.lengths.sum(-1) - after.lengths.sum(-1)).cpu() * _token_bytes(before)
        self.now = _added(self.now, -dropped, cohort)
        self.area = _added(self.area, -dropped, cohort)

    def repeat(self, copies: int) -> None:
        """Follow the rows of a branched cache."""
        for name in ("now", "peak", "area"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.repeat(copies))
        self.highest *= copies


def _added(total: Tensor, change: Tensor, cohort: Cohort) -> Tensor:
    """``total [B]`` with ``change`` on the rows of a cohort, as a new tensor."""
    return total + change if cohort.rows is None else total.index_add(0, cohort.rows.cpu(), change)


def _token_bytes(slots: Slots) -> int:
    return slots.keys.shape[-1] * slots.keys.itemsize + slots.values.shape[-1] * slots.values.itemsize

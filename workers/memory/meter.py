"""The account of a cache's bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.memory.padding import Cohort
from workers.memory.slots import Slots


class Meter:
    """Bytes of keys and values by row, as they come and go: now, at the peak, and summed over the tokens read.

    What all rows have in common is counted in plain numbers until the rows begin to differ: a decoded token then costs
    a few additions, and the device nothing.
    """

    def __init__(self) -> None:
        self._now: Tensor | None = None
        self._peak: Tensor | None = None
        self._area: Tensor | None = None
        self._highest = 0
        self._common_now = self._common_area = 0

    @property
    def now(self) -> Tensor | None:
        """int64 ``[B]``: all layers together."""
        self._settle()
        return self._now

    @property
    def peak(self) -> Tensor | None:
        """int64 ``[B]``: highest value of ``now``, reached before an eviction."""
        self._settle()
        return self._peak

    @property
    def area(self) -> Tensor | None:
        """int64 ``[B]``: sum over the tokens read of the bytes held after each."""
        self._settle()
        return self._area

    @property
    def highest(self) -> int:
        """Most bytes that all rows held together."""
        self._settle()
        return self._highest

    def appended(self, slots: Slots, new_tokens: int, cohort: Cohort, num_rows: int) -> None:
        """``new_tokens`` were appended to the rows of a cohort; ``slots`` holds them already."""
        rows, heads, num_slots = slots.positions.shape
        token_bytes = _token_bytes(slots)
        if self._now is None:
            self._now, self._peak, self._area = torch.zeros(3, num_rows, dtype=torch.int64).unbind()
        grown = heads * new_tokens * token_bytes
        # Bytes of this layer after each new token: before + 1, before + 2, … tokens in every head.
        growth = heads * token_bytes * new_tokens * (new_tokens + 1) // 2
        if cohort.rows is None and slots.is_even:
            self._common_now += grown
            self._common_area += new_tokens * (heads * num_slots * token_bytes - grown) + growth
            return
        self._settle()
        held = slots.lengths.sum(-1) * token_bytes
        assert self._area is not None
        self._now = _added(self._now, torch.full((rows,), grown), cohort)
        self._area = _added(self._area, new_tokens * (held - grown) + growth, cohort)
        self._settle()

    def evicted(self, before: Slots, after: Slots, cohort: Cohort) -> None:
        """``before`` became ``after`` at the newest token."""
        self._settle()
        assert self._now is not None
        assert self._area is not None
        dropped = (before.lengths.sum(-1) - after.lengths.sum(-1)) * _token_bytes(before)
        self._now = _added(self._now, -dropped, cohort)
        self._area = _added(self._area, -dropped, cohort)

    def repeat(self, copies: int) -> None:
        """Follow the rows of a branched cache."""
        self._settle()
        if self._now is not None and self._peak is not None and self._area is not None:
            self._now, self._peak, self._area = (x.repeat(copies) for x in (self._now, self._peak, self._area))
        self._highest *= copies

    def _settle(self) -> None:
        """Put what was counted for all rows on each; between evictions bytes only grow, so the last are the most."""
        if self._now is None or self._peak is None or self._area is None:
            return
        self._now, self._area = self._now + self._common_now, self._area + self._common_area
        self._common_now = self._common_area = 0
        self._peak = torch.maximum(self._peak, self._now)
        self._highest = max(self._highest, int(self._now.sum()))


def _added(total: Tensor, change: Tensor, cohort: Cohort) -> Tensor:
    """``total [B]`` with ``change`` on the rows of a cohort, as a new tensor."""
    return total + change if cohort.rows is None else total.index_add(0, cohort.rows.cpu(), change)


def _token_bytes(slots: Slots) -> int:
    return slots.keys.shape[-1] * slots.keys.itemsize + slots.values.shape[-1] * slots.values.itemsize

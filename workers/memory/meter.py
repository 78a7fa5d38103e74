"""The account of a cache's bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.memory.packed import Lanes, PackedSlots
from workers.memory.padding import Cohort
from workers.memory.slots import Slots

Counts = NDArray[np.int64]


class Meter:
    """Bytes of keys and values by row, as they come and go: now, at the peak, and summed over the tokens read.

    What all rows have in common is counted in plain numbers until the rows begin to differ: a decoded token then costs
    a few additions, and the device nothing. The rest is numpy's, whose calls cost the host less than torch's.
    """

    def __init__(self) -> None:
        self._now: Counts | None = None
        self._peak: Counts | None = None
        self._area: Counts | None = None
        self._highest = 0
        self._common_now = self._common_area = 0
        self._lanes_area: dict[Lanes, int] = {}
        """By layers' lanes, times the bytes of a packed token: how many tokens were read with these held."""

    @property
    def now(self) -> Tensor | None:
        """int64 ``[B]``: all layers together."""
        self._settle()
        return None if self._now is None else torch.from_numpy(self._now)

    @property
    def peak(self) -> Tensor | None:
        """int64 ``[B]``: highest value of ``now``, reached before an eviction."""
        self._settle()
        return None if self._peak is None else torch.from_numpy(self._peak)

    @property
    def area(self) -> Tensor | None:
        """int64 ``[B]``: sum over the tokens read of the bytes held after each."""
        self._settle()
        return None if self._area is None else torch.from_numpy(self._area)

    @property
    def highest(self) -> int:
        """Most bytes that all rows held together."""
        self._settle()
        return self._highest

    def appended(self, slots: Slots | PackedSlots, new_tokens: int, cohort: Cohort, num_rows: int) -> None:
        """``new_tokens`` were appended to the rows of a cohort; ``slots`` holds them already."""
        heads, token_bytes = slots.heads, _token_bytes(slots)
        if self._now is None or self._area is None:
            self._now, self._peak, self._area = np.zeros((3, num_rows), np.int64)
        grown = heads * new_tokens * token_bytes
        # Bytes of this layer after each new token: before + 1, before + 2, … tokens in every head.
        growth = heads * token_bytes * new_tokens * (new_tokens + 1) // 2 - new_tokens * grown
        if cohort.rows is None:
            self._common_now += grown
            self._common_area += growth
            if isinstance(slots, PackedSlots):
                self._common_area += new_tokens * heads * slots.num_later * token_bytes
                self._lanes_area[slots.lanes] = self._lanes_area.get(slots.lanes, 0) + new_tokens * token_bytes
            elif slots.is_even:
                self._common_area += new_tokens * heads * slots.num_slots * token_bytes
            else:
                self._settle()  # of lanes that are packed anew after this
                self._area = self._area + new_tokens * token_bytes * slots.row_tokens
            return
        self._settle()
        held = slots.row_tokens
        self._now = _added(self._now, np.full_like(held, grown), cohort)
        self._area = _added(self._area, new_tokens * token_bytes * held + growth, cohort)
        self._settle()

    def evicted(self, dropped: Counts, slots: Slots | PackedSlots, cohort: Cohort) -> None:
        """At the newest token so many tokens ``[B]`` were dropped, of the size of those in ``slots``."""
        self._settle()
        assert self._now is not None
        assert self._area is not None
        dropped_bytes = dropped * _token_bytes(slots)
        self._now = _added(self._now, -dropped_bytes, cohort)
        self._area = _added(self._area, -dropped_bytes, cohort)

    def repeated(self, copies: int) -> Meter:
        """That of a branched cache."""
        self._settle()
        meter = Meter()
        if self._now is not None and self._peak is not None and self._area is not None:
            meter._now, meter._peak, meter._area = (np.tile(x, copies) for x in (self._now, self._peak, self._area))
        meter._highest = self._highest * copies
        return meter

    @staticmethod
    def joined(meters: Sequence[Meter]) -> Meter:
        """That of rows which were read one group after the other: each group's peak came on top of those before it."""
        meter, before = Meter(), 0
        for part in meters:
            meter._highest = max(meter._highest, before + part.highest)
            before += 0 if part.now is None else int(part.now.sum())
        columns = [(part._now, part._peak, part._area) for part in meters]
        if all(now is not None for now, _, _ in columns):
            meter._now, meter._peak, meter._area = (
                np.concatenate([x for x in column if x is not None]) for column in zip(*columns, strict=True)
            )
        return meter

    def _settle(self) -> None:
        """Put what was counted for all rows on each; between evictions bytes only grow, so the last are the most."""
        if self._now is None or self._peak is None or self._area is None:
            return
        self._now, self._area = self._now + self._common_now, self._area + self._common_area
        for lanes, times in self._lanes_area.items():
            self._area = self._area + times * lanes.row_counts
        self._common_now, self._common_area, self._lanes_area = 0, 0, {}
        self._peak = np.maximum(self._peak, self._now)
        self._highest = max(self._highest, int(self._now.sum()))


def _added(total: Counts, change: Counts, cohort: Cohort) -> Counts:
    """``total [B]`` with ``change`` on the rows of a cohort, as a new array."""
    if cohort.rows is None:
        return total + change
    added = total.copy()
    added[cohort.rows.cpu().numpy()] += change
    return added


def _token_bytes(slots: Slots | PackedSlots) -> int:
    return slots.keys.shape[-1] * slots.keys.itemsize + slots.values.shape[-1] * slots.values.itemsize

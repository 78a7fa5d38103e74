"""Slots after an eviction, when the host does not know yet how many tokens are left.

To ask an accelerator that at once would leave it with nothing to do until the answer is back and the next work is
launched. So where the next block's attention can do without (its kernels ask the device), the host goes on, as if
nothing had been dropped, and learns the counts a block later, when they have long been there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.memory.kernels import kernels_for
from workers.memory.slots import Slots


class HostCopy:
    """Integers on their way from the device to the host."""

    def __init__(self, asked: Tensor) -> None:
        self._values, self._has_come = asked, None
        if asked.is_cuda:
            self._values = torch.empty(asked.shape, dtype=asked.dtype, pin_memory=True)
            self._values.copy_(asked, non_blocking=True)
            self._has_come = torch.cuda.Event()
            self._has_come.record()

    def wait(self) -> list[int]:
        """The integers."""
        if self._has_come is not None:
            self._has_come.synchronize()
        values: list[int] = self._values.tolist()
        return values


@dataclass(frozen=True)
class UnsettledSlots:
    """Tokens aligned at the newest, padded to as many slots as there were before the eviction."""

    slots: Slots
    """Its ``empty`` is not to be relied on."""
    empty: Tensor
    """int32 ``[L]`` on the device: empty slots before each head's first token."""
    padded: int
    """Slots just after the eviction."""
    kept: HostCopy
    """Tokens of each lane just after the eviction."""
    former_row_tokens: NDArray[np.int64]
    """``[B]``: tokens held before the eviction."""

    @staticmethod
    def of(slots: Slots, keep: Tensor, room: int) -> UnsettledSlots:
        """What is left of ``slots`` where ``keep`` (bool ``[B, H, K]``) holds, with ``room`` behind; by kernels."""
        kernels = kernels_for(keep, "fused_selection")
        assert kernels is not None
        padded = slots.num_slots
        order, counts = kernels.places(keep)
        kept = HostCopy(counts)
        *buffers, trace = kernels.gathered(
            order, counts, padded, room, slots.keys, slots.values, slots.positions, slots.trace
        )
        moved = slots.with_trace(trace).in_buffers((buffers[0], buffers[1], buffers[2]), padded)
        return UnsettledSlots(moved, padded - counts, padded, kept, slots.row_tokens)

    def append(self, keys: Tensor, values: Tensor, first_position: int) -> UnsettledSlots:
        """As :meth:`Slots.append`."""
        return replace(self, slots=self.slots.append(keys, values, first_position))

    def with_trace(self, trace: Tensor) -> UnsettledSlots:
        """As :meth:`Slots.with_trace`."""
        return replace(self, slots=self.slots.with_trace(trace))

    def at_work(self) -> UnsettledSlots:
        """Itself."""
        return self

    def settled(self) -> Slots:
        """With what the host now knows: padded to the longest head and no more. Nothing is moved."""
        kept = self.kept.wait()
        longest = max(kept)
        surplus = self.padded - longest
        held = self.slots
        assert held.buffers is not None
        keys, values, positions, trace, *buffers = (
            tensor.narrow(2, surplus, tensor.shape[2] - surplus)
            for tensor in (held.keys, held.values, held.positions, held.trace, *held.buffers)
        )
        empty = tuple(longest - count for count in kept)
        return Slots(keys, values, positions, trace, empty, buffers=(buffers[0], buffers[1], buffers[2]))

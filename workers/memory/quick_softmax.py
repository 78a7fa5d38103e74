"""Softmax on a processor: half of its time goes to guard against scores that seldom come.

A softmax subtracts the greatest score of a row before it exponentiates. Most rows could do without: here scores are
exponentiated as they are, in their place, and the sums tell whether any row was beyond float32. Where one was, nothing
is lost but time: the caller takes the usual way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_SUM, LARGEST_SUM = 1e-20, 1e30
"""Of the exponentials of a row: those that are lost below the least float32, 1e-38, are then beyond its precision."""
LEAST_SCORES = 1 << 16
"""Of a lane: with fewer, calls cost more than exponentials."""


class Scratch:
    """Memory that is used again and again: fresh pages cost a processor as much as the product written to them."""

    def __init__(self, like: Tensor, widest: int) -> None:
        """Dtype and device as of ``like``; last axes are at most ``widest``."""
        self._memory, self._widest = like.new_empty(0), widest

    def shaped(self, *shape: int) -> Tensor:
        """A tensor of this shape, contiguous, with anything in it; what was there before is lost."""
        needed = math.prod(shape[:-1]) * self._widest
        if needed > self._memory.shape[0]:
            self._memory = self._memory.new_empty(needed)
        return self._memory.narrow(0, 0, math.prod(shape)).view(shape)


def can_exponentiate(like: Tensor, num_scores: int) -> bool:
    """Whether :func:`exponentiated` pays for so many scores of a lane, and may be asked.

    It is no use to a gradient, asks the device, and is more calls than a softmax.
    """
    is_float = like.device.type == "cpu" and like.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_float and num_scores >= LEAST_SCORES and not torch.is_grad_enabled()


def exponentiated(scores: Tensor, visible: Tensor | None, slots: slice) -> Tensor | None:
    """Exponentials of ``scores [..., c]`` in their place, and their sums ``[..., 1]``; None where those are no use.

    ``visible``, 1 or 0, says which of some ``slots`` a query may see: it pays 0 to the others. It sees the rest.
    """
    scores.exp_()
    if visible is not None:
        scores[..., slots].mul_(visible)
    sums = scores.sum(-1, keepdim=True)
    return None if usable_bounds(sums) is None else sums


def usable_bounds(sums: Tensor) -> tuple[float, float] | None:
    """The least and the greatest sum, or None where exponentials were beyond float32."""
    bounds = torch.aminmax(sums)
    least, most = bounds.min.item(), bounds.max.item()
    return (least, most) if least > SMALLEST_SUM and most < LARGEST_SUM else None  # a NaN is neither


def multiplied(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Product ``[l, m, n]`` of ``[l, m, k]`` and ``[l, k, n]``; a single one takes a processor less time unbatched."""
    if left.shape[0] > 1:
        return torch.bmm(left, right, out=out)
    return torch.mm(left[0], right[0], out=None if out is None else out[0])[None]

"""From importances to what is kept (spec 5). Each row of a batch decides for itself."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.memory.kernels import kernels_for
from workers.memory.specs import Heads


def ranks(importance: Tensor, occupied: Tensor) -> Tensor:
    """Rank of every slot in its head, int64 ``[B, H, K]``: 0 for the newest, then by importance; empty slots last.

    Equal importances rank in cache order. The newest has a rank of its own, because an infinite importance would only
    tie with another one; and an importance of minus infinity must not tie with an empty slot, which comes before it.
    """
    least = torch.finfo(importance.dtype).min
    older = importance[..., :-1].clamp(min=least).masked_fill(~occupied[..., :-1], -torch.inf)
    order = older.argsort(dim=-1, descending=True, stable=True)
    following = torch.arange(1, importance.shape[-1], device=importance.device).expand_as(order)
    rank = torch.zeros(importance.shape, dtype=torch.int64, device=importance.device)
    rank[..., :-1].scatter_(-1, order, following)
    return rank


def select_wanted(
    importance: Tensor, positions: Tensor, heads: Heads, cap: int | None, threshold: float | Tensor = 0.0
) -> Tensor:
    """The published rule: a token is wanted when its importance is at least zero; the newest is always kept.

    Args:
        importance: ``[B, H, K]``, slots aligned at their newest token (the last).
        positions: int32 ``[B, H, K]``, -1 where a slot is empty.
        heads: ``ragged`` keeps in every head what it wants; ``even`` keeps in every head as many tokens as the layer's
            greediest head wants, filled up with the best of the rejected.
        cap: most tokens that a head may keep, or None.
        threshold: what to put in place of zero, for all rows or as ``[B, 1, 1]``.

    Returns:
        bool ``[B, H, K]``: what is kept.
    """
    kernels = kernels_for(importance, "fused_selection")
    if kernels is not None and kernels.can_choose(importance):
        chosen: Tensor = kernels.chosen(importance, positions, threshold, cap, is_even=heads == "even")
        return chosen
    occupied = positions >= 0
    wanted = (importance >= threshold) & occupied
    wanted[..., -1] = True
    if heads == "ragged" and cap is None:
        return wanted
    rank = ranks(importance, occupied)
    if cap is not None:
        wanted &= rank < cap
    if heads == "ragged":
        return wanted
    greediest = wanted.sum(-1).amax(-1)
    return (rank < greediest[:, None, None]) & occupied


def row_thresholds(threshold: float | tuple[float, ...] | Tensor, importance: Tensor) -> float | Tensor:
    """What ``importance [B, H, K]`` is compared with: one number, or one for the rows of each genome, ``[B, 1, 1]``.

    ``threshold`` is one number, or one for each genome, as numbers or where the importance is, float32 ``[G]``.
    """
    if isinstance(threshold, tuple):
        threshold = importance.new_tensor(threshold)
    if not isinstance(threshold, Tensor):
        return threshold
    return threshold.repeat_interleave(len(importance) // len(threshold))[:, None, None]


def part_of(threshold: float | tuple[float, ...], genomes: slice) -> float | tuple[float, ...]:
    """The thresholds of some genomes of a block."""
    return threshold[genomes] if isinstance(threshold, tuple) else threshold


def select_top(importance: Tensor, occupied: Tensor, budget: Tensor) -> Tensor:
    """The ``budget`` most important tokens of each head; the newest is always among them.

    ``importance``, ``occupied`` and the result are ``[B, H, K]``; ``budget`` is integer ``[H]``, at least 1 is kept.
    """
    return (ranks(importance, occupied) < budget.clamp(min=1)[None, :, None]) & occupied

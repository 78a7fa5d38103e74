"""The rivals: heuristic memories behind the same interface. Each keeps, in every KV head, its budget of tokens.

A new one is a class with one method, ``importance``. All shapes as in ``memory.py``.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.selection import select_top, select_wanted
from workers.memory.specs import RivalSpec

NORM_BITS = 14
"""Of a norm that keys are ordered by: float32 has 24, of which a rotation may change the last few."""


class Heuristic(Memory):
    """Keeps the ``budget`` most important tokens of each head at every update; the newest is always among them."""

    def __init__(self, spec: RivalSpec) -> None:
        self.update_every = spec.update_every
        self.seed = spec.seed
        is_table = all(isinstance(heads, tuple) and len(heads) == len(spec.budget[0]) for heads in spec.budget)
        if not spec.budget or not is_table:
            raise ValueError(f"the budget of {spec.name} must name tokens by layer and KV head: got {spec.budget!r}")
        self._budget: tuple[tuple[int, ...], ...] = spec.budget

    def head_budgets(self, view: LayerView) -> tuple[int, ...]:
        """Tokens that each head of the layer may hold after an update, at least one."""
        layers, heads = len(self._budget), len(self._budget[0])
        if view.layer >= layers or view.positions.shape[1] != heads:
            raise ValueError(
                f"the budget names {layers} layers of {heads} KV heads, but the model has a layer {view.layer} of "
                f"{view.positions.shape[1]}: take the model that the budget was made for"
            )
        return tuple(max(1, tokens) for tokens in self._budget[view.layer])

    def budget(self, view: LayerView) -> Tensor:
        """:meth:`head_budgets` where the layer is, integer ``[H]``."""
        return torch.tensor(self.head_budgets(view)).to(view.positions.device, non_blocking=True)

    @abstractmethod
    def importance(self, view: LayerView) -> Tensor:
        """Higher is kept longer; float32 ``[B, H, K]``."""

    def decide(self, view: LayerView) -> Decision:
        """Keep the best by importance."""
        budgets = self.head_budgets(view)
        importance = self.importance(view).nan_to_num(math.inf, math.inf, -math.inf)  # a budget is met in any case
        if len(set(budgets)) == 1:  # as a memory does that wants every token, up to a cap, for which there is a kernel
            keep = select_wanted(importance, view.positions, "ragged", budgets[0], -math.inf)
        else:
            keep = select_top(importance, view.occupied, self.budget(view))
        return Decision(keep, importance, budgets)


class Recent(Heuristic):
    """The newest tokens and the first four as attention sinks (StreamingLLM, arXiv 2309.17453)."""

    num_sinks = 4

    def importance(self, view: LayerView) -> Tensor:
        """Position, with the sinks above all."""
        positions = view.positions.float()
        return positions.masked_fill(view.positions < self.num_sinks, torch.inf)


class L2Norm(Heuristic):
    """Keys of small norm attract attention (arXiv 2406.11430)."""

    def importance(self, view: LayerView) -> Tensor:
        """Minus the squared norm of the key: the same order as by the norm.

        To so many bits as no rounding reaches: a word that comes twice has keys of one norm in the first layer, up to
        what their rotations leave, and how a text is cut into calls must not decide between the two.
        """
        mantissa, exponent = torch.frexp(view.keys.float().square().sum(dim=-1))
        return torch.ldexp((mantissa * 2.0**NORM_BITS).round(), exponent).neg()


class Random(Heuristic):
    """A fixed random order of positions, other in every layer and head: what any choice must beat."""

    def importance(self, view: LayerView) -> Tensor:
        """A hash of seed, layer, KV head and position, so that no batch mate and no call before changes it."""
        heads = torch.arange(view.positions.shape[1], device=view.positions.device)[None, :, None]
        mixed = (
            view.positions.long() + (heads + 1) * 0x9E3779B1 + (view.layer + 1) * 0x85EBCA77 + self.seed * 0xC2B2AE3D
        )
        for multiplier in (0x45D9F3B, 0x119DE1F3):
            mixed = ((mixed ^ (mixed >> 16)) * multiplier) & 0xFFFFFFFF
        return ((mixed ^ (mixed >> 16)) & 0xFFFFFF).float()


class H2O(Heuristic):
    """Heavy hitters: half of the budget by attention received so far, half by recency (arXiv 2306.14048)."""

    reads_attention = True

    def empty_trace_channels(self) -> int:
        """The sum of attention received."""
        return 1

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """Add it up."""
        return trace + attention.float().sum(dim=2)[..., None]

    def importance(self, view: LayerView) -> Tensor:
        """Attention received, with the newest half of the budget above all."""
        recent = (self.budget(view) // 2)[None, :, None]
        return view.trace[..., 0].masked_fill(view.ages < recent, torch.inf)


class LastQueries(Heuristic):
    """Base of rivals that look at the attention paid by the newest queries only."""

    reads_attention = True
    num_queries: int

    def empty_trace_channels(self) -> int:
        """One for each of the newest queries."""
        return self.num_queries

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """Roll the newest rows in."""
        rows = torch.cat([trace, attention.transpose(-1, -2).float()], dim=-1)
        # A copy, because a view would keep all the rows of the block alive.
        return rows[..., -self.num_queries :].clone()


class SnapKV(LastQueries):
    """Attention of the 16 newest queries, smoothed over neighbouring slots (arXiv 2404.14469).

    The paper votes once, after the prompt; here the vote is repeated at every update.
    """

    num_queries = 16
    smoothing = 5

    def importance(self, view: LayerView) -> Tensor:
        """Mean attention, averaged over neighbours, with the window's own tokens above all, the newest first."""
        mean = view.trace.mean(dim=-1)
        smooth = functional.avg_pool1d(mean, self.smoothing, stride=1, padding=self.smoothing // 2)
        above_all = 1.0 + self.num_queries - view.ages
        return torch.where(view.ages < self.num_queries, above_all, smooth)


class Tova(LastQueries):
    """Attention of the newest query alone (arXiv 2401.06104)."""

    num_queries = 1

    def importance(self, view: LayerView) -> Tensor:
        """The newest query's attention."""
        return view.trace[..., 0]


HEURISTICS: dict[str, type[Heuristic]] = {
    "recent": Recent,
    "h2o": H2O,
    "l2norm": L2Norm,
    "random": Random,
    "snapkv": SnapKV,
    "tova": Tova,
}
"""Every rival that evicts, by its name in tables."""

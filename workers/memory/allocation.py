"""The cheap rival of the network: a heuristic orders the tokens, and what is evolved is how much each KV head keeps.

A genome is a few dozen numbers. A gene of zero keeps the whole head, as a network of zeros does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.memory.heads import head_genes
from workers.memory.heuristics import HEURISTICS, Heuristic
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.selection import part_of, ranks, row_thresholds, select_wanted
from workers.memory.specs import NammSettings, RivalSpec

SHARE_SCALE = 16.0
"""Logarithm of the share that a head keeps, per unit of its gene: a gene one step of the search below zero keeps 35 %
of what one at zero keeps, which is everything."""


class HeadAllocation(Memory):
    """Keeps in every head its share of the tokens seen, those that a heuristic finds most important.

    Args:
        settings: ``choice`` names the heuristic, ``layout`` the heads.
        genomes: float32 ``[G, layers * heads]``; rows belong to genomes by their place, as for the network.
        threshold: the dial: shares are divided by its exponential, for all genomes or for each.
    """

    reads_attention = True

    def __init__(self, settings: NammSettings, genomes: Tensor, threshold: float | tuple[float, ...] = 0.0) -> None:
        if genomes.shape[1] != settings.genome_size:
            raise ValueError(
                f"the genome has {genomes.shape[1]} numbers, but this memory needs {settings.genome_size}, one for "
                "each layer and KV head: use the settings it was evolved with"
            )
        self.settings = settings
        self.threshold = threshold
        self.update_every = settings.update_every
        self.layout = settings.layout
        self._genomes = genomes
        self._heuristic = _heuristic(settings)

    @property
    def num_genomes(self) -> int:
        """Size of the block."""
        return self._genomes.shape[0]

    def with_genome(self, genomes: Tensor) -> HeadAllocation:
        """The same memory under other genomes ``[G, layers * heads]``."""
        return HeadAllocation(self.settings, genomes, self.threshold)

    def part(self, genomes: slice) -> HeadAllocation:
        """Under some genomes of the block only, each with its own threshold."""
        return HeadAllocation(self.settings, self._genomes[genomes], part_of(self.threshold, genomes))

    def empty_trace_channels(self) -> int:
        """As the heuristic has it."""
        return self._heuristic.empty_trace_channels()

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """As the heuristic does."""
        return self._heuristic.observe(trace, attention)

    def budgets(self, view: LayerView) -> Tensor:
        """Tokens that each head may hold, float32 ``[B, H, 1]``: at most as many as were seen."""
        return view.seen_tokens * (SHARE_SCALE * head_genes(self._genomes, self.settings, view)).clamp(max=0.0).exp()

    def importance(self, view: LayerView) -> Tensor:
        """log(budget / place in the heuristic's order), float32 ``[B, H, K]``: at least 0 for the best ``budget``."""
        budgets = self.budgets(view)
        rank = ranks(self._order(view, budgets), view.occupied)
        # The logarithm of one is zero; the difference of two logarithms may be less, where both are of the same number.
        return (budgets / (rank + 1)).log()

    def decide(self, view: LayerView) -> Decision:
        """Keep every head's share; the newest token is always kept."""
        importance = self.importance(view)
        threshold = row_thresholds(self.threshold, importance)
        keep = select_wanted(importance, view.positions, self.settings.heads, self.settings.cap, threshold)
        return Decision(keep, importance)

    def _order(self, view: LayerView, budgets: Tensor) -> Tensor:
        """The heuristic's importance; H2O keeps its newest tokens by a budget of its own, here by that of each row."""
        if self.settings.choice == "h2o":
            return view.trace[..., 0].masked_fill(view.ages < budgets // 2, torch.inf)
        return self._heuristic.importance(view)


def _heuristic(settings: NammSettings) -> Heuristic:
    assert settings.layout is not None
    layers, heads = settings.layout
    nothing = RivalSpec(name="snapkv", update_every=settings.update_every, budget=((1,) * heads,) * layers)
    return HEURISTICS[settings.choice](nothing)

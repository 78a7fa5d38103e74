"""The evolved memory: a Neural Attention Memory Model under one genome or a block of them (arXiv 2410.13166)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.memory import features, folded_scorer
from workers.memory.heads import OFFSET_SCALE, head_genes
from workers.memory.kernels import kernels_for
from workers.memory.lookahead import lookahead
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.quick_softmax import can_exponentiate
from workers.memory.scorer import ScorerParameters, importances, unfold_genomes
from workers.memory.selection import part_of, row_thresholds, select_wanted
from workers.memory.specs import NammSettings, Normalisation


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """What a memory decides by."""

    genomes: Tensor
    scorer: ScorerParameters
    folded: tuple[Tensor, Tensor] | None
    """The scorer as ``folded_scorer.py`` takes it, on a CPU."""
    mean: Tensor
    deviation: Tensor
    threshold: float | Tensor
    """One number, or one for each genome, float32 ``[G]``."""


class Namm(Memory):
    """Scores every cached token from the spectrogram of the attention it received and from its age.

    Args:
        settings: the architecture.
        genomes: float32 ``[G, genome_size]``. Row ``b`` of a batch of B rows belongs to genome ``b // (B / G)``.
        normalisation: feature statistics of a full-cache pass; None uses raw features.
        threshold: importance from which a token is kept, for all genomes or one for each (the dial; published: 0).
    """

    reads_attention = True
    decides_on_device = True

    def __init__(
        self,
        settings: NammSettings,
        genomes: Tensor,
        normalisation: Normalisation | None,
        threshold: float | tuple[float, ...] = 0.0,
    ) -> None:
        if isinstance(threshold, tuple) and len(threshold) != len(genomes):
            raise ValueError(
                f"there are {len(threshold)} thresholds for {len(genomes)} genomes: give one for all, or one for each"
            )
        self.settings = self.spectrum = settings
        self.threshold = threshold
        self.update_every = settings.update_every
        self.normalisation = normalisation
        self._genomes = genomes
        self.treats_layers_alike = not settings.offsets
        self.most_kept = settings.cap
        self.layout = settings.layout
        self._on_device: dict[torch.device, _OnDevice] = {}
        self._at(genomes.device)

    @property
    def num_genomes(self) -> int:
        """Size of the block."""
        return self._genomes.shape[0]

    def with_genome(self, genomes: Tensor) -> Namm:
        """The same memory under other genomes ``[G, genome_size]``."""
        return Namm(self.settings, genomes, self.normalisation, self.threshold)

    def part(self, genomes: slice) -> Namm:
        """Under some genomes of the block only, each with its own threshold."""
        return Namm(self.settings, self._genomes[genomes], self.normalisation, part_of(self.threshold, genomes))

    def empty_trace_channels(self) -> int:
        """The moving average and one hop of zeros."""
        return features.empty_trace_channels(self.settings)

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """Stream the rows through the spectrogram."""
        return features.observe(trace, attention, self.settings)

    def features(self, view: LayerView) -> Tensor:
        """The scorer's input, float32 ``[B, H, K, F]``: recency, then the normalised spectrum (spec 3.5)."""
        here = self._at(view.trace.device)
        spectrum = (view.trace[..., : self.settings.num_bins] - here.mean) / here.deviation
        age = features.recency(view.ages, view.seen_tokens, self.settings)
        parts = [age, spectrum]
        if (extra := self._extra_features(view)) is not None:
            parts.append(extra)
        return torch.cat(parts, dim=-1)

    def _extra_features(self, view: LayerView) -> Tensor | None:
        if not self.settings.lookahead:
            return None
        return lookahead(view.trace, view.positions, self.settings)

    def importance(self, view: LayerView) -> Tensor:
        """Of every slot, float32 ``[B, H, K]``: the scorer's, and what the genome adds for the head."""
        here = self._at(view.trace.device)
        kernels = kernels_for(view.trace, "fused_scorer")
        if kernels is not None and kernels.can_serve(self.settings):
            extra = self._extra_features(view)
            importance: Tensor = kernels.importances(view, extra, here.scorer, here.mean, here.deviation, self.settings)
        else:
            importance = self._portable(view, here)
        if self.settings.offsets:
            importance = importance + OFFSET_SCALE * head_genes(here.genomes, self.settings, view)
        return importance

    def _portable(self, view: LayerView, here: _OnDevice) -> Tensor:
        read, found = self.features(view), None
        if here.folded is not None and can_exponentiate(read, read.shape[2] ** 2):
            empty = (~view.occupied).flatten(0, 1).sum(-1).tolist()
            found = folded_scorer.importances(read, *here.folded, empty)
        return importances(read, here.scorer) if found is None else found

    def decide(self, view: LayerView) -> Decision:
        """Score every slot and keep what the published rule keeps, by this memory's threshold."""
        importance = self.importance(view)
        threshold = row_thresholds(self._at(importance.device).threshold, importance)
        keep = select_wanted(importance, view.positions, self.settings.heads, self.settings.cap, threshold)
        return Decision(keep, importance)

    def _at(self, device: torch.device) -> _OnDevice:
        """What it decides by, on ``device``; the layers of one model may live on several."""
        if device not in self._on_device:
            bins = self.settings.num_bins
            stats = self.normalisation or Normalisation(mean=(0.0,) * bins, variance=(1.0,) * bins)
            mean = torch.tensor(stats.mean, dtype=torch.float32, device=device)
            variance = torch.tensor(stats.variance, dtype=torch.float32, device=device)
            genomes, threshold = self._genomes.to(device, torch.float32), self.threshold
            scorer = unfold_genomes(genomes, self.settings)
            self._on_device[device] = _OnDevice(
                genomes=genomes,
                scorer=scorer,
                folded=folded_scorer.folded(scorer) if device.type == "cpu" else None,
                mean=mean,
                deviation=variance.sqrt().clamp(min=1e-7),
                threshold=torch.tensor(threshold, device=device) if isinstance(threshold, tuple) else threshold,
            )
        return self._on_device[device]


@dataclass
class Moments:
    """Count, mean and variance of the features before normalisation, pooled with the pairwise formula (spec 3.3)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    variance: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, values: Tensor) -> None:
        """Pool ``values [n, features]`` into the moments."""
        block = values.double()
        # On the CPU, because the layers of one model may live on several devices.
        variance, mean = (moment.cpu() for moment in torch.var_mean(block, dim=0, correction=0))
        if self.count == 0:
            self.count, self.mean, self.variance = len(block), mean, variance
            return
        total = self.count + len(block)
        share = self.count / total
        difference = mean - self.mean
        self.variance = share * self.variance + (1 - share) * variance + share * (1 - share) * difference * difference
        self.mean = share * self.mean + (1 - share) * mean
        self.count = total


class StatisticsPass(Memory):
    """Keeps everything, and pools the features that a memory of these settings would have read at each update."""

    reads_attention = True

    def __init__(self, settings: NammSettings) -> None:
        self.settings = self.spectrum = settings
        self.update_every = settings.update_every
        self.layout = settings.layout
        self.moments = Moments()

    def empty_trace_channels(self) -> int:
        """As the memory has it."""
        return features.empty_trace_channels(self.settings)

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """As the memory does."""
        return features.observe(trace, attention, self.settings)

    def decide(self, view: LayerView) -> Decision:
        """Pool the features of every cached token, keep every token."""
        self.moments.add(view.trace[..., : self.settings.num_bins][view.occupied])
        return Decision(view.occupied, torch.zeros(view.positions.shape, device=view.positions.device))

"""The interface of a memory: what watches the attention of a frozen model and decides which tokens stay cached.

Shapes: B rows, H KV heads, K slots (aligned at their newest token), n queries, C trace channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.memory.specs import NammSettings


@dataclass(frozen=True, slots=True)
class LayerView:
    """What a memory may look at when a layer is due for an update. Read only."""

    layer: int
    """Index of the layer."""
    seen_tokens: int
    """Tokens of the sequence that the layer has read."""
    keys: Tensor
    """``[B, H, K, d]``, after rotation."""
    values: Tensor
    """``[B, H, K, d]``"""
    positions: Tensor
    """int32 ``[B, H, K]``: position of each cached token in the sequence, -1 where a slot is empty."""
    trace: Tensor
    """float32 ``[B, H, K, C]``: what the memory remembers about each cached token."""

    @property
    def occupied(self) -> Tensor:
        """Whether a slot holds a token, bool ``[B, H, K]``: False where a slot is empty."""
        return self.positions >= 0

    @property
    def ages(self) -> Tensor:
        """int64 ``[B, H, K]``: tokens read since each cached token; 0 for the newest (and the oldest age if empty)."""
        return (self.seen_tokens - 1 - self.positions.long()).clamp(max=self.seen_tokens - 1)


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of an update: ``keep`` bool ``[B, H, K]`` and the ``importance`` float32 ``[B, H, K]`` behind it."""

    keep: Tensor
    importance: Tensor
    budget: tuple[int, ...] | None = None
    """By KV head, where each keeps so many tokens or, having fewer, all: then nobody needs to ask the device."""


class Memory(ABC):
    """A policy over the KV cache. Frozen: all that changes while a prompt is read lives in the cache's traces."""

    update_every: int | None
    """Tokens between two updates; None for a memory that never evicts."""
    reads_attention: bool = False
    """Whether ``observe`` wants the attention values; without it fused attention is used."""
    spectrum: NammSettings | None = None
    """Set when ``observe`` is :func:`features.observe` with these settings: it is then fused with the attention."""

    decides_on_device: bool = False
    """Whether ``decide``, where kernels serve, asks the device nothing, and of ``seen_tokens`` only an upper bound."""
    treats_layers_alike: bool = False
    """Whether ``decide`` does the same in all layers."""
    most_kept: int | None = None
    """Most tokens that a head may keep; None for no limit."""

    layout: tuple[int, int] | None = None
    """Layers, and KV heads of each, of the only models that it fits; None if it fits any."""

    @property
    def num_genomes(self) -> int:
        """Genomes that share a batch: with more than one, rows belong to genomes by their place."""
        return 1

    def part(self, genomes: slice) -> Memory:
        """The same memory under some genomes of the block only."""
        assert genomes == slice(0, 1), f"{type(self).__name__} is no block of genomes"
        return self

    def empty_trace_channels(self) -> int:
        """Channels C of a trace before anything was observed."""
        return 0

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """Take new attention rows ``[B, H, n, K]`` (averaged over each group of query heads) into the traces.

        Called for every block of queries, in order; must give the same trace however the queries are cut into blocks,
        and that of each slot whatever the others are: tokens of all heads may come as if they were of one.
        Tokens new in this block have a trace of zeros.
        """
        raise NotImplementedError(f"{type(self).__name__} does not read attention")

    @abstractmethod
    def decide(self, view: LayerView) -> Decision:
        """What one layer keeps, every ``update_every`` tokens."""


class KeepAll(Memory):
    """Never evicts. Around another memory it observes like it: the prefill before the first update, the full cache."""

    update_every = None

    def __init__(self, observer: Memory | None = None) -> None:
        self._observer = observer
        self.reads_attention = observer is not None and observer.reads_attention
        self.spectrum = observer.spectrum if observer else None
        self.layout = observer.layout if observer else None

    def empty_trace_channels(self) -> int:
        """As the observer has it."""
        return self._observer.empty_trace_channels() if self._observer else 0

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """As the observer has it."""
        return self._observer.observe(trace, attention) if self._observer else trace

    def decide(self, view: LayerView) -> Decision:
        """Keep every token."""
        return Decision(view.occupied, torch.zeros(view.positions.shape, device=view.positions.device))

"""Shapes of small Llamas: the one that this repository ships, and others that a memory evolved on it has never seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PEAK_LEARNING_RATE = 3e-3
"""Of AdamW, for models as wide as the shipped one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What sets one small Llama apart from another."""

    num_layers: int = 2
    hidden_size: int = 128
    num_query_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 32
    rope_theta: float = 10_000.0
    num_steps: int = 1000
    """Optimiser steps that the model is trained for."""
    peak_learning_rate: float = PEAK_LEARNING_RATE
    """Of AdamW; a model half as wide again stays at guessing with that of the others."""

    def __str__(self) -> str:
        heads = f"{self.num_query_heads} query / {self.num_kv_heads} KV heads of {self.head_size}"
        return f"{self.num_layers} layers, hidden {self.hidden_size}, {heads}"


SMALL_LLAMA = "small-llama"

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        SMALL_LLAMA: Shape(),
        # Another depth, no sharing of KV heads, positions that turn more slowly.
        "deep-llama": Shape(num_layers=4, num_kv_heads=4, rope_theta=500_000.0, num_steps=700),
        # All query heads share one KV head, in three layers.
        "mqa-llama": Shape(num_layers=3, num_kv_heads=1, rope_theta=100_000.0, num_steps=900),
        # Half as wide again, with three query heads to a KV head.
        "wide-llama": Shape(hidden_size=192, num_query_heads=6, num_steps=700, peak_learning_rate=1.5e-3),
    }
)
"""By name; ``python -m workers.training --shape NAME`` trains one."""

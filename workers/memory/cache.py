"""The KV cache that forgets, as transformers sees it.

``get_seq_length`` is the number of tokens *seen*: positions, prefill slicing and ``generate`` rely on it. Keys are
cached after rotation, so eviction gathers them unchanged and positions never move (spec 1.3).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.slots import PackedSlots, Slots

UpdateListener = Callable[[LayerView, Decision], None]


class MemoryLayer(CacheLayerMixin):
    """One layer's share of the cache.

    New keys and values are only *staged* by ``update``: the attention function, which runs just after it, takes them
    up block by block, so that a long prompt is evicted from while it is read.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self, index: int, cache: MemoryCache) -> None:
        super().__init__()
        self.index = index
        self.cache = cache
        self.seen_tokens = 0
        self.held: Slots | PackedSlots | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, with the shapes, dtype and device of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.held = Slots.empty(key_states, value_states, self.cache.memory.empty_trace_channels())
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stage the new tokens for the attention function and return them as they are."""
        if not self.cache.is_open or _staged.layer is not None:
            drop_staged_layer()
            raise UnsupportedUseError(
                "a memory's cache was passed to a model that no memory is attached to: "
                "call the model inside the `with memory_attached(model, memory)` block that made the cache"
            )
        if self.held is None:
            self.lazy_initialization(key_states, value_states)
        _staged.layer, _staged.keys = self, key_states
        return key_states, value_states

    def take_up(self, slots: Slots, seen_tokens: int) -> Slots:
        """After the attention of a block: update if one is due, and account for the bytes."""
        self.cache.meter.appended(slots, seen_tokens - self.seen_tokens)
        self.seen_tokens = seen_tokens
        return self.evict(slots) if self.is_due else slots

    def evict(self, slots: Slots) -> Slots:
        """Let the memory decide, and drop what it does not keep."""
        view = LayerView(self.index, self.seen_tokens, slots.keys, slots.values, slots.positions, slots.trace)
        decision = self.cache.memory.decide(view)
        if self.cache.listener is not None:
            self.cache.listener(view, decision)
        kept = slots.select(decision.keep)
        self.cache.meter.evicted(slots, kept)
        return kept

    @property
    def is_due(self) -> bool:
        """Whether the number of tokens seen calls for an update now."""
        every = self.cache.memory.update_every
        return every is not None and self.seen_tokens > 0 and self.seen_tokens % every == 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the 2-D padding mask, which is over all tokens seen."""
        return self.seen_tokens + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, not held."""
        return self.seen_tokens

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.seen_tokens = 0
        self.held = None
        self.is_initialized = False

    def crop(self, *_args: Any) -> NoReturn:
        """Refused: evicted tokens cannot come back."""
        raise UnsupportedUseError(
            "a cache that forgets cannot be cropped (assisted decoding needs that): decode plainly"
        )

    def reorder_cache(self, *_args: Any) -> NoReturn:
        """Refused."""
        raise UnsupportedUseError("a cache that forgets cannot be reordered: use num_beams=1")

    offload = prefetch = crop


class MemoryCache(Cache):
    """The cache to pass as ``past_key_values``, one :class:`MemoryLayer` per layer of the model.

    Args:
        memory: what decides.
        num_layers: layers of the (text) model.
        listener: called at every update with what the memory saw and what it decided.
    """

    layers: list[MemoryLayer]

    def __init__(self, memory: Memory, num_layers: int, listener: UpdateListener | None = None) -> None:
        self.memory = memory
        self.listener = listener
        self.meter = Meter()
        self.is_open = True
        """False once the `with` block that made the cache was left: the model's own attention cannot use it."""
        super().__init__(layers=[MemoryLayer(index, self) for index in range(num_layers)])

    def branch(self, memory: Memory, copies: int) -> None:
        """Go on with ``copies`` of every row under ``memory``; an update that is due by its clock fires now.

        Until here the cache must have been filled under ``KeepAll(memory)``.
        """
        self.memory = memory
        self.meter.repeat(copies)
        for layer in self.layers:
            if layer.held is None:
                continue
            slots = layer.held.repeat(copies)
            layer.held = (layer.evict(slots) if layer.is_due else slots).at_rest()

    def held_tokens(self) -> Tensor:
        """int32 ``[B, layers, H]`` on the CPU: tokens held now."""
        return torch.stack([layer.held.lengths.cpu() for layer in self.layers if layer.held is not None], dim=1)

    def row_state_bytes(self) -> Tensor:
        """int64 ``[B]`` on the CPU: bytes of positions and traces, row by row."""
        held = [layer.held for layer in self.layers if layer.held is not None]
        token_bytes = [slots.positions.itemsize + slots.trace.shape[-1] * slots.trace.itemsize for slots in held]
        return torch.stack(
            [slots.lengths.sum(-1).cpu() * size for slots, size in zip(held, token_bytes, strict=True)]
        ).sum(0)

    def reset(self) -> None:
        """Forget everything, the account of bytes included."""
        super().reset()
        self.meter = Meter()

    @property
    def cache_bytes(self) -> int:
        """Bytes of all cached keys and values, as the tensors have them."""
        return sum(layer.held.cache_bytes for layer in self.layers if layer.held is not None)

    @property
    def state_bytes(self) -> int:
        """Bytes that the memory adds: positions and traces."""
        return sum(layer.held.state_bytes for layer in self.layers if layer.held is not None)


@dataclass
class Meter:
    """Bytes of keys and values by row, as they come and go: now, at the peak, and summed over the tokens read."""

    now: Tensor | None = None
    """int64 ``[B]``: all layers together."""
    peak: Tensor | None = None
    """int64 ``[B]``: highest value of ``now``, reached before an eviction."""
    area: Tensor | None = None
    """int64 ``[B]``: sum over the tokens read of the bytes held after each."""

    def appended(self, slots: Slots, new_tokens: int) -> None:
        """``new_tokens`` were appended; ``slots`` holds them already."""
        rows, heads = slots.positions.shape[:2]
        token_bytes = _token_bytes(slots)
        if self.now is None or self.peak is None or self.area is None:
            self.now, self.peak, self.area = (torch.zeros(3, rows, dtype=torch.int64)).unbind()
        grown = heads * new_tokens * token_bytes
        if slots.is_even:
            held = torch.full((rows,), heads * slots.positions.shape[-1] * token_bytes)
        else:
            held = slots.lengths.sum(-1).cpu() * token_bytes
        self.now = self.now + grown
        self.peak = torch.maximum(self.peak, self.now)
        # Bytes of this layer after each new token: before + 1, before + 2, … tokens in every head.
        self.area = self.area + new_tokens * (held - grown) + heads * token_bytes * new_tokens * (new_tokens + 1) // 2

    def evicted(self, before: Slots, after: Slots) -> None:
        """``before`` became ``after`` at the newest token."""
        assert self.now is not None
        assert self.area is not None
        dropped = (before.lengths.sum(-1) - after.lengths.sum(-1)).cpu() * _token_bytes(before)
        self.now = self.now - dropped
        self.area = self.area - dropped

    def repeat(self, copies: int) -> None:
        """Follow the rows of a branched cache."""
        for name in ("now", "peak", "area"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.repeat(copies))


def _token_bytes(slots: Slots) -> int:
    return slots.keys.shape[-1] * slots.keys.itemsize + slots.values.shape[-1] * slots.values.itemsize


class _Staged(threading.local):
    """``generate`` never hands the cache to the attention function, so the layer waits here between the two calls."""

    layer: MemoryLayer | None = None
    keys: Tensor | None = None


_staged = _Staged()


def take_staged_layer(keys: Tensor) -> MemoryLayer:
    """The layer whose ``update`` was just called with these very keys."""
    layer, staged = _staged.layer, _staged.keys
    drop_staged_layer()
    if layer is None or staged is not keys:
        raise UnsupportedUseError(
            "this model is attached to a memory, but the call brought no memory cache: "
            "pass past_key_values=cache and use_cache=True, or leave the `with memory_attached(model)` block"
        )
    return layer


def drop_staged_layer() -> None:
    """Forget what an interrupted call has staged."""
    _staged.layer = _staged.keys = None

"""The KV cache that forgets, as transformers sees it.

``get_seq_length`` is the number of tokens *seen*: positions, prefill slicing and ``generate`` rely on it. Keys are
cached after rotation, so eviction gathers them unchanged and positions never move (spec 1.3).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from workers.memory.compiling import outside_graphs
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.meter import Meter
from workers.memory.open_slots import OpenPacked, OpenSlots
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, at_rest, duplicated, joined
from workers.memory.padding import Cohort, Padding
from workers.memory.slots import Slots
from workers.memory.watching import told

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
        # Weakly, because in a cycle the tensors of a dropped cache would wait for the garbage collector.
        self._cache = weakref.ref(cache)
        self.seen_tokens = 0
        """Columns read, padding included."""
        self._cohorts: dict[int, Slots | PackedSlots] = {}
        self._owed: tuple[Cohort, Callable[[], Slots]] | None = None
        self.options: AttentionOptions | None = None
        """What the model asked of this layer's attention in the last call."""
        self.open: OpenSlots | OpenPacked | None = None
        """Set while a call is recorded or replayed: it then keeps no account here."""

    @property
    def cohorts(self) -> dict[int, Slots | PackedSlots]:
        """What the rows of each cohort hold, by their padding; without padding there is one, at 0."""
        self.settle()
        return self._cohorts

    @cohorts.setter
    def cohorts(self, held: dict[int, Slots | PackedSlots]) -> None:
        self.settle()
        self._cohorts = held

    def owe(self, cohort: Cohort, settled: Callable[[], Slots]) -> None:
        """What a cohort holds, to be asked when somebody wants to know: the device may be at it until then."""
        self.cache.settle()
        self._owed = (cohort, settled)
        self.cache.owing = self

    def settle(self) -> None:
        """Ask what is owed."""
        owed, self._owed = self._owed, None
        if owed is not None:
            cohort, settled = owed
            self._cohorts[cohort.padding] = at_rest(settled())

    @property
    def cache(self) -> MemoryCache:
        """The cache that this layer belongs to."""
        cache = self._cache()
        assert cache is not None, "a layer was used after its cache was dropped"
        return cache

    @property
    def held(self) -> Slots | PackedSlots | None:
        """What a batch without padding holds; None before its first token."""
        assert len(self.cohorts) <= 1, "a padded batch is held by cohorts"
        return next(iter(self.cohorts.values()), None)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002 (its signature)
        """Note dtype and device of the first values: under autocast keys come in float32, and are held as these are."""
        self.dtype, self.device = value_states.dtype, value_states.device
        self.is_initialized = True

    def follow(self, former: MemoryLayer) -> None:
        """Be as far in the text as the same layer of another cache."""
        self.seen_tokens, self.options = former.seen_tokens, former.options
        if former.is_initialized:
            self.dtype, self.device = former.dtype, former.device
            self.is_initialized = True

    @outside_graphs
    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stage the new tokens for the attention function and return them as they are."""
        if not self.cache.is_open or _staged.layer is not None:
            drop_staged_layer()
            raise UnsupportedUseError(
                "a memory's cache was passed to a model that no memory is attached to: call the very model that was "
                "given to memory.cache(model), or call it inside the `with memory.attached(model)` block"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        _staged.layer, _staged.keys = self, key_states
        return key_states, value_states

    def held_by(self, cohort: Cohort, keys: Tensor, values: Tensor) -> Slots | PackedSlots:
        """What the rows of a cohort hold; nothing, in the shapes of the new keys and values, before their first."""
        held = self.cohorts.get(cohort.padding)
        return held or Slots.nothing(keys, values, self.cache.memory.empty_trace_channels())

    def take_up(
        self, held: Slots | PackedSlots, cohort: Cohort, seen_tokens: int, new_tokens: int
    ) -> Slots | PackedSlots:
        """After the attention of a block that ends at ``seen_tokens``: account for it, and update if one is due."""
        self.cache.meter.appended(held, new_tokens, cohort, len(self.cache.padding.by_row))
        return self.evict(held, cohort, seen_tokens) if self.cache.is_due(seen_tokens) else held

    def evict(self, held: Slots | PackedSlots, cohort: Cohort, seen_tokens: int) -> Slots:
        """Let the memory decide, and drop what it does not keep."""
        slots = told(held.at_work(), self.cache.memory)
        view = LayerView(self.index, seen_tokens, slots.keys, slots.values, slots.positions, slots.trace)
        decision = self.cache.memory.decide(view)
        if self.cache.listener is not None:
            self.cache.listener(view, decision)
        kept = slots.select(decision.keep, decision.budget)
        self.cache.meter.evicted(slots.row_tokens - kept.row_tokens, slots, cohort)
        return kept

    def held_tokens(self) -> Tensor:
        """int32 ``[B, H]`` on the CPU: tokens held now. The layer must have read some."""
        padding, lengths = self.cache.padding, {width: held.lengths for width, held in self.cohorts.items()}
        heads = next(iter(lengths.values())).shape[1]
        total = torch.zeros(len(padding.by_row), heads, dtype=torch.int32)
        for cohort in padding.cohorts(torch.device("cpu")):
            if cohort.padding in lengths:
                total[slice(None) if cohort.rows is None else cohort.rows] = lengths[cohort.padding]
        return total

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
        self.cohorts = {}
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
        self._meter = Meter()
        self.owing: MemoryLayer | None = None
        """The layer that was not asked yet what it holds: one at a time, so that bytes are accounted for in order."""
        self.padding = Padding()
        self._attachment = _Attachment()
        self.is_torn = False
        """From the first layer's turn in a call to the last one's; after a call that failed in between for good."""
        super().__init__(layers=[MemoryLayer(index, self) for index in range(num_layers)])

    @property
    def is_open(self) -> bool:
        """False while the model's own attention is in place, which cannot use this cache."""
        return self._attachment.is_open

    @is_open.setter
    def is_open(self, is_open: bool) -> None:
        self._attachment.is_open = is_open

    @property
    def meter(self) -> Meter:
        """The account of bytes."""
        self.settle()
        return self._meter

    @meter.setter
    def meter(self, meter: Meter) -> None:
        self.settle()
        self._meter = meter

    def settle(self) -> None:
        """Ask what the device was doing when it was not waited for."""
        owing, self.owing = self.owing, None
        if owing is not None:
            owing.settle()

    def layer_begins(self, index: int) -> None:
        """Before a layer takes up the tokens of a call.

        Raises:
            UnsupportedUseError: a former call got no farther than some layer.
        """
        if index == 0 and self.is_torn:
            raise UnsupportedUseError(
                "a former call with this cache failed half way, so that its layers have read different texts: take a "
                "new cache"
            )
        self.is_torn = True

    def layer_ends(self, index: int) -> None:
        """After a layer has taken them up."""
        self.is_torn = index + 1 < len(self.layers)

    def is_due(self, seen_tokens: int) -> bool:
        """Whether a text of which ``seen_tokens`` were read is due for an update now."""
        every = self.memory.update_every
        return every is not None and seen_tokens > 0 and seen_tokens % every == 0

    def branch(self, memory: Memory, copies: int) -> MemoryCache:
        """A cache to go on with: ``copies`` of every row under ``memory``; an update due by its clock fires now.

        This one must have been filled under ``KeepAll(memory)``, without padding; it stays as it is.
        """
        branched = MemoryCache(memory, len(self.layers), self.listener)
        branched.meter = self.meter.repeated(copies)
        branched.padding = self.padding.repeated(copies)
        everyone = Cohort(0, None)
        for layer, former in zip(branched.layers, self.layers, strict=True):
            if former.held is None:
                continue
            layer.follow(former)
            slots = former.held.repeat(copies)
            if branched.is_due(layer.seen_tokens):
                with torch.cuda.device_of(slots.keys):
                    slots = layer.evict(slots, everyone, layer.seen_tokens)
            layer.cohorts = {0: at_rest(slots)}
        return branched

    def anew(self) -> MemoryCache:
        """Another cache to use where this one is, which has read nothing."""
        cache = MemoryCache(self.memory, len(self.layers), self.listener)
        cache._attachment = self._attachment
        return cache

    def __deepcopy__(self, _memo: dict[int, Any]) -> MemoryCache:
        """A cache that has read the same, so that a text can go on in two ways; the memory is the same one."""
        copied = self.anew()
        copied.meter, copied.padding, copied.is_torn = self.meter.repeated(1), self.padding.repeated(1), self.is_torn
        for layer, former in zip(copied.layers, self.layers, strict=True):
            layer.follow(former)
            layer.cohorts = {padding: duplicated(held) for padding, held in former.cohorts.items()}
        return copied

    def join(self, memory: Memory, parts: list[MemoryCache]) -> None:
        """Hold the rows of all parts in the place of what was held, and go on under ``memory``, their block's.

        The parts, which have read as many tokens without padding, are used up: layer by layer, so that never more
        than one layer is held twice.
        """
        self.memory = memory
        self.meter = Meter.joined([part.meter for part in parts])
        self.padding = Padding.joined([part.padding for part in parts])
        for index, layer in enumerate(self.layers):
            layers = [part.layers[index] for part in parts]
            held = [one.held for one in layers if one.held is not None]
            if held:
                layer.follow(layers[0])
                layer.cohorts = {0: joined(held)}
            for one in layers:
                one.cohorts = {}

    def seen_tokens(self) -> Tensor:
        """int64 ``[B]`` on the CPU: tokens read, padding left out."""
        seen: int = self.get_seq_length()
        return seen - torch.tensor(self.padding.by_row, dtype=torch.int64)

    def held_tokens(self) -> Tensor:
        """int32 ``[B, layers, H]`` on the CPU: tokens held now; of no rows and heads before the first token."""
        held = [layer.held_tokens() for layer in self.layers if layer.cohorts]
        return torch.stack(held, dim=1) if held else torch.zeros(0, len(self.layers), 0, dtype=torch.int32)

    def row_state_bytes(self) -> Tensor:
        """int64 ``[B]`` on the CPU: state of the tokens held, row by row, whoever shares the batch; without padding."""
        held = [layer.held for layer in self.layers if layer.held is not None]
        return torch.from_numpy(sum(slots.row_tokens * slots.token_state_bytes for slots in held))

    def reset(self) -> None:
        """Forget everything, the account of bytes included."""
        super().reset()
        self.is_torn = False
        self.meter = Meter()
        self.padding = Padding()

    @property
    def cache_bytes(self) -> int:
        """Bytes of all cached keys and values, as the tensors have them."""
        return sum(held.cache_bytes for layer in self.layers for held in layer.cohorts.values())

    @property
    def spare_bytes(self) -> int:
        """Bytes of ``cache_bytes`` that are room for tokens to come: a 32nd, but at least 32, or 128 to replay."""
        return sum(held.spare_bytes for layer in self.layers for held in layer.cohorts.values())

    @property
    def peak_bytes(self) -> int:
        """Most bytes of keys and values at any moment; the room for more counts as it is now."""
        return max(self.meter.highest, self.cache_bytes)

    @property
    def state_bytes(self) -> int:
        """Bytes that the memory adds: positions, traces, attention yet to be told, and lists of lanes."""
        return sum(held.state_bytes for layer in self.layers for held in layer.cohorts.values())


class _Attachment:
    """What a cache and its copies have in common: whether the attention that can use them is in place."""

    is_open = True


class _Staged(threading.local):
    """``generate`` never hands the cache to the attention function, so the layer waits here between the two calls."""

    layer: MemoryLayer | None = None
    keys: Tensor | None = None


_staged = _Staged()


def take_staged_layer(module: nn.Module, keys: Tensor) -> MemoryLayer:
    """The layer whose ``update`` was just called with these very keys, by the attention ``module``."""
    layer, staged = _staged.layer, _staged.keys
    drop_staged_layer()
    if layer is None:
        raise UnsupportedUseError(
            f"{type(module).__name__} attends without a memory's cache in a model that a memory is attached to: pass "
            "past_key_values=cache and use_cache=True, or leave the `with memory.attached(model)` block"
        )
    if staged is not keys:
        raise UnsupportedUseError(
            f"{type(module).__name__} does not attend to the keys that it caches (multi-head latent or differential "
            "attention, or a layer without a cache), which no memory supports: take another model"
        )
    return layer


def drop_staged_layer() -> None:
    """Forget what an interrupted call has staged."""
    _staged.layer = _staged.keys = None

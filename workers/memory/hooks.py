"""A cache that brings its attention along: ``model.generate(..., past_key_values=memory.cache(model))``.

For the time of each forward call that is given the cache, and no longer, the model uses the attention that the cache
needs. Calls with another cache or none, before, between and after, see the model exactly as it was: nothing is
replaced on it, two of PyTorch's forward hooks do the switching, and they go when the cache does.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workers.memory.attention import IMPLEMENTATION, require_service
from workers.memory.cache import MemoryCache, drop_staged_layer
from workers.memory.compiling import outside_graphs
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Memory
from workers.memory.room import explain_lack_of_room
from workers.memory.support import require_fit, switch_attention

_guests: weakref.WeakKeyDictionary[PreTrainedModel, _Visit] = weakref.WeakKeyDictionary()
"""The cache whose call is under way in a model."""
_door = threading.RLock()
"""Held while a visit begins or ends: of two threads that come at once the second finds the first inside. A cache may be
collected, and so leave, in the midst of that, by the same thread."""


def hooked_cache(model: PreTrainedModel, memory: Memory) -> MemoryCache:
    """A new, empty cache for ``model``, to pass as ``past_key_values`` to it and to its ``generate``."""
    cache = _HookedCache(model, memory)
    visit = _Visit(cache)
    handles = (
        model.register_forward_pre_hook(visit.begin, with_kwargs=True),
        model.register_forward_hook(visit.end, with_kwargs=True, always_call=True),
    )
    weakref.finalize(cache, _forget, visit, weakref.ref(model), handles)
    return cache


class _HookedCache(MemoryCache):
    """A cache whose copies have hooks of their own."""

    def __init__(self, model: PreTrainedModel, memory: Memory) -> None:
        super().__init__(memory, require_fit(model, memory))
        self.is_open = False
        self._model = weakref.ref(model)

    def anew(self) -> MemoryCache:
        """As of any cache."""
        if (model := self._model()) is None:
            raise UnsupportedUseError("the model of this cache is gone, so that a copy has no use: keep the model")
        return hooked_cache(model, self.memory)


class _Visit:
    """The hooks of one cache. They refer to it weakly: it must be able to go while the model stays.

    A copy of the model has copies of them, which are of no cache and do nothing.
    """

    def __init__(self, cache: MemoryCache | None = None) -> None:
        self._cache: Callable[[], MemoryCache | None] = _nothing if cache is None else weakref.ref(cache)
        self._former = ""
        """The attention to go back to."""
        self._thread = threading.current_thread()

    def __reduce__(self) -> tuple[type[_Visit], tuple[()]]:
        """Copied and pickled with the model as the hooks of no cache."""
        return _Visit, ()

    @outside_graphs
    def begin(self, model: PreTrainedModel, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Before a forward call of the model, with whatever cache."""
        cache = self._cache()
        is_for_us = cache is not None and any(value is cache for value in (*arguments, *named.values()))
        with _door:
            guest = _guests.get(model)
            if guest is not None and (is_for_us or guest is self):
                guest.make_room(model)
            if cache is not None and is_for_us:
                require_service(model, arguments, named)
                self._thread = threading.current_thread()
                self._former = switch_attention(model, IMPLEMENTATION)
                _guests[model] = self
                cache.is_open = True

    @outside_graphs
    def end(self, model: PreTrainedModel, *_call: Any) -> None:
        """After a forward call, also one that failed, such as one that was refused in another thread."""
        if _guests.get(model) is self and self._thread is threading.current_thread():
            if (cache := self._cache()) is not None:
                explain_lack_of_room(sys.exception(), cache)
            self.leave(model)

    def make_room(self, model: PreTrainedModel) -> None:
        """Another call begins: right if ours was ended by Ctrl-C, when PyTorch calls no hook; else it is refused."""
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            raise UnsupportedUseError(
                "another thread is running this model under a memory: run one call at a time, or load the model twice"
            )
        self.leave(model)

    def leave(self, model: PreTrainedModel) -> None:
        """Give the model its own attention back, unless that was done."""
        with _door:
            if _guests.get(model) is not self:
                return
            del _guests[model]
            switch_attention(model, self._former)
            drop_staged_layer()
            if (cache := self._cache()) is not None:
                cache.is_open = False


def is_ours(hook: Callable[..., Any]) -> bool:
    """Whether a forward hook is there for a memory's cache."""
    return hook is require_service or isinstance(getattr(hook, "__self__", None), _Visit)


def _forget(visit: _Visit, model_reference: weakref.ref[PreTrainedModel], handles: Sequence[RemovableHandle]) -> None:
    """The cache is gone."""
    for handle in handles:
        handle.remove()
    if (model := model_reference()) is not None:
        visit.leave(model)


def _nothing() -> None:
    """What a weak reference gives when its object is gone."""

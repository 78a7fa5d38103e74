"""Decoding by replay: the forward call of one token, recorded once as a CUDA graph and replayed for those after it.

A decoded token costs an accelerator little and the host hundreds of launches; a replayed one is a single launch. What
a memory holds changes with every token, so the recorded call writes into open places (``open_slots.py``), and when
those are full or an update is due, the next token is decoded plainly or another call is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.memory.cache import MemoryCache, drop_staged_layer
from workers.memory.open_slots import OpenPacked, OpenSlots, Places, can_open, opened
from workers.memory.packed import PackedSlots
from workers.memory.padding import Cohort
from workers.memory.recording import cuda_graph
from workers.memory.slots import Slots

PLAIN_TOKENS = 1
"""Tokens that are decoded plainly first, which the device may need to get ready. Recording the next one costs half as
much again as decoding it, and many answers are of one token."""
LEAST_PLACES = 128
"""Open places at least, or a 32nd of what a layer holds."""

_unrecordable: WeakSet[PreTrainedModel] = WeakSet()
"""Models that do what cannot be recorded, such as to ask the device which experts."""

Call = Callable[[], Tensor]
Recorder = Callable[[Call], Call]


class Decoder:
    """Feeds a model one token after another, whose cache is a memory's.

    Args:
        model: with the memory of ``cache`` attached.
        cache: has read a prompt.
        recorder: given a call, one that does the same again; :func:`cuda_graph` where there is a CUDA device.

    """

    def __init__(self, model: PreTrainedModel, cache: MemoryCache, recorder: Recorder | None = None) -> None:
        self._model, self._cache = model, cache
        is_on_one = len(set(getattr(model, "hf_device_map", {}).values())) < 2
        self._recorder = recorder or (cuda_graph if model.device.type == "cuda" and is_on_one else None)
        if model in _unrecordable:
            self._recorder = None
        self._recording: _Recording | None = None
        self._num_decoded = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits ``[B, vocabulary]`` after the tokens ``ids`` (int64 ``[B, 1]``)."""
        logits = self.replayed(ids)
        if logits is None:
            logits = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True).logits[:, -1]
        return logits

    def replayed(self, ids: Tensor, positions: Tensor | None = None) -> Tensor | None:
        """The same, or None where the next token is to be fed plainly.

        ``positions`` are int64 ``[B or 1, 1]``; None for those that follow on the tokens read.
        """
        self._num_decoded += 1
        if self._recorder is None or self._num_decoded <= PLAIN_TOKENS or not self._is_plain_step():
            self._recording = None
            return None
        with torch.cuda.device_of(ids):  # a graph is recorded and replayed on the current device
            if self._recording is None or not self._recording.can_go_on():
                self._recording = None  # what it holds is free before more is asked for
                self._recording = self._recorded(self._recorder) if self._is_recordable() else None
            return None if self._recording is None else self._recording.step(ids, positions)

    def _is_plain_step(self) -> bool:
        """Whether the next token brings no update, and nobody wants a gradient."""
        return not torch.is_grad_enabled() and not self._cache.is_due(self._cache.get_seq_length() + 1)

    def _is_recordable(self) -> bool:
        """Whether every layer can have open places."""
        is_padded = any(self._cache.padding.by_row)
        return not is_padded and all(can_open(layer.held, layer.options) for layer in self._cache.layers)

    def _recorded(self, recorder: Recorder) -> _Recording | None:
        """None, for good, where that cannot be done."""
        try:
            recording = _Recording(self._model, self._cache)
            recording.record(recorder)
        except RuntimeError as error:
            self._recorder = None
            if not isinstance(error, torch.OutOfMemoryError):
                _unrecordable.add(self._model)
            return None
        return recording


class _Recording:
    """A recorded call, and what it reads and writes."""

    def __init__(self, model: PreTrainedModel, cache: MemoryCache) -> None:
        self._model, self._cache = model, cache
        seen, every = cache.get_seq_length(), cache.memory.update_every
        room = max(LEAST_PLACES, max(self._held(index).num_slots for index in range(len(cache.layers))) // 32)
        num_rows, device = len(self._held(0).row_tokens), cache.layers[0].device
        self._places = Places(room if every is None else min(room, every - 1 - seen % every), device)
        self._ids = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self._positions = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self._open: list[OpenSlots | OpenPacked] = []
        self._call: Call | None = None
        for index, layer in enumerate(cache.layers):  # one by one, so that no more than one layer is held twice
            one = opened(self._held(index), self._places, seen, reads_attention=cache.memory.reads_attention)
            layer.cohorts = {0: one.held}
            self._open.append(one)

    def _held(self, index: int) -> Slots | PackedSlots:
        """What a layer holds."""
        held = self._cache.layers[index].held
        assert held is not None
        return held

    def record(self, recorder: Recorder) -> None:
        """Record the call of a token."""
        self._aim()
        try:
            self._call = recorder(self._run)
        except RuntimeError:  # older drivers load no kernel while a call is recorded: it is made once, which loads all
            self._run()
            self._call = recorder(self._run)

    def _aim(self) -> None:
        """Where the next token goes."""
        self._places.token.fill_(self._open[0].num_taken)
        self._places.row.fill_(self._open[0].held.num_recent)

    def can_go_on(self) -> bool:
        """Whether there is room, and nobody else has fed the cache since."""
        is_ours = all(layer.held is one.held for layer, one in zip(self._cache.layers, self._open, strict=True))
        return is_ours and self._open[0].num_taken < self._places.room

    def step(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Feed a token ``ids [B, 1]``; logits ``[B, vocabulary]``."""
        assert self._call is not None
        self._ids.copy_(ids)
        if positions is None:
            self._positions.fill_(self._cache.get_seq_length())
        else:
            self._positions.copy_(positions)
        self._aim()
        logits = self._call().clone()
        self._account()
        return logits

    def _run(self) -> Tensor:
        layers = self._cache.layers
        for layer, one in zip(layers, self._open, strict=True):
            layer.open = one
        try:
            logits: Tensor = self._model(
                input_ids=self._ids, position_ids=self._positions, past_key_values=self._cache, use_cache=True
            ).logits[:, -1]
            return logits
        except RuntimeError:
            drop_staged_layer()
            self._cache.is_torn = False  # nothing was taken in
            raise
        finally:
            for layer in layers:
                layer.open = None

    def _account(self) -> None:
        """What a plain call would have noted on the host."""
        cache, everyone = self._cache, Cohort(0, None)
        for layer, one in zip(cache.layers, self._open, strict=True):
            one.grow(cache.memory)
            layer.cohorts = {0: one.held}
            layer.seen_tokens += 1
            cache.meter.appended(one.held, 1, everyone, len(self._ids))

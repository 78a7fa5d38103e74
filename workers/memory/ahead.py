"""A prompt swept several updates ahead of what the host knows.

How many tokens an update keeps is known on an accelerator alone. To ask for it at once would leave that with nothing to
do until the answer is back and the next work is launched. So where kernels serve, the host launches the attention,
updates and evictions of several blocks as if it did not matter: tokens are aligned at the newest of so many places that
whatever is kept fits, the kernels pass over the empty ones, and the host learns all counts afterwards.

What it launches then depends on nothing but shapes, so it is recorded once and replayed for every layer and prompt.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, d head size; L = B * H lanes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workers.memory.cache import MemoryLayer
from workers.memory.features import recency_table
from workers.memory.kernels import kernels_for
from workers.memory.memory import LayerView, Memory
from workers.memory.meter import Meter
from workers.memory.options import AttentionOptions
from workers.memory.padding import Cohort
from workers.memory.recording import cuda_graph
from workers.memory.slots import Aligned, Slots

AHEAD_TOKENS = 4096
"""Most tokens that are swept before the counts are asked for."""
PLACES_STEP = 1024
"""Places are counted in these, so that a recording serves for many layers and prompts."""
LEAST_REACH = 1 << 15
"""Tokens that may have been seen by the end of a recorded sweep, or a power of two above that."""
RECORDED_LANES = 16
"""Most lanes of a sweep that is recorded: with more, the host launches faster than the device works anyway, and a block
of genomes, read a few at a time under a memory for each few, would make a recording for each."""
MOST_RECORDINGS = 4
"""Of one memory: each holds the tokens of a layer and the queries of a sweep."""


class Swept(NamedTuple):
    """What comes of a sweep."""

    output: Tensor
    """``[B, H * r, n, d]``"""
    held: Aligned
    """What is held at the last update, with the trace after it; nothing has been evicted yet."""
    keep: Tensor
    """bool ``[B, H, places + every]``: what of it the last update keeps."""
    empty: Tensor
    """int32 ``[updates - 1, L]``: empty places after each update but the last."""


Sweep = Callable[[Aligned, Tensor, Tensor, Tensor], Swept]
"""Of what was held before, queries, keys and values."""


def tokens_ahead(layer: MemoryLayer, held: Slots, query: Tensor, seen_tokens: int, options: AttentionOptions) -> int:
    """How many of the tokens of ``query [B, H * r, n, d]`` can be swept ahead: two blocks or more, or none."""
    memory, spectrum, every = layer.cache.memory, layer.cache.memory.spectrum, layer.cache.memory.update_every
    if every is None or spectrum is None or not memory.decides_on_device or layer.cache.listener is not None:
        return 0
    attention, selection = kernels_for(query, "fused_attention"), kernels_for(query, "fused_selection")
    scorer = kernels_for(query, "fused_scorer")
    if attention is None or selection is None or scorer is None or seen_tokens % every or held.recent:
        return 0
    count = min(query.shape[2], AHEAD_TOKENS) // every
    while count > 1 and _places(memory, held, count * every) + every > selection.MOST_SLOTS:
        count -= 1
    is_served = (
        attention.can_serve(query[:, :, :every], held, options, spectrum)
        and scorer.can_serve(spectrum)
        and selection.can_move(held.keys, held.values)
    )
    return count * every if count > 1 and is_served else 0


def _places(memory: Memory, held: Slots, new_tokens: int) -> int:
    """Into which all fits that can be kept of what is held and of so many new tokens."""
    most = held.num_slots + new_tokens
    if memory.most_kept is not None:
        most = max(held.num_slots, min(most, memory.most_kept))
    return -(-most // PLACES_STEP) * PLACES_STEP


def sweep_ahead(
    layer: MemoryLayer, cohort: Cohort, held: Slots, seen_tokens: int, query: Tensor, key: Tensor, value: Tensor,
    options: AttentionOptions,
) -> tuple[Tensor, Callable[[], Slots]]:  # fmt: skip
    """Attention ``[B, H * r, n, d]`` of whole blocks, and a question: what is held after the last update?

    The output may be overwritten by the next sweep. The question waits for the device, and accounts for all updates.
    """
    memory = layer.cache.memory
    every = memory.update_every
    assert every is not None
    places = _places(memory, held, query.shape[2])
    reach = max(LEAST_REACH, 1 << (seen_tokens + query.shape[2]).bit_length())

    def sweep(begin: Aligned, query: Tensor, key: Tensor, value: Tensor) -> Swept:
        return sweep_blocks(memory, layer.index, options, reach, begin, query, key, value)

    is_recorded = cohort.rows is None and memory.treats_layers_alike and _is_worth_recording(key)
    if is_recorded:
        recording = _recording(memory, (places, reach, options.scaling), query, key, held.trace, every)
        begin, swept = recording.swept(sweep, held, seen_tokens, query, key, value)
    else:
        begin = _vacant(places, every, key, held.trace)
        _lay_out(begin, held, seen_tokens, key[:, :, :every], value[:, :, :every])
        swept = sweep(begin, query, key, value)
    meter, num_rows = layer.cache.meter, len(layer.cache.padding.by_row)
    after = _kept(swept, places)
    counts = _HostCopy(torch.cat([swept.empty, after.empty[None]]))

    def settled() -> Slots:
        empty = counts.wait()
        _account(meter, num_rows, cohort, begin, held, empty)
        return _settled(after, empty[-1])

    return swept.output, settled


def sweep_blocks(
    memory: Memory, layer: int, options: AttentionOptions, reach: int, begin: Aligned, query: Tensor, key: Tensor,
    value: Tensor,
) -> Swept:  # fmt: skip
    """Block by block: attention, update, eviction. The host needs no answer, and knows but shapes and ``reach``.

    ``reach`` is an upper bound of the tokens seen at the end.
    """
    attention, selection = kernels_for(query, "fused_attention"), kernels_for(query, "fused_selection")
    every, spectrum = memory.update_every, memory.spectrum
    assert attention is not None
    assert selection is not None
    assert every is not None
    rows, query_heads, num_queries, size = query.shape
    output = query.new_empty(rows, num_queries, query_heads, size).transpose(1, 2)
    held, empty = begin, []
    for start in range(0, num_queries, every):
        block, following = slice(start, start + every), slice(start + every, start + 2 * every)
        slots = Slots(held.keys, held.values, held.positions, held.trace, empty=())
        _, trace = attention.attend_and_observe(
            query[:, :, block], slots, options, spectrum, held.empty, held.sources, output[:, :, block]
        )
        keep = memory.decide(LayerView(layer, reach, held.keys, held.values, held.positions, trace)).keep
        held = held._replace(trace=trace)
        if following.start < num_queries:
            held = selection.moved(keep, begin.places, *held[:4], key[:, :, following], value[:, :, following])
            empty.append(held.empty)
    return Swept(output, held, keep, torch.stack(empty))


# Before and after -----------------------------------------------------------------------------------------------------


def _vacant(places: int, new: int, key: Tensor, trace: Tensor) -> Aligned:
    """Nothing, in the shapes and dtypes of a layer's keys, which its values share."""
    rows, heads, _, size = key.shape
    keys, values = key.new_zeros(2, rows, heads, places + new, size).unbind()
    positions = torch.full((rows, heads, places + new), -1, dtype=torch.int32, device=key.device)
    told = trace.new_zeros(rows, heads, trace.shape[-1], places).transpose(2, 3)
    sources = torch.arange(places, dtype=torch.int32, device=key.device).expand(rows, heads, -1).contiguous()
    empty = torch.empty(rows * heads, dtype=torch.int32, device=key.device)
    return Aligned(keys, values, positions, told, sources, empty)


def _lay_out(begin: Aligned, held: Slots, seen_tokens: int, key: Tensor, value: Tensor) -> None:
    """Into ``begin``: what is held, and the first block's ``key`` and ``value [B, H, n, d]``."""
    places, new = begin.places, key.shape[2]
    first = places - held.num_slots
    for buffer, old, added in ((begin.keys, held.keys, key), (begin.values, held.values, value)):
        buffer[:, :, first:places] = old
        buffer[:, :, places:] = added
    for buffer, nothing in ((begin.positions, -1), (begin.values, 0), (begin.trace, 0)):
        buffer[:, :, :first] = nothing  # a prompt before may have left there what is no number
    begin.positions[:, :, first:places] = held.positions
    begin.positions[:, :, places:] = torch.arange(seen_tokens, seen_tokens + new, dtype=torch.int32, device=key.device)
    begin.trace[:, :, first:] = held.full_trace()
    begin.empty.copy_(torch.tensor(held.empty, dtype=torch.int32), non_blocking=True)
    begin.empty.add_(first)


def _kept(swept: Swept, places: int) -> Aligned:
    """What the last update keeps, in tensors of its own."""
    selection = kernels_for(swept.keep, "fused_selection")
    assert selection is not None
    nothing = swept.held.keys[:, :, :0], swept.held.values[:, :, :0]
    moved: Aligned = selection.moved(swept.keep, places, *swept.held[:4], *nothing)
    return moved._replace(trace=selection.own_trace(moved))


def _account(meter: Meter, num_rows: int, cohort: Cohort, begin: Aligned, held: Slots, empty: list[list[int]]) -> None:
    """Every update as the meter would have seen it, from the ``empty`` places after each."""
    new = begin.positions.shape[2] - begin.places
    first = begin.places - held.num_slots
    former = tuple(first + count for count in held.empty)
    slots = Slots(begin.keys, begin.values, begin.positions, begin.trace, former)
    for counts in empty:
        meter.appended(slots, new, cohort, num_rows)
        left = replace(slots, empty=tuple(counts))
        dropped = slots.row_tokens - (left.row_tokens - new * begin.positions.shape[1])
        meter.evicted(dropped, slots, cohort)
        slots = left


def _settled(held: Aligned, empty: list[int]) -> Slots:
    """What is held in places of its own, as many as the longest lane needs."""
    surplus = min(empty)
    keys, values, positions, trace = held[:4]
    if surplus:
        keys, values, positions = (tensor[:, :, surplus:].contiguous() for tensor in (keys, values, positions))
        trace = trace.transpose(2, 3)[..., surplus:].contiguous().transpose(2, 3)  # channel by channel, as it was
    return Slots(keys, values, positions, trace, tuple(count - surplus for count in empty))


class _HostCopy:
    """Integers ``[m, n]`` on their way from the device to the host."""

    def __init__(self, asked: Tensor) -> None:
        self._values = torch.empty(asked.shape, dtype=asked.dtype, pin_memory=asked.is_cuda)
        self._values.copy_(asked, non_blocking=True)
        self._has_come: torch.cuda.Event | None = None
        if asked.is_cuda:
            self._has_come = torch.cuda.Event()
            self._has_come.record()

    def wait(self) -> list[list[int]]:
        """The integers."""
        if self._has_come is not None:
            self._has_come.synchronize()
        values: list[list[int]] = self._values.tolist()
        return values


# Recorded -------------------------------------------------------------------------------------------------------------


def _is_worth_recording(key: Tensor) -> bool:
    return key.is_cuda and key.shape[0] * key.shape[1] <= RECORDED_LANES


class _RecordedSweep:
    """A sweep of some shape, on tensors of its own."""

    def __init__(self, places: int, every: int, query: Tensor, key: Tensor, trace: Tensor) -> None:
        self._begin = _vacant(places, every, key, trace)
        self._inputs = tuple(torch.empty_like(tensor) for tensor in (query, key, key))
        self._is_warm = False
        self._replay: Callable[[], Swept] | None = None
        self.table: Tensor | None = None
        """What the memory looks ages up in, kept for as long as the recording needs it."""

    def swept(
        self, sweep: Sweep, held: Slots, seen_tokens: int, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Aligned, Swept]:
        """What was held before, laid out, and what ``sweep`` makes of it: done the first time, recorded the second."""
        for own, tensor in zip(self._inputs, (query, key, value), strict=True):
            own.copy_(tensor)
        new = self._begin.positions.shape[2] - self._begin.places
        _lay_out(self._begin, held, seen_tokens, key[:, :, :new], value[:, :, :new])
        if not self._is_warm:  # kernels are compiled now, which cannot be recorded
            self._is_warm = True
            return self._begin, sweep(self._begin, *self._inputs)
        if self._replay is None:
            self._replay = cuda_graph(lambda: sweep(self._begin, *self._inputs))
        return self._begin, self._replay()


_recordings: WeakKeyDictionary[Memory, dict[Hashable, _RecordedSweep]] = WeakKeyDictionary()


def _recording(
    memory: Memory, launched: tuple[int, int, float], query: Tensor, key: Tensor, trace: Tensor, every: int
) -> _RecordedSweep:
    """The recording for such a sweep, on this thread's stream: another one may be under way beside it.

    ``launched`` are the numbers that are recorded: places, reach and scaling.
    """
    stream = torch.cuda.current_stream(query.device).cuda_stream if query.is_cuda else None
    wanted = (
        *launched,
        query.shape,
        key.shape,
        trace.shape[-1],
        query.dtype,
        query.device,
        stream,
        threading.get_ident(),
    )
    known = _recordings.setdefault(memory, {})
    if wanted not in known:
        while len(known) >= MOST_RECORDINGS:
            known.pop(next(iter(known)))
        known[wanted] = _RecordedSweep(launched[0], every, query, key, trace)
        assert memory.spectrum is not None
        known[wanted].table = recency_table(launched[1], memory.spectrum, query.device)
    return known[wanted]

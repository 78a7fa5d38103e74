"""Attention and spectrogram without ever writing the attention: two Triton kernels, for ``tiled_attention.py``.

The first is flash attention that also stores the log-sum-exp of every query. With it the second knows every weight
without asking another query or slot: a program takes a few slots of a lane, walks over the queries hop by hop, computes
the weights anew from queries and keys, averages them over the query heads, and keeps the moving average over the
frames' magnitudes (spec 3.1 and 3.2) in registers. So a block reads queries, keys and values, writes its
output and the trace, and nothing that is as large as queries times slots.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size; L = B * H lanes.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from workers.memory.features import spectrum_basis
from workers.memory.options import AttentionOptions
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings

HOP = 16
"""The smallest side of a matrix product on a tensor core, and the published hop."""
TILE_BYTES = 16_384
"""Of keys, and of values, that the first kernel looks at together."""
MEMBERS = 4
"""Query heads that the second kernel multiplies at once."""
OBSERVED_SLOTS, OBSERVED_STAGES = 128, 2
"""Of a program of the second kernel: what took least time on an H200 at 512 queries and 4,608 slots of eight heads,
among twenty settings: 67 µs. By arithmetic the products alone take 30 and the exponentials 20."""
FEW_OBSERVED_SLOTS, FEW_OBSERVED_STAGES = 64, 3
"""The same where there would be few programs, each of which goes from hop to hop: smaller ones keep more of the device
at work. 43 µs at 2,560 slots, where it took 55."""
MANY_PROGRAMS = 256
"""Some two for each multiprocessor of such a device."""
TOLD_SLOTS = 64
"""Of a program that is given attention."""
LOG2_E = 1.4426950408889634
HEAD_SIZES = frozenset({16, 32, 64, 128, 256})


def can_serve(query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings) -> bool:
    """Whether the kernels compute just this; the portable path computes all."""
    size, values_size = slots.keys.shape[-1], slots.values.shape[-1]
    is_plain = options.softcap is None and options.sinks is None and options.sliding_window is None
    pending = slots.trace.shape[-1] - spectrum.num_bins
    is_aligned = spectrum.hop == HOP == pending and query.shape[2] % HOP == 0
    return is_plain and is_aligned and size == values_size and size in HEAD_SIZES


def attend_and_observe(
    query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings, empty: Tensor | None = None,
    sources: Tensor | None = None, output: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output ``[B, H * r, n, d]`` and the new trace ``[B, H, K, bins + hop]``, where :func:`can_serve`.

    ``empty`` (int32 ``[L]``) tells how many slots before each head's first token are empty, where ``slots`` cannot;
    ``sources`` (int32 ``[B, H, K']``) of which slots the trace is (``Aligned.sources``), where not of the first.
    The output is written to ``output`` where that is given, or lies in memory token by token.
    """
    empty = _empty(slots.empty, query.device) if empty is None else empty
    if output is None:
        rows, query_heads, num_queries, size = query.shape
        output = query.new_empty(rows, num_queries, query_heads, size).transpose(1, 2)
    log_sums = _attended(query, slots, options, empty, output)
    return output, _observed(query, slots, options, spectrum, empty, sources, log_sums)


def _attended(query: Tensor, slots: Slots, options: AttentionOptions, empty: Tensor, output: Tensor) -> Tensor:
    """Attention into ``output``; the base-2 logarithms of its sums of exponentials, float32 ``[B * H * r, n]``."""
    rows, query_heads, num_queries, size = query.shape
    heads, num_slots = slots.positions.shape[1:]
    log_sums = torch.empty(rows * query_heads, num_queries, dtype=torch.float32, device=query.device)
    block = 64 if num_queries >= 64 else 16
    tile = min(64, TILE_BYTES // (size * query.element_size()))
    keys_and_values = (slots.keys.flatten(0, 1), slots.values.flatten(0, 1))
    _attend[(triton.cdiv(num_queries, block), rows * query_heads)](
        query, *(TensorDescriptor.from_tensor(tensor, [1, tile, size]) for tensor in keys_and_values),
        output, log_sums, empty, *query.stride()[:3], *output.stride()[:3],
        query_heads, num_queries, num_slots, options.scaling * LOG2_E,
        GROUP=query_heads // heads, SIZE=size, QUERIES=block, SLOTS=tile, PRECISION=_precision(query),
        num_warps=4, num_stages=2 if query.dtype == torch.float32 else 3,
    )  # fmt: skip
    return log_sums


def _observed(
    query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings, empty: Tensor,
    sources: Tensor | None, log_sums: Tensor,
) -> Tensor:  # fmt: skip
    """The trace ``[B, H, K, bins + hop]`` after attention whose sums have the logarithms ``log_sums``."""
    rows, query_heads, num_queries, size = query.shape
    heads, num_slots = slots.positions.shape[1:]
    lanes, group = rows * heads, query_heads // heads
    keys, trace = slots.keys.flatten(0, 1), slots.trace.flatten(0, 1)
    num_traced = trace.shape[1] if sources is None else sources.shape[2]
    observed = torch.empty(lanes, spectrum.num_bins + HOP, num_slots, dtype=torch.float32, device=query.device)
    # Attention is small: in float16 it is as exact as in tf32, when it is counted in thousandths.
    dtype, unit = (torch.float32, 1.0) if query.dtype == torch.float32 else (torch.float16, 1024.0)
    is_many = lanes * triton.cdiv(num_slots, OBSERVED_SLOTS) > MANY_PROGRAMS
    tile = OBSERVED_SLOTS if is_many else FEW_OBSERVED_SLOTS
    _observe[(lanes, triton.cdiv(num_slots, tile))](
        query, keys, log_sums, trace, empty if sources is None else sources, observed, empty,
        _basis(query.device, dtype),
        *query.stride()[:3], keys.stride(0), keys.stride(1), trace.stride(0), trace.stride(1), trace.stride(2),
        heads, num_queries, num_slots, num_traced, options.scaling * LOG2_E, spectrum.ema**HOP,
        IS_LISTED=sources is not None, GROUP=group, MEMBERS=min(MEMBERS, triton.next_power_of_2(group)), SIZE=size,
        SLOTS=tile, STEP=HOP, UNIT=unit, PRECISION=_precision(query),
        num_warps=4, num_stages=OBSERVED_STAGES if is_many else FEW_OBSERVED_STAGES,
    )  # fmt: skip
    after = observed.transpose(1, 2)
    return after.view(rows, heads, *after.shape[1:])


def _precision(query: Tensor) -> str:
    """Of products."""
    return "ieee" if query.dtype == torch.float32 else "tf32"


def can_observe(trace: Tensor, attention: Tensor, spectrum: NammSettings) -> bool:
    """Whether :func:`observe` serves: whole hops."""
    pending, num_queries = trace.shape[-1] - spectrum.num_bins, attention.shape[2]
    return spectrum.hop == HOP == pending and num_queries > 0 and num_queries % HOP == 0


def observe(trace: Tensor, attention: Tensor, spectrum: NammSettings) -> Tensor:
    """:func:`features.observe` of attention ``[B, H, n, K]`` that is at hand, where :func:`can_observe`."""
    rows, heads, num_queries, num_slots = attention.shape
    paid, former = attention.flatten(0, 1), trace.flatten(0, 1)
    observed = torch.empty(len(paid), spectrum.num_bins + HOP, num_slots, dtype=torch.float32, device=paid.device)
    _observe_rows[(triton.cdiv(num_slots, TOLD_SLOTS), len(paid))](  # all packed tokens are slots of one lane
        paid, former, observed, _basis(paid.device, torch.float32), *paid.stride(), *former.stride(),
        num_queries, num_slots, spectrum.ema**HOP, SLOTS=TOLD_SLOTS, STEP=HOP, num_warps=4,
    )  # fmt: skip
    trace = observed.transpose(1, 2)
    return trace.view(rows, heads, *trace.shape[1:])


@functools.lru_cache(maxsize=64)
def _empty(empty: tuple[int, ...], device: torch.device) -> Tensor:
    """Empty slots before the first token of each lane, int32 ``[L]``: mostly none, so that nothing is copied."""
    return torch.tensor(empty, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=8)
def _basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What takes two hops of attention, the older first, to their spectrum, ``[2, hop, 2 * hop]``.

    Real parts, then imaginary ones. In the place of the lowest bin's imaginary part, which is zero, stands the real
    part of the highest.
    """
    halves = torch.stack(spectrum_basis(2 * HOP, torch.device("cpu")).T.split(HOP))
    return halves.to(device, dtype)


@triton.jit
def _take_in(
    q, row, highest, total, mixed, keys, values, lane, start, first, newest, scale,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr, IS_HIDING: tl.constexpr,
):  # fmt: skip
    """One tile of slots into a running softmax."""
    slot = start + tl.arange(0, SLOTS)
    k = tl.reshape(keys.load([lane, start, 0]), [SLOTS, SIZE])
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if IS_HIDING:
        seen = (slot[None, :] >= first) & (slot[None, :] <= newest + row[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    safe = higher
    if IS_HIDING:  # nothing seen yet: minus infinity less itself is no number
        safe = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(highest - safe)
    v = tl.reshape(values.load([lane, start, 0]), [SLOTS, SIZE])
    mixed = mixed * shrink[:, None]
    mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision=PRECISION)
    return higher, total * shrink + tl.sum(weights, 1), mixed


@triton.jit(do_not_specialize=["query_heads", "num_queries", "num_slots"])
def _attend(
    queries, keys, values, output, log_sums, empty,
    query_batch, query_head, query_row, out_batch, out_head, out_row,
    query_heads, num_queries, num_slots, scale,
    GROUP: tl.constexpr, SIZE: tl.constexpr, QUERIES: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one query head; ``scale`` is to the base 2, and so is what goes to ``log_sums``."""
    head = tl.program_id(1)
    lane = head // GROUP
    batch, of_batch = (head // query_heads).to(tl.int64), head % query_heads
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, SIZE)
    is_query = row < num_queries
    q = tl.load(
        queries + batch * query_batch + of_batch * query_head + row[:, None] * query_row + channel[None, :],
        mask=is_query[:, None], other=0.0,
    )  # fmt: skip
    newest = num_slots - num_queries
    first = tl.load(empty + lane)
    stop = newest + tl.minimum((tl.program_id(0) + 1) * QUERIES, num_queries)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, SIZE], tl.float32)
    # All queries of the tile see the slots between; only before and behind has anything to be hidden.
    begin = first // SLOTS * SLOTS
    plain_begin = (first + SLOTS - 1) // SLOTS * SLOTS
    plain_stop = tl.maximum((newest + tl.program_id(0) * QUERIES + 1) // SLOTS * SLOTS, plain_begin)
    for start in range(begin, plain_begin, SLOTS):
        highest, total, mixed = _take_in(
            q, row, highest, total, mixed, keys, values, lane, start, first, newest, scale,
            SIZE, SLOTS, PRECISION, True,
        )  # fmt: skip
    for start in range(plain_begin, plain_stop, SLOTS):
        highest, total, mixed = _take_in(
            q, row, highest, total, mixed, keys, values, lane, start, first, newest, scale,
            SIZE, SLOTS, PRECISION, False,
        )  # fmt: skip
    for start in range(plain_stop, stop, SLOTS):
        highest, total, mixed = _take_in(
            q, row, highest, total, mixed, keys, values, lane, start, first, newest, scale,
            SIZE, SLOTS, PRECISION, True,
        )  # fmt: skip
    mixed = mixed / total[:, None]
    out = output + batch * out_batch + of_batch * out_head + row[:, None] * out_row + channel[None, :]
    tl.store(out, mixed.to(output.dtype.element_ty), mask=is_query[:, None])
    tl.store(log_sums + head.to(tl.int64) * num_queries + row, highest + tl.log2(total), mask=is_query)


@triton.jit
def _paid(
    k, batch, sums, start, query_head, query_row, num_queries, scale,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of STEP queries to the slots of ``k``, summed over the query heads of their group."""
    beside, channel = tl.arange(0, MEMBERS * STEP), tl.arange(0, SIZE)
    row = start + beside % STEP
    paid = tl.zeros([SLOTS, STEP], tl.float32)
    for part in tl.static_range(0, GROUP, MEMBERS):
        member = part + beside // STEP
        of_query = tl.minimum(member, GROUP - 1) * query_head + row * query_row
        q = tl.load(batch + of_query[:, None] + channel[None, :])
        log_sum = tl.load(sums + member * num_queries + row, mask=member < GROUP, other=float("inf"))
        weights = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale - log_sum[None, :])
        paid += tl.sum(tl.reshape(weights, [SLOTS, MEMBERS, STEP]), 1)
    return paid


@triton.jit
def _trace_before(state, trace_channel, is_traced, dtype: tl.constexpr, STEP: tl.constexpr, UNIT: tl.constexpr):
    """Of some slots, whose traces begin at ``state``: the moving average but for its highest bin, that bin, a hop."""
    step = tl.arange(0, STEP)
    average = UNIT * tl.load(state[:, None] + step[None, :] * trace_channel, mask=is_traced[:, None], other=0.0)
    highest = UNIT * tl.load(state + STEP * trace_channel, mask=is_traced, other=0.0)
    highest = tl.where((step == 0)[None, :], highest[:, None], 0.0)
    pending = tl.load(state[:, None] + (STEP + 1 + step)[None, :] * trace_channel, mask=is_traced[:, None], other=0.0)
    return average, highest, (UNIT * pending).to(dtype)


@triton.jit
def _with_frame(
    before, now, older, newer, average, highest, decay,
    SLOTS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The moving average with a frame of two hops of attention ``[SLOTS, STEP]``."""
    is_lowest = (tl.arange(0, STEP) == 0)[None, :]
    spectrum = tl.dot(before, older, input_precision=PRECISION)
    spectrum = tl.dot(now, newer, spectrum, input_precision=PRECISION)
    # Real parts, then imaginary ones; but the lowest bin has none, and the highest one's real part is there.
    real, imaginary = tl.split(tl.permute(tl.reshape(spectrum, [SLOTS, 2, STEP]), [0, 2, 1]))
    magnitude = tl.sqrt(real * real + tl.where(is_lowest, 0.0, imaginary * imaginary))
    average = decay * average + (1.0 - decay) * magnitude
    highest = decay * highest + (1.0 - decay) * tl.abs(imaginary)
    return average, highest


@triton.jit
def _store_trace(told, average, highest, before, is_slot, num_slots, STEP: tl.constexpr, UNIT: tl.constexpr):
    """To ``told``, channel by channel."""
    step = tl.arange(0, STEP)
    row_of = told[:, None] + step[None, :] * num_slots
    tl.store(row_of, average / UNIT, mask=is_slot[:, None])
    highest = tl.sum(tl.where((step == 0)[None, :], highest, 0.0), 1)
    tl.store(told + STEP * num_slots, highest / UNIT, mask=is_slot)
    tl.store(row_of + (STEP + 1) * num_slots, before.to(tl.float32) / UNIT, mask=is_slot[:, None])


@triton.jit(do_not_specialize=["trace_lane", "trace_channel", "heads", "num_queries", "num_slots", "num_traced"])
def _observe(
    queries, keys, log_sums, trace, sources, observed, empty, basis,
    query_batch, query_head, query_row, key_lane, key_row, trace_lane, trace_slot, trace_channel,
    heads, num_queries, num_slots, num_traced, scale, decay,
    IS_LISTED: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
    STEP: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A few slots of one lane, over all queries: what :func:`features.observe` makes of their attention.

    A frame is STEP queries and those before; MEMBERS query heads are multiplied at once, side by side. Attention is
    counted in 1 / UNIT.
    """
    lane = tl.program_id(0)
    first_slot = tl.program_id(1) * SLOTS
    slot = first_slot + tl.arange(0, SLOTS)
    channel, step, column = tl.arange(0, SIZE), tl.arange(0, STEP), tl.arange(0, 2 * STEP)
    is_slot = slot < num_slots
    first = tl.load(empty + lane)
    k = tl.load(
        keys + lane.to(tl.int64) * key_lane + slot[:, None] * key_row + channel[None, :],
        mask=is_slot[:, None], other=0.0,
    )  # fmt: skip
    half = basis + step[:, None] * (2 * STEP) + column[None, :]
    older, newer = tl.load(half), tl.load(half + 2 * STEP * STEP)
    # The trace: the moving average of all bins, then the last hop of attention.
    is_traced = slot < num_traced
    source = slot
    if IS_LISTED:
        source = tl.load(sources + lane.to(tl.int64) * num_traced + slot, mask=is_traced, other=-1)
        is_traced = source >= 0
    state = trace + lane.to(tl.int64) * trace_lane + source * trace_slot
    average, highest, before = _trace_before(state, trace_channel, is_traced, older.dtype, STEP, UNIT)
    # Nobody sees a token before it is there, so its average stays zero until then.
    newest = num_slots - num_queries
    begin = tl.maximum(0, (first_slot - newest) // STEP) * STEP
    begin = tl.where(first_slot + SLOTS <= first, num_queries, begin)
    # From here on all queries see all slots, if none is empty.
    plain_begin = tl.where(first_slot < first, num_queries, first_slot + SLOTS - newest - 1)
    batch = queries + (lane // heads).to(tl.int64) * query_batch + (lane % heads * GROUP) * query_head
    sums = log_sums + (lane * GROUP).to(tl.int64) * num_queries
    for start in range(begin, num_queries, STEP):
        paid = _paid(
            k, batch, sums, start, query_head, query_row, num_queries, scale,
            GROUP, MEMBERS, SIZE, SLOTS, STEP, PRECISION,
        )  # fmt: skip
        if start < plain_begin:
            is_seen = (slot >= first)[:, None] & (slot[:, None] <= newest + start + step[None, :])
            paid = tl.where(is_seen & is_slot[:, None], paid, 0.0)
        now = (paid * (UNIT / GROUP)).to(older.dtype)
        average, highest = _with_frame(before, now, older, newer, average, highest, decay, SLOTS, STEP, PRECISION)
        before = now
    told = observed + lane.to(tl.int64) * (2 * STEP + 1) * num_slots + slot
    _store_trace(told, average, highest, before, is_slot, num_slots, STEP, UNIT)


@triton.jit(do_not_specialize=["trace_lane", "trace_channel", "paid_lane", "paid_row", "num_queries", "num_slots"])
def _observe_rows(
    attention, trace, observed, basis, paid_lane, paid_row, paid_slot, trace_lane, trace_slot, trace_channel,
    num_queries, num_slots, decay,
    SLOTS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A few slots of one lane, whose attention is given."""
    lane = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    step, column = tl.arange(0, STEP), tl.arange(0, 2 * STEP)
    is_slot = slot < num_slots
    half = basis + step[:, None] * (2 * STEP) + column[None, :]
    older, newer = tl.load(half), tl.load(half + 2 * STEP * STEP)
    state = trace + lane * trace_lane + slot * trace_slot
    average, highest, before = _trace_before(state, trace_channel, is_slot, older.dtype, STEP, 1.0)
    for start in range(0, num_queries, STEP):
        there = lane * paid_lane + (start + step)[None, :] * paid_row + slot[:, None] * paid_slot
        now = tl.load(attention + there, mask=is_slot[:, None], other=0.0)
        average, highest = _with_frame(before, now, older, newer, average, highest, decay, SLOTS, STEP, "ieee")
        before = now
    told = observed + lane * (2 * STEP + 1) * num_slots + slot
    _store_trace(told, average, highest, before, is_slot, num_slots, STEP, 1.0)

"""Attention and spectrogram without ever writing the attention: two Triton kernels in the place of ``watching.attend``.

The first is flash attention that also stores the log-sum-exp of every query. With it the second knows every weight
without asking another query or slot: a program takes a few slots of a lane, walks over the queries hop by hop, computes
the weights anew from queries and keys, averages them over the query heads, and keeps the moving average over the
frames' magnitudes (spec 3.1 and 3.2) in registers. So a block reads queries, keys and values, writes its output and the
trace, and nothing that is as large as queries times slots.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size; L = B * H lanes.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.memory.features import spectrum_basis
from workers.memory.options import AttentionOptions
from workers.memory.slots import Slots
from workers.memory.specs import NammSettings

HOP = 16
"""The smallest side of a matrix product on a tensor core, and the published hop."""
LOG2_E = 1.4426950408889634
HEAD_SIZES = frozenset({16, 32, 64, 128, 256})


def can_serve(query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings) -> bool:
    """Whether the kernels compute just this; the portable path computes all."""
    size, values_size = slots.keys.shape[-1], slots.values.shape[-1]
    is_plain = options.softcap is None and options.sinks is None and options.sliding_window is None
    pending = slots.trace.shape[-1] - spectrum.num_bins
    group = query.shape[1] // slots.keys.shape[1]
    is_plain &= group & (group - 1) == 0  # sides of Triton's tiles are powers of two
    is_aligned = spectrum.hop == HOP == pending and query.shape[2] % HOP == 0
    return is_plain and is_aligned and size == values_size and size in HEAD_SIZES and not torch.is_grad_enabled()


def attend_and_observe(
    query: Tensor, slots: Slots, options: AttentionOptions, spectrum: NammSettings
) -> tuple[Tensor, Tensor]:
    """The output ``[B, H * r, n, d]`` and the new trace ``[B, H, K, bins + hop]``, where :func:`can_serve`."""
    rows, query_heads, num_queries, size = query.shape
    heads, num_slots = slots.positions.shape[1:]
    lanes, group = rows * heads, query_heads // heads
    keys, values = slots.keys.flatten(0, 1), slots.values.flatten(0, 1)
    queries = query.reshape(rows * query_heads, num_queries, size)
    empty = _empty(slots.empty, query.device)
    output = torch.empty_like(queries, memory_format=torch.contiguous_format)
    log_sums = torch.empty(rows * query_heads, num_queries, dtype=torch.float32, device=query.device)
    scale = options.scaling * LOG2_E
    precision = "ieee" if query.dtype == torch.float32 else "tf32"
    block = 128 if num_queries >= 128 and size <= 128 else 64 if num_queries >= 64 else 16
    _attend[(triton.cdiv(num_queries, block), rows * query_heads)](
        queries, keys, values, output, log_sums, empty,
        queries.stride(0), queries.stride(1), keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        num_queries, num_slots, scale,
        GROUP=group, SIZE=size, QUERIES=block, SLOTS=64, PRECISION=precision,
        num_warps=8 if block == 128 else 4, num_stages=2 if query.dtype == torch.float32 else 3,
    )  # fmt: skip
    trace = slots.trace.flatten(0, 1)
    bins = spectrum.num_bins
    observed = torch.empty(lanes, bins + HOP, num_slots, dtype=torch.float32, device=query.device)
    columns = 64 if lanes * num_slots >= 64 * 256 else 32
    _observe[(triton.cdiv(num_slots, columns), lanes)](
        queries, keys, log_sums, trace, observed, empty, *_basis(query.device),
        queries.stride(0), queries.stride(1), keys.stride(0), keys.stride(1),
        trace.stride(0), trace.stride(1), trace.stride(2),
        num_queries, num_slots, scale, spectrum.ema**HOP,
        GROUP=group, SIZE=size, SLOTS=columns, STEP=HOP, PRECISION=precision, num_warps=4,
    )  # fmt: skip
    return (
        output.view(rows, query_heads, num_queries, size),
        observed.transpose(1, 2).unflatten(0, (rows, heads)),
    )


def can_attend(query: Tensor) -> bool:
    """Whether :func:`attend_causally` serves these."""
    return query.shape[-1] in HEAD_SIZES and not torch.is_grad_enabled()


def attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal self-attention in float32, ``[B, H, K, h]``: three products on tensor cores in the place of one off them.

    Their sum is as exact as float32 but for its last two or three bits.
    """
    rows, heads, num_slots, size = query.shape
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    output = torch.empty(rows * heads, num_slots, size, dtype=query.dtype, device=query.device)
    log_sums = torch.empty(rows * heads, num_slots, dtype=torch.float32, device=query.device)
    empty = _empty((0,) * (rows * heads), query.device)
    _attend[(triton.cdiv(num_slots, 64), rows * heads)](
        query, key, value, output, log_sums, empty,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        num_slots, num_slots, size**-0.5 * LOG2_E,
        GROUP=1, SIZE=size, QUERIES=64, SLOTS=64, PRECISION="tf32x3", num_warps=4, num_stages=2,
    )  # fmt: skip
    return output.view(rows, heads, num_slots, size)


@functools.lru_cache(maxsize=64)
def _empty(empty: tuple[int, ...], device: torch.device) -> Tensor:
    """Empty slots before the first token of each lane, int32 ``[L]``: mostly none, so that nothing is copied."""
    return torch.tensor(empty, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=8)
def _basis(device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the bins but the last, ``[2, hop, 2 * hop]``, and the last one's cosines ``[2 * hop]``."""
    basis = spectrum_basis(2 * HOP, device)
    sines = torch.cat([torch.zeros_like(basis[:1]), basis[HOP + 1 :]])
    return torch.stack([basis[:HOP], sines]).contiguous(), basis[HOP].contiguous()


@triton.jit
def _attend(
    queries, keys, values, output, log_sums, empty,
    query_lane, query_row, key_lane, key_row, value_lane, value_row,
    num_queries, num_slots, scale,
    GROUP: tl.constexpr, SIZE: tl.constexpr, QUERIES: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one query head; ``scale`` is to the base 2, and so is what goes to ``log_sums``."""
    head = tl.program_id(1)
    lane = head // GROUP
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, SIZE)
    is_query = row < num_queries
    q = tl.load(
        queries + head.to(tl.int64) * query_lane + row[:, None] * query_row + channel[None, :],
        mask=is_query[:, None], other=0.0,
    )  # fmt: skip
    own = num_slots - num_queries + row
    first = tl.load(empty + lane)
    stop = num_slots - num_queries + tl.minimum((tl.program_id(0) + 1) * QUERIES, num_queries)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, SIZE], tl.float32)
    key_base = keys + lane.to(tl.int64) * key_lane
    value_base = values + lane.to(tl.int64) * value_lane
    for start in range(first // SLOTS * SLOTS, stop, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        is_slot = slot < num_slots
        k = tl.load(key_base + slot[:, None] * key_row + channel[None, :], mask=is_slot[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (slot[None, :] >= first) & (slot[None, :] <= own[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(value_base + slot[:, None] * value_row + channel[None, :], mask=is_slot[:, None], other=0.0)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision=PRECISION)
        highest = higher
    mixed = mixed / total[:, None]
    out = output + (head.to(tl.int64) * num_queries + row[:, None]) * SIZE + channel[None, :]
    tl.store(out, mixed.to(output.dtype.element_ty), mask=is_query[:, None])
    tl.store(log_sums + head.to(tl.int64) * num_queries + row, highest + tl.log2(total), mask=is_query)


@triton.jit
def _observe(
    queries, keys, log_sums, trace, observed, empty, basis, last_basis,
    query_lane, query_row, key_lane, key_row, trace_lane, trace_slot, trace_channel,
    num_queries, num_slots, scale, decay,
    GROUP: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A few slots of one lane, over all queries: what :func:`features.observe` makes of their attention."""
    lane = tl.program_id(1)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel = tl.arange(0, SIZE)
    step = tl.arange(0, STEP)
    is_slot = slot < num_slots
    is_held = is_slot & (slot >= tl.load(empty + lane))
    k = tl.load(
        keys + lane.to(tl.int64) * key_lane + slot[:, None] * key_row + channel[None, :],
        mask=is_slot[:, None], other=0.0,
    )  # fmt: skip
    k = tl.trans(k)
    square = step[:, None] * (2 * STEP) + step[None, :]
    cosine_before = tl.load(basis + square)
    cosine = tl.load(basis + square + STEP)
    sine_before = tl.load(basis + 2 * STEP * STEP + square)
    sine = tl.load(basis + 2 * STEP * STEP + square + STEP)
    last_before = tl.load(last_basis + step)
    last = tl.load(last_basis + STEP + step)
    # The trace: the moving average of all bins, then the last hop of attention.
    state = trace + lane.to(tl.int64) * trace_lane + slot * trace_slot
    average = tl.load(state[None, :] + step[:, None] * trace_channel, mask=is_slot[None, :], other=0.0)
    last_average = tl.load(state + STEP * trace_channel, mask=is_slot, other=0.0)
    before = tl.load(state[None, :] + (STEP + 1 + step[:, None]) * trace_channel, mask=is_slot[None, :], other=0.0)
    # Rows of the group's heads, one head after the other.
    stacked = tl.arange(0, GROUP * STEP)
    head = lane * GROUP + stacked // STEP
    row_in_hop = stacked % STEP
    # Nobody sees a token before it is there, so its average stays zero until then.
    newest = num_slots - num_queries
    first_hop = tl.maximum(0, (tl.program_id(0) * SLOTS - newest) // STEP)
    for hop in range(first_hop, num_queries // STEP):
        row = hop * STEP + row_in_hop
        q = tl.load(queries + head.to(tl.int64)[:, None] * query_lane + row[:, None] * query_row + channel[None, :])
        log_sum = tl.load(log_sums + head.to(tl.int64) * num_queries + row)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        seen = is_held[None, :] & (slot[None, :] <= newest + row[:, None])
        weights = tl.where(seen, tl.exp2(scores - log_sum[:, None]), 0.0)
        paid = tl.sum(tl.reshape(weights, [GROUP, STEP, SLOTS]), 0) / GROUP
        real = tl.dot(cosine_before, before, input_precision=PRECISION)
        real = tl.dot(cosine, paid, real, input_precision=PRECISION)
        imaginary = tl.dot(sine_before, before, input_precision=PRECISION)
        imaginary = tl.dot(sine, paid, imaginary, input_precision=PRECISION)
        nyquist = tl.sum(last_before[:, None] * before + last[:, None] * paid, 0)
        average = decay * average + (1.0 - decay) * tl.sqrt(real * real + imaginary * imaginary)
        last_average = decay * last_average + (1.0 - decay) * tl.abs(nyquist)
        before = paid
    told = observed + lane.to(tl.int64) * (2 * STEP + 1) * num_slots + slot
    tl.store(told[None, :] + step[:, None] * num_slots, average, mask=is_slot[None, :])
    tl.store(told + STEP * num_slots, last_average, mask=is_slot)
    tl.store(told[None, :] + (STEP + 1 + step[:, None]) * num_slots, before, mask=is_slot[None, :])

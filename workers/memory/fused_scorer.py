"""From traces to importances in two Triton kernels: the features and projections of ``namm.py``, then its attention.

The scorer's numbers are float32 everywhere else. Here the factors of its attention are float16 under a model in half
precision, whose attention is no better known; under one in float32 each is the sum of two bfloat16, and a product is
three of those on tensor cores, which leaves out a few millionths.

Shapes: B rows, H KV heads, K slots, G genomes, F features (at most 32), h hidden size; L = B * H lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from workers.memory.features import recency_table
from workers.memory.memory import LayerView
from workers.memory.scorer import ScorerParameters
from workers.memory.specs import NammSettings

LOG2_E = 1.4426950408889634
WIDTH = 32
"""Features, with zeros behind them: the side of a tile."""
HIDDEN_SIZES = frozenset({16, 32, 64, 128})
OWN, TILE, REGISTERS = 64, 128, 144
"""Slots of a program, slots that it looks at together, and registers of a thread: of two dozen settings none took less
time on an H200."""
TILE_FACTORS = 8192
"""Most numbers of a tile of keys, so that wide ones fit."""


def can_serve(settings: NammSettings) -> bool:
    """Whether the kernels compute just this; the portable path computes all."""
    return settings.num_features <= WIDTH and settings.hidden_size in HIDDEN_SIZES


def importances(
    view: LayerView, extra: Tensor | None, parameters: ScorerParameters, mean: Tensor, deviation: Tensor,
    settings: NammSettings,
) -> Tensor:  # fmt: skip
    """Importance of every slot, float32 ``[B, H, K]``; anything where a slot is empty.

    ``extra [B, H, K, E]`` are features behind recency and spectrum, None for none; ``mean`` and ``deviation [bins]``.
    """
    rows, heads, num_slots = view.positions.shape
    lanes, hidden = rows * heads, settings.hidden_size
    trace, positions = view.trace.flatten(0, 1), view.positions.flatten(0, 1)
    table = recency_table(view.seen_tokens, settings, trace.device)
    num_extra = 0 if extra is None else extra.shape[-1]
    more = trace if extra is None else extra.reshape(lanes, num_slots, num_extra)
    features = torch.empty(lanes, num_slots, WIDTH, dtype=torch.float32, device=trace.device)
    dtype, num_parts, precision = torch.float16, 1, "tf32"
    if view.keys.dtype == torch.float32:  # Triton's interpreter, on a CPU, multiplies no bfloat16
        dtype, num_parts, precision = torch.bfloat16 if trace.is_cuda else torch.float32, 2, "tf32x3"
    factors = torch.empty(3 * num_parts, lanes, num_slots, hidden, dtype=dtype, device=trace.device)
    by_genome = lanes // len(parameters.qkv_weight)
    tile = min(TILE, TILE_FACTORS // (num_parts * hidden))
    own = min(OWN, tile)
    _project[(triton.cdiv(num_slots, OWN), lanes)](
        trace, positions, table, more, mean, deviation, parameters.qkv_weight, parameters.qkv_bias, features, factors,
        trace.stride(0), trace.stride(1), trace.stride(2), positions.stride(0),
        num_slots, by_genome, hidden**-0.5 * LOG2_E,
        RECENCY=settings.recency_size, BINS=settings.num_bins, EXTRA=num_extra, HIDDEN=hidden, PARTS=num_parts,
        SLOTS=OWN, WIDE=WIDTH, PRECISION=precision, num_warps=4,
    )  # fmt: skip
    importance = torch.empty(lanes, num_slots, dtype=torch.float32, device=trace.device)
    _score[(lanes, triton.cdiv(num_slots, own))](
        features, *(TensorDescriptor.from_tensor(factors, [1, 1, slots, hidden]) for slots in (own, tile)), positions,
        parameters.out_weight, parameters.out_bias, parameters.score_weight, parameters.score_bias, importance,
        positions.stride(0), num_slots, by_genome,
        FEATURES=settings.num_features, HIDDEN=hidden, PARTS=num_parts, OWN=own, TILE=tile, WIDE=WIDTH,
        PRECISION=precision, num_warps=4, num_stages=3, **_limits(num_parts),
    )  # fmt: skip
    return importance.view(rows, heads, num_slots)


def _limits(num_parts: int) -> dict[str, int]:
    """Of registers, an option that only CUDA has; factors in two parts need all there are."""
    return {} if torch.version.hip or num_parts > 1 else {"maxnreg": REGISTERS}


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    if dtype == tl.float16:
        x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return x.to(dtype)


@triton.jit(do_not_specialize=["trace_lane", "trace_channel", "position_lane", "num_slots", "by_genome"])
def _project(
    trace, positions, table, extra, mean, deviation, weight, bias, features, factors,
    trace_lane, trace_slot, trace_channel, position_lane,
    num_slots, by_genome, scale,
    RECENCY: tl.constexpr, BINS: tl.constexpr, EXTRA: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr,
    SLOTS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Features of a few slots, and queries, keys and values of them; queries times ``scale``."""
    lane = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    f = tl.arange(0, WIDE)
    is_slot = slot < num_slots
    position = tl.load(positions + lane * position_lane + slot, mask=is_slot, other=0)
    newest = tl.load(positions + lane * position_lane + num_slots - 1)
    age = tl.minimum(newest - position, newest)
    x = tl.load(table + age[:, None] * RECENCY + f[None, :], mask=is_slot[:, None] & (f < RECENCY)[None, :], other=0.0)
    is_bin = (f >= RECENCY) & (f < RECENCY + BINS)
    power = tl.load(
        trace + lane * trace_lane + slot[:, None] * trace_slot + (f - RECENCY)[None, :] * trace_channel,
        mask=is_slot[:, None] & is_bin[None, :], other=0.0,
    )  # fmt: skip
    centre = tl.load(mean + f - RECENCY, mask=is_bin, other=0.0)
    spread = tl.load(deviation + f - RECENCY, mask=is_bin, other=1.0)
    x += (power - centre[None, :]) / spread[None, :]
    if EXTRA > 0:
        is_extra = (f >= RECENCY + BINS) & (f < RECENCY + BINS + EXTRA)
        x += tl.load(
            extra + (lane * num_slots + slot[:, None]) * EXTRA + (f - RECENCY - BINS)[None, :],
            mask=is_slot[:, None] & is_extra[None, :], other=0.0,
        )  # fmt: skip
    tl.store(features + (lane * num_slots + slot[:, None]) * WIDE + f[None, :], x, mask=is_slot[:, None])
    genome = lane // by_genome
    channel = tl.arange(0, HIDDEN)
    is_feature = f < RECENCY + BINS + EXTRA
    lanes = tl.num_programs(1).to(tl.int64)
    for part in tl.static_range(3):
        w = tl.load(
            weight + (genome * (RECENCY + BINS + EXTRA) + f[:, None]) * (3 * HIDDEN) + part * HIDDEN + channel[None, :],
            mask=is_feature[:, None], other=0.0,
        )  # fmt: skip
        b = tl.load(bias + genome * (3 * HIDDEN) + part * HIDDEN + channel)
        y = tl.dot(x, w, input_precision=PRECISION) + b[None, :]
        if part == 0:
            y *= scale
        high = _rounded(y, factors.dtype.element_ty)
        out = factors + ((PARTS * part * lanes + lane) * num_slots + slot[:, None]) * HIDDEN + channel[None, :]
        tl.store(out, high, mask=is_slot[:, None])
        if PARTS == 2:
            low = _rounded(y - high.to(tl.float32), factors.dtype.element_ty)
            tl.store(out + lanes * num_slots * HIDDEN, low, mask=is_slot[:, None])


@triton.jit
def _product(high, low, other_high, other_low, total, PARTS: tl.constexpr):
    """Of two factors onto ``total``: without the parts that are low in both."""
    total = tl.dot(high, other_high, total)
    if PARTS == 2:
        total = tl.dot(high, other_low, total)
        total = tl.dot(low, other_high, total)
    return total


@triton.jit
def _take_in(
    factors, lane, q_high, q_low, own, start, num_slots, highest, total, mixed,
    HIDDEN: tl.constexpr, PARTS: tl.constexpr, OWN: tl.constexpr, TILE: tl.constexpr, IS_HIDING: tl.constexpr,
):  # fmt: skip
    """A tile of slots into a running softmax."""
    slot = start + tl.arange(0, TILE)
    k_high = tl.reshape(factors.load([PARTS, lane, start, 0]), [TILE, HIDDEN])
    k_low = tl.reshape(factors.load([2 * PARTS - 1, lane, start, 0]), [TILE, HIDDEN])
    v_high = tl.reshape(factors.load([2 * PARTS, lane, start, 0]), [TILE, HIDDEN])
    v_low = tl.reshape(factors.load([3 * PARTS - 1, lane, start, 0]), [TILE, HIDDEN])
    scores = tl.zeros([OWN, TILE], tl.float32)
    scores = _product(q_high, q_low, tl.trans(k_high), tl.trans(k_low), scores, PARTS)
    if IS_HIDING:
        scores = tl.where((slot[None, :] >= own[:, None]) & (slot < num_slots)[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    w_high = weights.to(k_high.dtype)
    w_low = (weights - w_high.to(tl.float32)).to(k_high.dtype)
    mixed = _product(w_high, w_low, v_high, v_low, mixed * shrink[:, None], PARTS)
    return higher, total * shrink + tl.sum(weights, 1), mixed


@triton.jit(do_not_specialize=["position_lane", "num_slots", "by_genome"])
def _score(
    features, queries, factors, positions, out_weight, out_bias, score_weight, score_bias, importance,
    position_lane, num_slots, by_genome,
    FEATURES: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr, OWN: tl.constexpr, TILE: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of a few slots to themselves and to newer ones, which come after them, and what follows it.

    The oldest slots have most to look at: those of all lanes are begun first.
    """
    program = tl.program_id(0)
    lane = program.to(tl.int64)
    first = tl.program_id(1) * OWN
    own = first + tl.arange(0, OWN)
    is_own = own < num_slots
    if tl.load(positions + lane * position_lane + tl.minimum(first + OWN, num_slots) - 1) < 0:
        return  # all are empty
    channel = tl.arange(0, HIDDEN)
    q_high = tl.reshape(queries.load([0, program, first, 0]), [OWN, HIDDEN])
    q_low = tl.reshape(queries.load([PARTS - 1, program, first, 0]), [OWN, HIDDEN])
    highest = tl.full([OWN], -1e30, tl.float32)
    total = tl.zeros([OWN], tl.float32)
    mixed = tl.zeros([OWN, HIDDEN], tl.float32)
    # Only among its own slots, which the first tile has, and behind the last one is anything to be hidden.
    plain_stop = first + tl.maximum((num_slots - first) // TILE, 1) * TILE
    highest, total, mixed = _take_in(
        factors, program, q_high, q_low, own, first, num_slots, highest, total, mixed, HIDDEN, PARTS, OWN, TILE, True
    )
    for start in range(first + TILE, plain_stop, TILE):
        highest, total, mixed = _take_in(
            factors, program, q_high, q_low, own, start, num_slots, highest, total, mixed,
            HIDDEN, PARTS, OWN, TILE, False,
        )  # fmt: skip
    for start in range(plain_stop, num_slots, TILE):
        highest, total, mixed = _take_in(
            factors, program, q_high, q_low, own, start, num_slots, highest, total, mixed,
            HIDDEN, PARTS, OWN, TILE, True,
        )  # fmt: skip
    mixed = mixed / tl.where(is_own, total, 1.0)[:, None]
    f = tl.arange(0, WIDE)
    is_feature = f < FEATURES
    genome = lane // by_genome
    out = out_weight + (genome * HIDDEN + channel[:, None]) * (2 * FEATURES) + f[None, :]
    bias = out_bias + genome * (2 * FEATURES) + f
    residual = tl.dot(mixed, tl.load(out, mask=is_feature[None, :], other=0.0), input_precision=PRECISION)
    residual += tl.load(bias, mask=is_feature, other=0.0)[None, :]
    factor = tl.dot(mixed, tl.load(out + FEATURES, mask=is_feature[None, :], other=0.0), input_precision=PRECISION)
    factor += tl.load(bias + FEATURES, mask=is_feature, other=0.0)[None, :]
    x = tl.load(features + (lane * num_slots + own[:, None]) * WIDE + f[None, :], mask=is_own[:, None], other=0.0)
    w = tl.load(score_weight + genome * FEATURES + f, mask=is_feature, other=0.0)
    scored = tl.sum((x + residual + x * factor) * w[None, :], 1) + tl.load(score_bias + genome)
    tl.store(importance + lane * num_slots + own, scored, mask=is_own)

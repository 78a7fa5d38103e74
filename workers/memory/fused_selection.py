"""From importances to the tokens that are kept, and their move to the front: three Triton kernels.

Shapes: B rows, H KV heads, K slots, d head size; L = B * H lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.memory.slots import Aligned

MOST_SLOTS = 16_384
"""All slots of a lane are looked at by one program."""
SIZES = frozenset({16, 32, 64, 128, 256})
MOVED = 64
"""Slots that one program moves."""
GATHERED = 64
"""Traces that one program gathers."""
CHOOSE_WARPS = 32


def can_choose(importance: Tensor) -> bool:
    """Whether :func:`chosen` serves these."""
    return importance.shape[-1] <= MOST_SLOTS


def chosen(
    importance: Tensor, positions: Tensor, threshold: float | Tensor, cap: int | None, *, is_even: bool
) -> Tensor:
    """What ``selection.select_wanted`` keeps, bool ``[B, H, K]``."""
    rows, heads, num_slots = importance.shape
    importance, positions = importance.contiguous(), positions.contiguous()
    keep = torch.empty(rows, heads, num_slots, dtype=torch.bool, device=importance.device)
    counts = torch.empty(rows * heads, dtype=torch.int32, device=importance.device)
    by_row = isinstance(threshold, Tensor)
    thresholds, number = (threshold, 0.0) if by_row else (importance, threshold)
    slots = max(16, triton.next_power_of_2(num_slots))
    if is_even:
        _count[(rows * heads,)](
            importance, positions, thresholds, counts, number, num_slots,
            HEADS=heads, BY_ROW=by_row, SLOTS=slots, num_warps=CHOOSE_WARPS,
        )  # fmt: skip
    _choose[(rows * heads,)](
        importance, positions, thresholds, counts, keep, number, num_slots, num_slots if cap is None else cap,
        HEADS=heads, HEADS_AND_MORE=triton.next_power_of_2(heads), IS_EVEN=is_even, BY_ROW=by_row, SLOTS=slots,
        num_warps=CHOOSE_WARPS,
    )  # fmt: skip
    return keep


def can_move(keys: Tensor, values: Tensor) -> bool:
    """Whether :func:`moved` serves a layer of these."""
    return keys.shape[2] <= MOST_SLOTS and {keys.shape[-1], values.shape[-1]} <= SIZES


def moved(
    keep: Tensor, places: int, keys: Tensor, values: Tensor, positions: Tensor, trace: Tensor,
    new_keys: Tensor, new_values: Tensor,
) -> Aligned:  # fmt: skip
    """The tokens where ``keep`` (bool ``[B, H, K]``) holds, at most ``places`` of a lane; then ``n`` that are new.

    ``new_keys`` and ``new_values [B, H, n, d]``, whose positions follow on the newest. The trace stays where it is.
    """
    rows, heads, num_slots = keep.shape
    num_new = new_keys.shape[2]
    out = Aligned(
        keys=keys.new_empty(rows, heads, places + num_new, keys.shape[-1]),
        values=values.new_empty(rows, heads, places + num_new, values.shape[-1]),
        positions=positions.new_empty(rows, heads, places + num_new),
        trace=trace,
        sources=positions.new_empty(rows, heads, places),
        empty=positions.new_empty(rows * heads),
    )
    key, value, position = (tensor.flatten(0, 1) for tensor in (keys, values, positions))
    _move[(triton.cdiv(num_slots, MOVED) + triton.cdiv(num_new, MOVED), rows * heads)](
        keep.contiguous(), key, value, position, new_keys, new_values,
        out.keys, out.values, out.positions, out.sources, out.empty,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1), position.stride(0),
        *new_keys.stride()[:3], *new_values.stride()[:3],
        num_slots, places, num_new,
        HEADS=heads, SIZE=keys.shape[-1], VALUES=values.shape[-1], SLOTS=MOVED,
        ALL=max(16, triton.next_power_of_2(num_slots)), num_warps=8,
    )  # fmt: skip
    return out


def own_trace(moved: Aligned) -> Tensor:
    """The trace of each place, ``[B, H, places, C]``, zero where it is empty; channel by channel in memory."""
    trace = moved.trace.flatten(0, 1)
    lanes, channels = len(trace), trace.shape[2]
    out = trace.new_empty(*moved.sources.shape[:2], channels, moved.places)
    _gather[(triton.cdiv(moved.places, GATHERED), lanes)](
        trace, moved.sources, out, *trace.stride(), moved.places, channels,
        WIDE=max(16, triton.next_power_of_2(channels)), SLOTS=GATHERED, num_warps=4,
    )  # fmt: skip
    return out.transpose(2, 3)


@triton.jit(do_not_specialize=["trace_lane", "trace_channel", "places"])
def _gather(
    trace, sources, gathered, trace_lane, trace_slot, trace_channel, places, channels,
    WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Traces of some places of one lane."""
    lane = tl.program_id(1).to(tl.int64)
    place, channel = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS), tl.arange(0, WIDE)
    is_told = (channel < channels)[:, None] & (place < places)[None, :]
    source = tl.load(sources + lane * places + place, mask=place < places, other=-1)
    there = source[None, :] * trace_slot + channel[:, None] * trace_channel
    told = tl.load(trace + lane * trace_lane + there, mask=is_told & (source >= 0)[None, :], other=0.0)
    tl.store(gathered + (lane * channels + channel[:, None]) * places + place[None, :], told, mask=is_told)


@triton.jit
def _is_wanted(importance, positions, lane, threshold, slot, num_slots):
    """Of all slots of a lane; and which hold a token."""
    is_slot = slot < num_slots
    value = tl.load(importance + lane * num_slots + slot, mask=is_slot, other=0.0)
    is_held = tl.load(positions + lane * num_slots + slot, mask=is_slot, other=-1) >= 0
    wanted = ((value >= threshold) & is_held) | (slot == num_slots - 1)
    return value, is_held, wanted


@triton.jit(do_not_specialize=["num_slots"])
def _count(
    importance, positions, thresholds, counts, threshold, num_slots,
    HEADS: tl.constexpr, BY_ROW: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """How many of a lane are wanted."""
    lane = tl.program_id(0).to(tl.int64)
    if BY_ROW:
        threshold = tl.load(thresholds + lane // HEADS)
    _, _, wanted = _is_wanted(importance, positions, lane, threshold, tl.arange(0, SLOTS), num_slots)
    tl.store(counts + lane, tl.sum(wanted.to(tl.int32), 0))


@triton.jit(do_not_specialize=["num_slots", "cap"])
def _choose(
    importance, positions, thresholds, counts, keep, threshold, num_slots, cap,
    HEADS: tl.constexpr, HEADS_AND_MORE: tl.constexpr, IS_EVEN: tl.constexpr, BY_ROW: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """One lane: how many its row's greediest head wants, or itself, and as many of its own best.

    The least of those is found bit by bit, among integers that are ordered as the importances are, until as many are
    at least as large as shall be kept.
    """
    lane = tl.program_id(0).to(tl.int64)
    row = lane // HEADS
    slot = tl.arange(0, SLOTS)
    if BY_ROW:
        threshold = tl.load(thresholds + row)
    value, is_held, wanted = _is_wanted(importance, positions, lane, threshold, slot, num_slots)
    if IS_EVEN:
        head = tl.arange(0, HEADS_AND_MORE)
        count = tl.max(tl.load(counts + row * HEADS + head, mask=head < HEADS, other=0), 0)
    else:
        count = tl.sum(wanted.to(tl.int32), 0)
    count = tl.minimum(count, cap)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered = tl.where(is_held, ordered, -2147483648)
    ordered = tl.where(slot == num_slots - 1, 2147483647, ordered)
    ordered = tl.where(slot < num_slots, ordered, -2147483648)
    least, at_least, bit = -2147483648, SLOTS, 31
    while (bit >= 0) & (at_least != count):
        higher = least + (1 << bit)  # of the first bit too: the sum runs over, to zero
        above = tl.sum((ordered >= higher).to(tl.int32), 0)
        least = tl.where(above >= count, higher, least)
        at_least = tl.where(above >= count, above, at_least)
        bit -= 1
    kept = ordered >= least
    if at_least != count:  # some are equal: the first of them
        is_above, is_at = ordered > least, ordered == least
        missing = count - tl.sum(is_above.to(tl.int32), 0)
        kept = is_above | (is_at & (tl.cumsum(is_at.to(tl.int32), 0) <= missing))
    kept = kept & (is_held | (slot == num_slots - 1))
    tl.store(keep + lane * num_slots + slot, kept.to(tl.int8), mask=slot < num_slots)


@triton.jit(do_not_specialize=["position_lane", "num_slots", "places", "num_new"])
def _move(
    keep, keys, values, positions, new_keys, new_values,
    moved_keys, moved_values, moved_positions, sources, empty,
    key_lane, key_slot, value_lane, value_slot, position_lane,
    new_key_row, new_key_head, new_key_slot, new_value_row, new_value_head, new_value_slot,
    num_slots, places, num_new,
    HEADS: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr, SLOTS: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Some slots of one lane: what is kept of them goes to its place; or some new tokens."""
    lane = tl.program_id(1).to(tl.int64)
    capacity = places + num_new
    key_channel, value_channel = tl.arange(0, SIZE), tl.arange(0, VALUES)
    num_tiles = (num_slots + SLOTS - 1) // SLOTS
    if tl.program_id(0) >= num_tiles:
        new = (tl.program_id(0) - num_tiles) * SLOTS + tl.arange(0, SLOTS)
        is_new = new < num_new
        row, head = lane // HEADS, lane % HEADS
        there = row * new_key_row + head * new_key_head + new[:, None] * new_key_slot + key_channel[None, :]
        k = tl.load(new_keys + there, mask=is_new[:, None])
        there = row * new_value_row + head * new_value_head + new[:, None] * new_value_slot + value_channel[None, :]
        v = tl.load(new_values + there, mask=is_new[:, None])
        newest = tl.load(positions + lane * position_lane + num_slots - 1)
        to = lane * capacity + places + new
        tl.store(moved_keys + to[:, None] * SIZE + key_channel[None, :], k, mask=is_new[:, None])
        tl.store(moved_values + to[:, None] * VALUES + value_channel[None, :], v, mask=is_new[:, None])
        tl.store(moved_positions + to, newest + 1 + new, mask=is_new)
        return
    all_slots = tl.arange(0, ALL)
    is_kept = tl.load(keep + lane * num_slots + all_slots, mask=all_slots < num_slots, other=0).to(tl.int32)
    first = tl.program_id(0) * SLOTS
    missing = places - tl.sum(is_kept, 0)
    before = tl.sum(tl.where(all_slots < first, is_kept, 0), 0)
    if first == 0:
        tl.store(empty + lane, missing)
    slot = first + tl.arange(0, SLOTS)
    kept = tl.load(keep + lane * num_slots + slot, mask=slot < num_slots, other=0).to(tl.int32)
    is_moved = kept != 0
    k = tl.load(keys + lane * key_lane + slot[:, None] * key_slot + key_channel[None, :], mask=is_moved[:, None])
    v = tl.load(
        values + lane * value_lane + slot[:, None] * value_slot + value_channel[None, :], mask=is_moved[:, None]
    )
    position = tl.load(positions + lane * position_lane + slot, mask=is_moved)
    place = missing + before + tl.cumsum(kept, 0) - 1
    to = lane * capacity + place
    tl.store(moved_keys + to[:, None] * SIZE + key_channel[None, :], k, mask=is_moved[:, None])
    tl.store(moved_values + to[:, None] * VALUES + value_channel[None, :], v, mask=is_moved[:, None])
    tl.store(moved_positions + to, position, mask=is_moved)
    tl.store(sources + lane * places + place, slot, mask=is_moved)
    if first >= missing:  # no place of its own is empty
        return
    # Values of an empty place are multiplied with zero, and must be numbers.
    is_empty = slot < missing
    none = tl.zeros([SLOTS], tl.int32) - 1
    to = lane * capacity + slot
    tl.store(moved_positions + to, none, mask=is_empty)
    tl.store(sources + lane * places + slot, none, mask=is_empty)
    zeros = tl.zeros([SLOTS, VALUES], moved_values.dtype.element_ty)
    tl.store(moved_values + to[:, None] * VALUES + value_channel[None, :], zeros, mask=is_empty[:, None])
    zeros = tl.zeros([SLOTS, SIZE], moved_keys.dtype.element_ty)
    tl.store(moved_keys + to[:, None] * SIZE + key_channel[None, :], zeros, mask=is_empty[:, None])

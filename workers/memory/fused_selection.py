"""From importances to the tokens that are kept, and their move to the front: three Triton kernels and one question.

Shapes: B rows, H KV heads, K slots, d head size, C trace channels; L = B * H lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_SLOTS = 16_384
"""All slots of a lane are looked at by one program."""
SIZES = frozenset({16, 32, 64, 128, 256})


def can_choose(importance: Tensor) -> bool:
    """Whether :func:`chosen` serves these."""
    return importance.shape[-1] <= MOST_SLOTS


def chosen(
    importance: Tensor, occupied: Tensor, threshold: float | Tensor, cap: int | None, *, is_even: bool
) -> Tensor:
    """What ``selection.select_wanted`` keeps, bool ``[B, H, K]``."""
    rows, heads, num_slots = importance.shape
    importance, occupied = importance.contiguous(), occupied.contiguous()
    keep = torch.empty(rows, heads, num_slots, dtype=torch.bool, device=importance.device)
    by_row = isinstance(threshold, Tensor)
    _choose[(rows * heads,)](
        importance, occupied, threshold if by_row else importance, keep,
        0.0 if by_row else threshold, num_slots, num_slots if cap is None else cap,
        HEADS=heads, IS_EVEN=is_even, BY_ROW=by_row, SLOTS=max(16, triton.next_power_of_2(num_slots)), num_warps=16,
    )  # fmt: skip
    return keep


def can_gather(keys: Tensor, values: Tensor) -> bool:
    """Whether :func:`places` and :func:`gathered` serve a layer of these."""
    return keys.shape[2] <= MOST_SLOTS and {keys.shape[-1], values.shape[-1]} <= SIZES


def places(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The slots kept of each lane, ascending, int32 ``[L, K]`` (anything behind them), and how many, int32 ``[L]``."""
    num_slots = keep.shape[-1]
    order = torch.empty(keep.shape[0] * keep.shape[1], num_slots, dtype=torch.int32, device=keep.device)
    counts = torch.empty(len(order), dtype=torch.int32, device=keep.device)
    _place[(len(order),)](
        keep.contiguous(), order, counts, num_slots, SLOTS=max(16, triton.next_power_of_2(num_slots)), num_warps=8
    )
    return order, counts


def gathered(
    order: Tensor, counts: Tensor, longest: int, room: int, keys: Tensor, values: Tensor, positions: Tensor,
    trace: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The tokens of ``order`` moved together, aligned at the newest of ``longest`` slots; the others are empty.

    Keys, values and positions have ``room`` for more tokens behind them.
    """
    rows, heads = positions.shape[:2]
    channels = trace.shape[-1]
    new_keys = keys.new_empty(rows, heads, longest + room, keys.shape[-1])
    new_values = values.new_empty(rows, heads, longest + room, values.shape[-1])
    new_positions = positions.new_empty(rows, heads, longest + room)
    new_trace = trace.new_empty(rows, heads, channels, longest)  # channel by channel, as the next kernel reads it
    key, value, position, told = (tensor.flatten(0, 1) for tensor in (keys, values, positions, trace))
    _gather[(triton.cdiv(longest, 64), rows * heads)](
        order, counts, key, value, position, told, new_keys, new_values, new_positions, new_trace,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1), position.stride(0), *told.stride(),
        order.shape[1], longest, room,
        SIZE=keys.shape[-1], VALUES=values.shape[-1], CHANNELS=channels,
        WIDE=max(16, triton.next_power_of_2(channels)), SLOTS=64, num_warps=4,
    )  # fmt: skip
    return new_keys, new_values, new_positions, new_trace.transpose(2, 3)


@triton.jit
def _is_wanted(importance, occupied, lane, threshold, slot, num_slots):
    """Of all slots of a lane; and which hold a token."""
    is_slot = slot < num_slots
    value = tl.load(importance + lane * num_slots + slot, mask=is_slot, other=0.0)
    is_held = tl.load(occupied + lane * num_slots + slot, mask=is_slot, other=0) != 0
    wanted = ((value >= threshold) & is_held) | (slot == num_slots - 1)
    return value, is_held, wanted


@triton.jit(do_not_specialize=["num_slots", "cap"])
def _choose(
    importance, occupied, thresholds, keep, threshold, num_slots, cap,
    HEADS: tl.constexpr, IS_EVEN: tl.constexpr, BY_ROW: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One lane: how many its row's greediest head wants, or itself, and as many of its own best.

    The least of those is found two bits at a time, among integers that are ordered as the importances are.
    """
    lane = tl.program_id(0).to(tl.int64)
    row = lane // HEADS
    slot = tl.arange(0, SLOTS)
    if BY_ROW:
        threshold = tl.load(thresholds + row)
    value, is_held, wanted = _is_wanted(importance, occupied, lane, threshold, slot, num_slots)
    count = tl.sum(wanted.to(tl.int32), 0)
    if IS_EVEN:
        for head in range(HEADS):
            _, _, others = _is_wanted(importance, occupied, row * HEADS + head, threshold, slot, num_slots)
            count = tl.maximum(count, tl.sum(others.to(tl.int32), 0))
    count = tl.minimum(count, cap)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered = tl.where(is_held, ordered, -2147483648)
    ordered = tl.where(slot == num_slots - 1, 2147483647, ordered)
    ordered = tl.where(slot < num_slots, ordered, -2147483648)
    least = tl.where(tl.sum((ordered >= 0).to(tl.int32), 0) >= count, 0, -2147483648)
    for pair in range(15):
        step = 1 << (29 - 2 * pair)
        # Three counts in one integer: of slots at least one, two and three steps above.
        above = (ordered >= least + step).to(tl.int64) + ((ordered >= least + 2 * step).to(tl.int64) << 20)
        above = tl.sum(above + ((ordered >= least + 3 * step).to(tl.int64) << 40), 0)
        enough = ((above & 0xFFFFF) >= count).to(tl.int32) + (((above >> 20) & 0xFFFFF) >= count).to(tl.int32)
        least += step * (enough + ((above >> 40) >= count).to(tl.int32))
    if tl.sum((ordered >= least + 1).to(tl.int32), 0) >= count:
        least += 1
    is_above = ordered > least
    is_at = ordered == least
    missing = count - tl.sum(is_above.to(tl.int32), 0)
    kept = is_above | (is_at & (tl.cumsum(is_at.to(tl.int32), 0) <= missing))
    kept = kept & (is_held | (slot == num_slots - 1))
    tl.store(keep + lane * num_slots + slot, kept.to(tl.int8), mask=slot < num_slots)


@triton.jit(do_not_specialize=["num_slots"])
def _place(keep, order, counts, num_slots, SLOTS: tl.constexpr):
    """One lane."""
    lane = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    kept = tl.load(keep + lane * num_slots + slot, mask=slot < num_slots, other=0).to(tl.int32)
    place = tl.cumsum(kept, 0)
    tl.store(order + lane * num_slots + place - 1, slot, mask=kept != 0)
    tl.store(counts + lane, tl.sum(kept, 0))


@triton.jit(
    do_not_specialize=["position_lane", "trace_lane", "trace_slot", "trace_channel", "num_slots", "longest", "room"]
)
def _gather(
    order, counts, keys, values, positions, trace, new_keys, new_values, new_positions, new_trace,
    key_lane, key_slot, value_lane, value_slot, position_lane, trace_lane, trace_slot, trace_channel,
    num_slots, longest, room,
    SIZE: tl.constexpr, VALUES: tl.constexpr, CHANNELS: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Some slots of one lane."""
    lane = tl.program_id(1).to(tl.int64)
    to = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    is_slot = to < longest
    rank = to - longest + tl.load(counts + lane)
    is_held = is_slot & (rank >= 0)
    source = tl.load(order + lane * num_slots + rank, mask=is_held, other=0)
    channel = tl.arange(0, SIZE)
    k = tl.load(
        keys + lane * key_lane + source[:, None] * key_slot + channel[None, :], mask=is_held[:, None], other=0.0
    )
    tl.store(new_keys + (lane * (longest + room) + to[:, None]) * SIZE + channel[None, :], k, mask=is_slot[:, None])
    channel = tl.arange(0, VALUES)
    v = tl.load(
        values + lane * value_lane + source[:, None] * value_slot + channel[None, :], mask=is_held[:, None], other=0.0
    )
    tl.store(new_values + (lane * (longest + room) + to[:, None]) * VALUES + channel[None, :], v, mask=is_slot[:, None])
    position = tl.load(positions + lane * position_lane + source, mask=is_held, other=-1)
    tl.store(new_positions + lane * (longest + room) + to, position, mask=is_slot)
    channel = tl.arange(0, WIDE)
    is_channel = channel < CHANNELS
    t = tl.load(
        trace + lane * trace_lane + source[None, :] * trace_slot + channel[:, None] * trace_channel,
        mask=is_held[None, :] & is_channel[:, None], other=0.0,
    )  # fmt: skip
    out = new_trace + (lane * CHANNELS + channel[:, None]) * longest + to[None, :]
    tl.store(out, t, mask=is_slot[None, :] & is_channel[:, None])

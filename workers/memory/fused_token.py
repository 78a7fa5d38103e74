"""Attention of one decoded token in two Triton kernels: to tokens in slots, to packed ones, or to both.

Heads that hold different numbers of tokens lie one after the other in memory (``packed.py``), so that a kernel reads no
more bytes than are held. The first kernel takes a tile of one lane's tokens to scores, their sum and what they bring;
the second puts the tiles together, and tells what every token was paid.

Shapes: B rows, H KV heads, r query heads per KV head, K slots, N tokens that are packed, d head size;
L = B * H lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots

TILE, TILE_BYTES = 128, 32_768
"""Most tokens that one program looks at, and bytes of their keys: of nine settings none took less time on an H100."""
TOGETHER = 16
"""Tiles whose outputs are joined at once."""
SMALLEST_PRODUCT = 16
"""The smallest side of a matrix product on a tensor core."""
LOG2_E = 1.4426950408889634
HEAD_SIZES = frozenset({16, 32, 64, 128, 256})


def can_serve(keys: Tensor, values: Tensor, options: AttentionOptions) -> bool:
    """Whether the kernels compute just this; the portable path computes all. ``keys`` and ``values [..., d]``."""
    sizes = {keys.shape[-1], values.shape[-1]}
    return options.is_plain and options.sliding_window is None and sizes <= HEAD_SIZES


def attend_token(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of a token to slots, its own among them, where :func:`can_serve`.

    Args:
        query: ``[B, H * r, 1, d]``.
        keys: ``[B, H, K, d]``.
        values: likewise.
        scaling: of the products.
        hidden: bool, which of the last slots it does not see.

    Returns:
        Output ``[B, H * r, 1, d of the values]``, and what the token paid, averaged over the query heads of a group:
        float32 ``[B, H, 1, K]``.
    """
    paid = torch.empty(*keys.shape[:2], 1, keys.shape[2], dtype=torch.float32, device=query.device)
    return _attended(query, keys, values, scaling, hidden, paid, (0, keys.shape[2], 1), None), paid


def attend_packed(
    query: Tensor, held: PackedSlots, scaling: float, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`attend_token` of tokens that are packed; what each was paid is float32 ``[1, N]``."""
    paid = torch.empty(1, held.keys.shape[0], dtype=torch.float32, device=query.device)
    keys, values = held.later(held.keys), held.later(held.values)
    places = held.lanes.total, 1, len(held.lanes.counts)
    return _attended(query, keys, values, scaling, hidden, paid, places, held), paid


def _attended(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, hidden: Tensor | None,
    paid: Tensor, places: tuple[int, int, int], packed: PackedSlots | None,
) -> Tensor:  # fmt: skip
    """The output; what each token was paid goes to ``paid``, packed ones first.

    ``places`` are that of the first slot of the first lane, and steps from lane to lane and from slot to slot.
    """
    rows, heads, num_slots, size = keys.shape
    lanes, group, width = rows * heads, query.shape[1] // heads, values.shape[-1]
    tile = min(TILE, TILE_BYTES // (max(size, width) * keys.element_size()))
    num_packed, longest, front = 0, 0, (keys, values, keys)  # of which nothing is read then
    if packed is not None:
        num_packed, longest = packed.lanes.total, triton.cdiv(packed.lanes.longest, tile)  # the longest in tiles
        front = (packed.keys, packed.values, packed.lanes.starts)
    tiles = longest + triton.cdiv(num_slots, tile)

    def floats(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=query.device)

    scores = floats(group * (num_packed + lanes * num_slots))
    highest, total, mixed = floats(lanes, group, tiles), floats(lanes, group, tiles), floats(lanes, group, tiles, width)
    shape = {"GROUP": group, "TILE": tile, "VALUES": width, "IS_PACKED": packed is not None, "num_warps": 4}
    _attend_tile[(tiles, lanes)](
        query.contiguous(), keys, values, keys if hidden is None else hidden, *front,
        scores, highest, total, mixed, *keys.stride()[:3], *values.stride()[:3],
        heads, num_slots, 0 if hidden is None else len(hidden), num_packed, longest, tiles, scaling * LOG2_E,
        MEMBERS=max(SMALLEST_PRODUCT, triton.next_power_of_2(group)), SIZE=size, IS_HIDING=hidden is not None,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", **shape,
    )  # fmt: skip
    output = query.new_empty(rows, heads * group, 1, width)
    _join_tiles[(tiles + group, lanes)](
        scores, highest, total, mixed, front[2], output, paid, *places,
        num_slots, num_packed, longest, tiles,
        MEMBERS=triton.next_power_of_2(group), TILES=triton.next_power_of_2(tiles), TOGETHER=TOGETHER, **shape,
    )  # fmt: skip
    return output


@triton.jit
def _place(starts, tile, lane, longest, num_slots, IS_PACKED: tl.constexpr, TILE: tl.constexpr):
    """Of a tile of a lane: whether it is of packed tokens, its first token or slot there, and how many are left."""
    is_packed = tile < longest
    first, stop = (tile - longest) * TILE, num_slots
    if IS_PACKED:
        begin, end = tl.load(starts + lane), tl.load(starts + lane + 1)
        first, stop = tl.where(is_packed, begin + tile * TILE, first), tl.where(is_packed, end, stop)
    return is_packed, first, stop - first


@triton.jit(do_not_specialize=["num_slots", "num_hidden", "num_packed", "longest", "tiles"])
def _attend_tile(
    queries, keys, values, hidden, packed_keys, packed_values, starts, scores, highest, total, mixed,
    key_row, key_head, key_slot, value_row, value_head, value_slot,
    heads, num_slots, num_hidden, num_packed, longest, tiles, scale,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr, TILE: tl.constexpr,
    IS_PACKED: tl.constexpr, IS_HIDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some tokens of a lane; ``scale`` is to the base 2."""
    tile, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    is_packed, first, count = _place(starts, tile, lane, longest, num_slots, IS_PACKED, TILE)
    member, channel, value_channel = tl.arange(0, MEMBERS), tl.arange(0, SIZE), tl.arange(0, VALUES)
    lane_tile = (lane * GROUP + member) * tiles + tile
    if count <= 0:  # the lane has fewer than the longest
        tl.store(highest + lane_tile, tl.full([MEMBERS], float("-inf"), tl.float32), mask=member < GROUP)
        tl.store(total + lane_tile, tl.zeros([MEMBERS], tl.float32), mask=member < GROUP)
        return
    token = first + tl.arange(0, TILE)
    is_token, is_member = tl.arange(0, TILE) < count, member < GROUP
    of_key = lane // heads * key_row + lane % heads * key_head + token.to(tl.int64) * key_slot
    of_value = lane // heads * value_row + lane % heads * value_head + token.to(tl.int64) * value_slot
    k_here, v_here = keys + of_key, values + of_value
    if IS_PACKED:
        k_here = tl.where(is_packed, packed_keys + token.to(tl.int64) * SIZE, k_here)
        v_here = tl.where(is_packed, packed_values + token.to(tl.int64) * VALUES, v_here)
    q = tl.load(
        queries + (lane * GROUP + member[:, None]) * SIZE + channel[None, :], mask=is_member[:, None], other=0.0
    )
    k = tl.load(k_here[:, None] + channel[None, :], mask=is_token[:, None], other=0.0)
    v = tl.load(v_here[:, None] + value_channel[None, :], mask=is_token[:, None], other=0.0)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    is_seen = is_token
    if IS_HIDING:
        place = token - (num_slots - num_hidden)
        is_hidden = tl.load(hidden + place, mask=is_token & (place >= 0) & (is_packed == 0), other=0)
        is_seen = is_seen & (is_hidden == 0)
    score = tl.where(is_seen[None, :], score, float("-inf"))
    most = tl.max(score, 1)
    safe = tl.where(most == float("-inf"), 0.0, most)
    weights = tl.exp2(score - safe[:, None])
    brought = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    tl.store(highest + lane_tile, most, mask=is_member)
    tl.store(total + lane_tile, tl.sum(weights, 1), mask=is_member)
    tl.store(mixed + lane_tile[:, None] * VALUES + value_channel[None, :], brought, mask=is_member[:, None])
    there = _score_place(member, token, lane, is_packed, num_slots, num_packed, GROUP)
    tl.store(scores + there, score, mask=is_member[:, None] & is_token[None, :])


@triton.jit
def _score_place(member, token, lane, is_packed, num_slots, num_packed, GROUP: tl.constexpr):
    """Where scores ``[members, tokens]`` lie: packed tokens' first, then those of each lane's slots."""
    of_slots = GROUP * num_packed + (lane * GROUP + member[:, None]) * num_slots
    return tl.where(is_packed, member[:, None].to(tl.int64) * num_packed, of_slots) + token[None, :]


@triton.jit
def _join_output(
    highest, total, mixed, output, head, tiles, TILES: tl.constexpr, VALUES: tl.constexpr, TOGETHER: tl.constexpr
):  # fmt: skip
    """Of one query head, what all tiles bring."""
    tile, channel = tl.arange(0, TILES), tl.arange(0, VALUES)
    is_tile = tile < tiles
    top = tl.load(highest + head * tiles + tile, mask=is_tile, other=float("-inf"))
    most = tl.max(top, 0)
    whole = tl.sum(tl.load(total + head * tiles + tile, mask=is_tile, other=0.0) * tl.exp2(top - most), 0)
    joined = tl.zeros([VALUES], tl.float32)
    for start in range(0, tiles, TOGETHER):
        some = start + tl.arange(0, TOGETHER)
        share = tl.load(highest + head * tiles + some, mask=some < tiles, other=float("-inf"))
        share = tl.exp2(share - most)
        brought = tl.load(
            mixed + (head * tiles + some[:, None]) * VALUES + channel[None, :], mask=(share > 0.0)[:, None], other=0.0
        )
        joined += tl.sum(brought * share[:, None], 0)
    tl.store(output + head * VALUES + channel, (joined / whole).to(output.dtype.element_ty))


@triton.jit(do_not_specialize=["first_place", "lane_step", "slot_step", "num_slots", "num_packed", "longest", "tiles"])
def _join_tiles(
    scores, highest, total, mixed, starts, output, paid, first_place, lane_step, slot_step,
    num_slots, num_packed, longest, tiles,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, TILES: tl.constexpr, VALUES: tl.constexpr, TILE: tl.constexpr,
    TOGETHER: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """What the tokens of a tile were paid; behind the last tile, the output of a query head."""
    task, lane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if task >= tiles:
        _join_output(highest, total, mixed, output, lane * GROUP + task - tiles, tiles, TILES, VALUES, TOGETHER)
        return
    is_packed, first, count = _place(starts, task, lane, longest, num_slots, IS_PACKED, TILE)
    if count <= 0:
        return
    member, tile = tl.arange(0, MEMBERS), tl.arange(0, TILES)
    is_member = member < GROUP
    there = (lane * GROUP + member[:, None]) * tiles + tile[None, :]
    is_there = is_member[:, None] & (tile < tiles)[None, :]
    top = tl.load(highest + there, mask=is_there, other=float("-inf"))
    most = tl.where(is_member, tl.max(top, 1), 0.0)
    whole = tl.sum(tl.load(total + there, mask=is_there, other=0.0) * tl.exp2(top - most[:, None]), 1)
    token = first + tl.arange(0, TILE)
    is_token = tl.arange(0, TILE) < count
    place = _score_place(member, token, lane, is_packed, num_slots, num_packed, GROUP)
    score = tl.load(scores + place, mask=is_member[:, None] & is_token[None, :], other=float("-inf"))
    share = tl.exp2(score - most[:, None]) / tl.where(is_member, whole, 1.0)[:, None]
    own = tl.where(is_packed, token.to(tl.int64), first_place + lane * lane_step + token * slot_step)
    tl.store(paid + own, tl.sum(share, 0) / GROUP, mask=is_token)

"""Plain attention that tells what it paid, a tile at a time: on any device, and with all that models ask of it.

A tile is some queries of as many lanes (a KV head of a row) as keep its scores small enough for a processor's cache.
Its attention is taken in by an observer before the next tile is begun, so that no more than a tile of it ever exists.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size; L = B * H lanes; l, t and c are
lanes, queries and slots of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workers.memory.options import AttentionOptions
from workers.memory.quick_softmax import Scratch, can_exponentiate, exponentiated, multiplied
from workers.memory.slots import Slots

TILE_SCORES = {"cpu": 1 << 18}
"""Most scores of a tile, by kind of device: what a core's own cache holds; elsewhere memory is the only limit."""
MOST_SCORES = 1 << 28
SMALLEST_TILE = 64
"""Queries of a tile at least: with fewer, calls would cost more than they do. A multiple of every sensible hop."""


class Observer(Protocol):
    """Takes in the attention of a block of queries, tile by tile; the tiles of a lane come in the order of queries."""

    def room(self, lanes: slice, queries: slice, columns: slice) -> Tensor:
        """Where the attention of a tile is to be written, float32 ``[l, t, c]``, averaged over query heads.

        No query of the tile sees any slot outside of ``columns``.
        """
        ...

    def take_in(self) -> None:
        """The tile was written."""
        ...


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries of some lanes, and the slots that any of them may see."""

    lanes: slice
    queries: slice
    columns: slice


def tiles(slots: Slots, num_queries: int, group: int) -> Iterator[Tile]:
    """Cut a block, lanes outside, queries inside. Its own tokens are the last slots, in the order of the queries."""
    rows, heads, num_slots = slots.positions.shape
    lanes, firsts = rows * heads, slots.empty
    limit = TILE_SCORES.get(slots.keys.device.type, MOST_SCORES)
    by_query = group * num_slots
    queries = min(num_queries, max(SMALLEST_TILE, limit // by_query // SMALLEST_TILE * SMALLEST_TILE))
    together = max(1, min(lanes, limit // (by_query * queries)))
    for lane in range(0, lanes, together):
        chosen = slice(lane, min(lane + together, lanes))
        first = min(firsts[chosen])
        for query in range(0, num_queries, queries):
            stop = min(query + queries, num_queries)
            yield Tile(chosen, slice(query, stop), slice(first, num_slots - num_queries + stop))


def seen(slots: Slots, tile: Tile, first_query: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """What a query may see of a tile, 1 or 0, ``[l or 1, t, 1, c']`` over the *last* c' slots of the tile.

    The slots before those are seen by every query of the tile; None when all are.
    """
    count = tile.queries.stop - tile.queries.start
    is_full = len(set(slots.empty[tile.lanes])) == 1
    if is_full and window is None:
        return None if count == 1 else _earlier(count, slots.positions.device, dtype)
    return (~unseen(slots, tile, first_query, window)).to(dtype)[:, :, None]


def unseen(slots: Slots, tile: Tile, first_query: int, window: int | None) -> Tensor:
    """By position: tokens newer than the query or out of its window, and slots that are empty; ``[l, t, c]``."""
    positions = slots.positions.flatten(0, 1)[tile.lanes, None, tile.columns]
    start, count = first_query + tile.queries.start, tile.queries.stop - tile.queries.start
    queries = torch.arange(start, start + count, dtype=torch.int32, device=positions.device)[:, None]
    unseen = (positions < 0) | (positions > queries)
    return unseen if window is None else unseen | (positions <= queries - window)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # or gradients could not be taken where the mask is used a second time
def _earlier(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Tokens of a tile's own that are not newer than a query of it, ``[1, t, 1, t]``."""
    return torch.ones(count, count, dtype=dtype, device=device).tril_()[None, :, None]


def attend(
    query: Tensor, slots: Slots, first_query: int, options: AttentionOptions, observer: Observer | None
) -> Tensor:
    """Plain attention that is watched (spec 2).

    Args:
        query: ``[B, H * r, n, d]``.
        slots: what the layer holds, the queries' own tokens last.
        first_query: position of the first query.
        options: scaling, soft cap, window and sinks. What a sink takes is missing from the attention that is told.
        observer: who is told, or None.

    Returns:
        Output ``[B, H * r, n, d of the values]``.
    """
    rows, query_heads, num_queries, size = query.shape
    heads = slots.keys.shape[1]
    group = query_heads // heads
    by_head = scaled(query, options).view(rows, heads, group, num_queries, size)
    queries = by_head.transpose(2, 3).reshape(rows * heads, num_queries, group, size)
    keys, values = slots.keys.flatten(0, 1), slots.values.flatten(0, 1)
    output = query.new_empty(rows * heads, num_queries, group, values.shape[-1])
    scratch = None
    if can_exponentiate(queries, num_queries * group * slots.num_slots) and options.is_plain:
        scratch = Scratch(queries, slots.num_slots)
    for tile in tiles(slots, num_queries, group):
        chosen = queries[tile.lanes, tile.queries]
        beside = keys[tile.lanes, tile.columns].transpose(1, 2)
        mask_dtype = torch.bool if scratch is None else torch.float32  # to multiply by
        visible = seen(slots, tile, first_query, options.sliding_window, mask_dtype)
        weights = quick_softmax(chosen, beside, visible, scratch) if scratch is not None else None
        if weights is None:
            scratch = None  # what was too much for a tile will be for others
            scores = scores_of(products(chosen, beside), options)
            weights = masked_softmax(scores, visible, lane_sinks(options.sinks, heads, tile.lanes))
        mixed = multiplied(weights.to(values.dtype).flatten(1, 2), values[tile.lanes, tile.columns])
        output[tile.lanes, tile.queries] = mixed.view(*chosen.shape[:3], -1)
        if observer is not None:
            average(weights.detach(), observer.room(tile.lanes, tile.queries, tile.columns))
            observer.take_in()
    by_query = output.view(rows, heads, num_queries, group, -1).transpose(1, 2)
    return by_query.reshape(rows, num_queries, query_heads, -1).transpose(1, 2)


def scaled(query: Tensor, options: AttentionOptions) -> Tensor:
    """Queries before the product: there are fewer queries than scores, and products in float16 end at 65,504.

    Those in bfloat16, which reaches as far as float32 and rounds more, are scaled after it.
    """
    return query if query.dtype == torch.bfloat16 else query * options.scaling


def scores_of(products: Tensor, options: AttentionOptions) -> Tensor:
    """Of products of :func:`scaled` queries with keys: scaled by now, and capped."""
    scores = products * options.scaling if products.dtype == torch.bfloat16 else products
    return scores if options.softcap is None else torch.tanh(scores / options.softcap) * options.softcap


def lane_sinks(sinks: Tensor | None, heads: int, lanes: slice) -> Tensor | None:
    """``[l, r, 1]`` of a tile's lanes from the ``[H * r]`` of the layer."""
    if sinks is None:
        return None
    of_lane = torch.arange(lanes.start, lanes.stop, device=sinks.device) % heads
    return sinks.view(heads, -1)[of_lane][..., None]


def own_slots(scores: Tensor, visible: Tensor | None) -> slice:
    """The slots that ``visible`` is about, the last ones."""
    return slice(0 if visible is None else scores.shape[-1] - visible.shape[-1], None)


def products(queries: Tensor, keys: Tensor, scratch: Scratch | None = None) -> Tensor:
    """Of ``queries [l, t, r, d]`` and ``keys [l, d, c]``: ``[l, t, r, c]``."""
    lanes, count, group, _ = queries.shape
    out = None if scratch is None else scratch.shaped(lanes, count * group, keys.shape[2])
    return multiplied(queries.flatten(1, 2), keys, out).view(lanes, count, group, -1)


def quick_softmax(queries: Tensor, keys: Tensor, visible: Tensor | None, scratch: Scratch) -> Tensor | None:
    """:func:`masked_softmax` of :func:`products`, in memory that is used again; None where it takes the usual way."""
    weights = products(queries, keys, scratch)
    sums = exponentiated(weights, visible, own_slots(weights, visible))
    return None if sums is None else weights.mul_(sums.reciprocal_())


def masked_softmax(scores: Tensor, visible: Tensor | None, sinks: Tensor | None) -> Tensor:
    """:func:`softmax` of a tile's ``scores [l, t, r, c]`` over what is :func:`seen`; the scores are lost."""
    if visible is not None:
        scores[..., own_slots(scores, visible)].masked_fill_(visible == 0, -torch.inf)
    return softmax(scores, None if sinks is None else sinks[:, None])


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the slots, in float32: ``[l, r, c]``, or with an axis of queries after the lanes."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]


def average(weights: Tensor, out: Tensor) -> None:
    """The mean of ``weights [..., r, c]`` over the query heads of a group into ``out [..., c]``.

    By halves, which is several times faster than a mean over an axis between, and as exact: it rounds once a halving.
    """
    group = weights.shape[-2]
    while group > 2 and group % 2 == 0:
        group //= 2
        weights = torch.lerp(weights[..., :group, :], weights[..., group:, :], 0.5)
    if group == 1:
        out.copy_(weights.select(-2, 0))
    elif group == 2:
        torch.lerp(weights.select(-2, 0), weights.select(-2, 1), 0.5, out=out)
    else:
        torch.mean(weights, dim=-2, out=out)


class WholeRows:
    """The observer of any memory: gathers the rows of a block, which the memory then reads as a whole."""

    def __init__(self, slots: Slots, num_queries: int) -> None:
        rows, heads, num_slots = slots.positions.shape
        self._shape = (rows, heads, num_queries, num_slots)
        self._rows = slots.trace.new_zeros(rows * heads, num_queries, num_slots)

    def room(self, lanes: slice, queries: slice, columns: slice) -> Tensor:
        """A part of the rows."""
        return self._rows[lanes, queries, columns]

    def take_in(self) -> None:
        """Nothing to do."""

    @property
    def attention(self) -> Tensor:
        """float32 ``[B, H, n, K]``."""
        return self._rows.view(self._shape)

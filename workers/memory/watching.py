"""Attention that tells a memory what it paid, tile by tile: the seam where an accelerator's kernel takes over.

:func:`watch` is all that the rest of the project calls. It hands the queries of a block to the kernels of
``fused_attention.py`` where these can serve them, or else to :func:`attend`, plain torch on any device: a tile of
queries at a time and as many lanes (a KV head of a row) as keep the tile's scores small enough for a processor's cache.
The attention of a tile is taken in by the memory's observer before the next tile is begun, so that no more than a tile
of it ever exists.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size; L = B * H lanes; l, t and c are
lanes, queries and slots of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from workers.memory.features import SpectralSums
from workers.memory.kernels import kernels_for
from workers.memory.memory import Memory
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, Paid
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
    return (~_unseen(slots, tile, first_query, window)).to(dtype)[:, :, None]


def _unseen(slots: Slots, tile: Tile, first_query: int, window: int | None) -> Tensor:
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
    """Queries before the product, where that rounds no more than after it: there are fewer queries than scores."""
    return query * options.scaling if query.dtype == torch.float32 else query


def scores_of(products: Tensor, options: AttentionOptions) -> Tensor:
    """Of products of :func:`scaled` queries with keys: scaled by now, and capped."""
    scores = products if products.dtype == torch.float32 else products * options.scaling
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


RIPE_ROWS = 16
"""Rows of attention that are gathered before a memory is told: single tokens then cost it next to nothing."""


def watch(
    query: Tensor, held: Slots | PackedSlots, first_query: int, options: AttentionOptions, memory: Memory
) -> tuple[Tensor, Slots | PackedSlots]:
    """Attention of a block of queries ``[B, H * r, n, d]``, and the slots with what the memory learns from it."""
    num_queries = query.shape[2]
    if isinstance(held, PackedSlots):
        output, paid = attend_packed(query, held, first_query, options)
        held = held.with_recent(paid) if memory.reads_attention else held
        return output, told_packed(held, memory) if held.num_recent >= RIPE_ROWS else held
    if not memory.reads_attention:
        return attend_unwatched(query, held, first_query, options), held
    if num_queries == 1 and held.is_even and options.sliding_window is None:
        output, rows = attend_token(query, held.keys, held.values, options)
        held = held.with_recent(rows)
        return output, told(held, memory) if held.num_recent >= RIPE_ROWS else held
    if num_queries < RIPE_ROWS:
        gathered = WholeRows(held, num_queries)
        output = attend(query, held, first_query, options, gathered)
        held = held.with_recent(gathered.attention)
        return output, told(held, memory) if held.num_recent >= RIPE_ROWS else held
    spectrum = memory.spectrum
    kernels = kernels_for(query, "fused_attention")
    held = told(held, memory) if held.recent else held
    if spectrum is not None and kernels is not None and kernels.can_serve(query, held, options, spectrum):
        output, trace = kernels.attend_and_observe(query, held, options, spectrum)
        return output, held.with_trace(trace)
    slots = told(held, memory)
    if spectrum is not None:
        sums = SpectralSums(slots.trace, num_queries, spectrum)
        output = attend(query, slots, first_query, options, sums)
        return output, slots.with_trace(sums.trace)
    gathered = WholeRows(slots, num_queries)
    output = attend(query, slots, first_query, options, gathered)
    return output, slots.with_trace(memory.observe(slots.trace, gathered.attention))


def told(slots: Slots, memory: Memory) -> Slots:
    """The slots when the memory has been told all of their attention; its trace is of all slots."""
    trace = slots.full_trace()
    return slots.with_trace(memory.observe(trace, slots.recent_rows()) if slots.recent else trace)


def told_packed(held: PackedSlots, memory: Memory) -> PackedSlots:
    """:func:`told` of tokens that stay where they lie: a memory observes each by itself, as if all were of one head."""
    rows = (torch.cat(held.recent) if len(held.recent) > 1 else held.recent[0])[None, None]
    return held.with_trace(memory.observe(held.trace[None, None], rows)[0, 0], told(held.tail, memory))


def attend_token(
    query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one token ``[B, H * r, 1, d]`` to all slots ``[B, H, K, d]``, but to ``hidden`` ones of the last.

    Returns:
        The output, and the attention float32 ``[B, H, 1, K]``.
    """
    # Two kernels take the device half as long as these calls, but the host longer: not when a call is only replayed.
    kernels = kernels_for(query, "fused_token") if hidden is not None else None
    if kernels is not None and kernels.can_serve(keys, values, options):
        output, paid, _ = kernels.attend_token(query, keys, values, options.scaling, hidden)
        return output, paid
    num_rows, heads, num_slots, size = keys.shape
    lanes = num_rows * heads
    queries = scaled(query, options).reshape(lanes, -1, size)
    scores = scores_of(torch.bmm(queries, keys.flatten(0, 1).transpose(1, 2)), options)
    if hidden is not None:
        scores[..., num_slots - len(hidden) :].masked_fill_(hidden, -torch.inf)
    weights = softmax(scores, lane_sinks(options.sinks, heads, slice(0, lanes)))
    output = torch.bmm(weights.to(values.dtype), values.flatten(0, 1))
    paid = weights.new_empty(lanes, num_slots)
    average(weights.detach(), paid)
    return output.view(num_rows, -1, 1, output.shape[-1]), paid.view(num_rows, heads, 1, num_slots)


def can_attend_packed(held: PackedSlots, options: AttentionOptions) -> bool:
    """Whether a token can attend to packed tokens where they lie.

    For a sliding window their positions are asked for, and a gradient is taken of no part of a tensor. A processor
    attends to every lane by itself; on an accelerator that would be too many launches, and takes a kernel.
    """
    if options.sliding_window is not None or torch.is_grad_enabled():
        return False
    return not held.keys.is_cuda or _token_kernels(held, options) is not None


def _token_kernels(held: PackedSlots, options: AttentionOptions) -> ModuleType | None:
    kernels = kernels_for(held.tail.keys, "fused_token")
    return kernels if kernels is not None and kernels.can_serve(held.keys, held.values, options) else None


def attend_packed(
    query: Tensor, held: PackedSlots, first_query: int, options: AttentionOptions, hidden: Tensor | None = None
) -> tuple[Tensor, Paid]:
    """Attention of one token ``[B, H * r, 1, d]`` to tokens that are packed, its own among them.

    But not to ``hidden`` ones, the last of the tail, which may be where :func:`can_attend_packed`. Elsewhere all are
    unpacked, but for their traces.

    Returns:
        The output, and the attention.
    """
    if not can_attend_packed(held, options):
        slots = held.in_view()
        gathered = WholeRows(slots, 1)
        return attend(query, slots, first_query, options, gathered), held.apart(gathered.attention)
    num_rows, heads = held.tail.positions.shape[:2]
    lanes, size, longest, tail = num_rows * heads, query.shape[-1], held.longest, held.tail
    if (kernels := _token_kernels(held, options)) is not None:
        output, paid, packed = kernels.attend_token(query, tail.keys, tail.values, options.scaling, hidden, held)
        return output, Paid(packed, paid)
    queries = scaled(query, options).reshape(lanes, -1, size)
    products = queries.new_full((lanes, queries.shape[1], longest + tail.num_slots), -torch.inf)
    torch.bmm(queries, tail.keys.flatten(0, 1).transpose(1, 2), out=products[..., longest:])
    for one, keys, out in zip(queries.unbind(), held.keys.T.split(held.counts, dim=1), products.unbind(), strict=True):
        torch.mm(one, keys, out=out[:, longest - keys.shape[1] : longest])
    if hidden is not None:
        products[..., products.shape[-1] - len(hidden) :].masked_fill_(hidden, -torch.inf)
    scores = scores_of(products, options)
    if options.softcap is not None:
        scores = scores.masked_fill_(products == -torch.inf, -torch.inf)
    weights = softmax(scores, lane_sinks(options.sinks, heads, slice(0, lanes)))
    mixing = weights.to(held.values.dtype)
    output = torch.bmm(mixing[..., longest:], tail.values.flatten(0, 1))
    for one, mixed, values in zip(output.unbind(), mixing.unbind(), held.values.split(held.counts), strict=True):
        one.addmm_(mixed[:, longest - values.shape[0] : longest], values)
    rows = weights.new_empty(lanes, longest + tail.num_slots)
    average(weights, rows)
    paid = held.apart(rows.view(num_rows, heads, 1, -1))
    return output.view(num_rows, -1, 1, output.shape[-1]), paid


def attend_unwatched(query: Tensor, slots: Slots, first_query: int, options: AttentionOptions) -> Tensor:
    """Fused attention for memories that do not watch; shapes as in :func:`attend`."""
    num_queries, num_slots = query.shape[2], slots.positions.shape[2]
    if options.softcap is not None or options.sinks is not None:
        return attend(query, slots, first_query, options, None)
    mask: Tensor | None = None
    is_square = slots.is_even and num_queries == num_slots and options.sliding_window is None
    if query.is_cuda and slots.is_even and 1 < num_queries < num_slots and options.sliding_window is None:
        mask = causal_lower_right(num_queries, num_slots)  # flash attention knows this one, without a mask in memory
    elif not is_square and (num_queries > 1 or not slots.is_even or options.sliding_window is not None):
        mask = _seen(slots, first_query, num_queries, options.sliding_window)
        if mask.shape[1] > 1:
            mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    return functional.scaled_dot_product_attention(
        query,
        slots.keys,
        slots.values,
        attn_mask=mask,
        is_causal=is_square and num_queries > 1,
        scale=options.scaling,
        enable_gqa=True,
    )


def _seen(slots: Slots, first_query: int, num_queries: int, window: int | None) -> Tensor:
    """Which slot each query may see, bool ``[B or 1, H or 1, n, K]``."""
    rows, heads, num_slots = slots.positions.shape
    if slots.is_even and window is None:
        ones = torch.ones(num_queries, num_slots, dtype=torch.bool, device=slots.positions.device)
        return ones.tril_(num_slots - num_queries)[None, None]
    everything = Tile(slice(0, rows * heads), slice(0, num_queries), slice(0, num_slots))
    return ~_unseen(slots, everything, first_query, window).view(rows, heads, num_queries, num_slots)

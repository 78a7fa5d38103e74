"""Attention of a single token, which decoding is made of: to slots, or to packed tokens where they lie.

Shapes: B rows, H KV heads, r query heads per KV head, K slots, N tokens that are packed, d head size;
L = B * H lanes.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from workers.memory.kernels import kernels_for
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots
from workers.memory.tiled_attention import WholeRows, attend, average, lane_sinks, scaled, scores_of, softmax

TOGETHER_SCORES = 1 << 15
"""Most heads times tokens that are multiplied with each other: beyond, that costs more than a call for each head."""


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
        attended: tuple[Tensor, Tensor] = kernels.attend_token(query, keys, values, options.scaling, hidden)
        return attended
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

    For a sliding window their positions are asked for, and a gradient is taken of no part of a tensor. On an
    accelerator a product for every lane would be too many launches, and it takes a kernel.
    """
    if options.sliding_window is not None or torch.is_grad_enabled():
        return False
    return not held.keys.is_cuda or _token_kernels(held, options) is not None


def _token_kernels(held: PackedSlots, options: AttentionOptions) -> ModuleType | None:
    kernels = kernels_for(held.later(held.positions), "fused_token")
    return kernels if kernels is not None and kernels.can_serve(held.keys, held.values, options) else None


def attend_packed(
    query: Tensor, held: PackedSlots, first_query: int, options: AttentionOptions, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one token ``[B, H * r, 1, d]`` to tokens that are packed, its own among them.

    But not to ``hidden`` ones, the last of every lane, which may be where :func:`can_attend_packed`. Elsewhere all are
    unpacked, but for their traces.

    Returns:
        The output, and the attention ``[1, N]``.
    """
    if (kernels := _token_kernels(held, options)) is not None:
        attended: tuple[Tensor, Tensor] = kernels.attend_packed(query, held, options.scaling, hidden)
        return attended
    if not can_attend_packed(held, options):
        slots = held.in_view()
        gathered = WholeRows(slots, 1)
        output = attend(query, slots, first_query, options, gathered)
        return output, held.apart(gathered.attention)
    is_small = held.lanes.rows == 1 and held.lanes.heads * held.keys.shape[0] <= TOGETHER_SCORES
    if is_small and hidden is None:
        return _attend_together(query, held, options)
    return _attend_lanes(query, held, options, hidden)


def _attend_together(query: Tensor, held: PackedSlots, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """All heads of a row times all of its tokens, other heads' too: two products, where calls cost more than these.

    Values must be finite: one that is not would reach the other heads, too.
    """
    heads, total = held.lanes.heads, held.keys.shape[0]
    queries = scaled(query, options).view(-1, query.shape[-1])
    scores = scores_of(torch.mm(queries, held.keys.T), options).view(heads, -1, total)
    scores.masked_fill_(held.lanes.others(total), -torch.inf)
    weights = softmax(scores, lane_sinks(options.sinks, heads, slice(0, heads))).flatten(0, 1)
    output = torch.mm(weights.to(held.values.dtype), held.values)
    # A token is paid by the query heads of one lane, and nothing by the others.
    share = weights.new_full((1, len(weights)), heads / len(weights))
    return output.view(1, len(weights), 1, -1), torch.mm(share, weights)


def _attend_lanes(
    query: Tensor, held: PackedSlots, options: AttentionOptions, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Lane by lane, so that no more bytes are read than are held."""
    facts, size, longest = held.lanes, query.shape[-1], held.lanes.longest
    lanes, packed = len(facts.counts), facts.total
    later_keys, later_values = (held.later(tensor).flatten(0, 1) for tensor in (held.keys, held.values))
    queries = scaled(query, options).reshape(lanes, -1, size)
    products = queries.new_full((lanes, queries.shape[1], longest + held.num_later), -torch.inf)
    torch.bmm(queries, later_keys.mT, out=products[..., longest:])
    keys = held.keys[:packed].T.split(facts.counts, dim=1)
    for one, of_lane, out in zip(queries.unbind(), keys, products.unbind(), strict=True):
        torch.mm(one, of_lane, out=out[:, longest - of_lane.shape[1] : longest])
    if hidden is not None:
        products[..., products.shape[-1] - len(hidden) :].masked_fill_(hidden, -torch.inf)
    scores = scores_of(products, options)
    if options.softcap is not None:
        scores = scores.masked_fill_(products == -torch.inf, -torch.inf)
    weights = softmax(scores, lane_sinks(options.sinks, facts.heads, slice(0, lanes)))
    mixing = weights.to(held.values.dtype)
    output = torch.bmm(mixing[..., longest:], later_values)
    values = held.values[:packed].split(facts.counts)
    for one, mixed, of_lane in zip(output.unbind(), mixing.unbind(), values, strict=True):
        one.addmm_(mixed[:, longest - of_lane.shape[0] : longest], of_lane)
    rows = weights.new_empty(lanes, longest + held.num_later)
    average(weights, rows)
    paid = held.apart(rows.view(facts.rows, facts.heads, 1, -1))
    return output.view(facts.rows, -1, 1, output.shape[-1]), paid

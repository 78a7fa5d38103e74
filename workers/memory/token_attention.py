"""Attention of a single token, which decoding is made of: to slots, or to packed tokens where they lie.

Shapes: B rows, H KV heads, r query heads per KV head, K slots, T packed tokens, d head size; L = B * H lanes.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from workers.memory.kernels import kernels_for
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, Paid
from workers.memory.tiled_attention import WholeRows, attend, average, lane_sinks, scaled, scores_of, softmax


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
    if (kernels := _token_kernels(held, options)) is not None:
        tail = held.tail
        output, paid, packed = kernels.attend_token(query, tail.keys, tail.values, options.scaling, hidden, held)
        return output, Paid(packed, paid)
    if can_attend_packed(held, options):
        output, rows = _attend_lanes(query, held, options, hidden)
    else:
        slots = held.in_view()
        gathered = WholeRows(slots, 1)
        output, rows = attend(query, slots, first_query, options, gathered), gathered.attention
    return output, held.apart(rows)


def _attend_lanes(
    query: Tensor, held: PackedSlots, options: AttentionOptions, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Lane by lane, so that no more bytes are read than are held; the attention is ``[B, H, 1, longest + tail]``."""
    num_rows, heads = held.tail.positions.shape[:2]
    lanes, size, longest, tail = num_rows * heads, query.shape[-1], held.longest, held.tail
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
    return output.view(num_rows, -1, 1, output.shape[-1]), rows.view(num_rows, heads, 1, -1)

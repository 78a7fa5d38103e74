"""A memory watches attention: the seam where something faster takes the place of plain torch.

:func:`watch` is all that the rest of the project calls. It hands the queries of a block to the kernels of
``fused_attention.py`` on an accelerator and to the loop of ``cpu_attention.py`` on a processor, where these can serve
them, or else to ``tiled_attention.py``, plain torch on any device; single tokens to ``token_attention.py``; and those
of a memory that does not read attention to torch's own fused attention.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from workers.memory import cpu_attention
from workers.memory.features import SpectralSums
from workers.memory.kernels import kernels_for
from workers.memory.memory import Memory
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots
from workers.memory.slots import Slots
from workers.memory.tiled_attention import Tile, WholeRows, attend, unseen
from workers.memory.token_attention import attend_packed, attend_token

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
    fused = kernels_for(query, "fused_attention") or cpu_attention
    held = told(held, memory) if held.recent else held
    if spectrum is not None and fused.can_serve(query, held, options, spectrum):
        output, trace = fused.attend_and_observe(query, held, options, spectrum)
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
    trace, rows = held.full_trace()[None, None], held.recent_rows()[None, None]
    return held.with_trace(memory.observe(trace, rows)[0, 0])


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
    return ~unseen(slots, everything, first_query, window).view(rows, heads, num_queries, num_slots)

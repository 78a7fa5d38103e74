"""The attention function and the mask function that transformers calls while a memory is attached.

A long query is swept in blocks that end where updates are due: each block attends to what the layer still holds, the
memory takes its attention in, and evicts. One forward call, blocks of any size and token by token give the same
result, and only one layer at a time holds more than it keeps.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from workers.memory.cache import MemoryCache, UpdateListener, drop_staged_layer, take_staged_layer
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Memory
from workers.memory.slots import Slots

IMPLEMENTATION = "namm"
"""Name of our functions in transformers' registries."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a model asks of its attention beyond the usual."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None


def blocks(seen_tokens: int, new_tokens: int, update_every: int | None) -> Iterator[tuple[int, int]]:
    """Cut ``new_tokens`` queries where updates are due: pairs (start, stop), relative to the first new one."""
    start = 0
    while start < new_tokens:
        room = new_tokens - start
        if update_every is not None:
            room = min(room, update_every - (seen_tokens + start) % update_every)
        yield start, start + room
        start += room


def visible(slots: Slots, first_query: int, num_queries: int, window: int | None) -> Tensor | None:
    """Which slot each query may see, bool ``[B or 1, H or 1, n, K]``; None when every query sees every slot.

    A query sees the tokens that are not newer than itself, and with a sliding window only the newest of them.
    """
    if slots.is_even and num_queries == 1 and window is None:
        return None
    queries = torch.arange(first_query, first_query + num_queries, device=slots.positions.device)[:, None]
    if slots.is_even and window is None:
        # Held tokens are all older than the block: only the block's own tokens need comparing.
        newest_first = torch.arange(first_query + num_queries - 1, -1, -1, device=queries.device)
        columns = newest_first[: slots.positions.shape[-1]].flip(0)
        return (columns <= queries)[None, None]
    positions = slots.positions[:, :, None, :]
    mask = (positions >= 0) & (positions <= queries)
    return mask if window is None else mask & (positions > queries - window)


def attend_and_watch(
    query: Tensor, slots: Slots, mask: Tensor | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights averaged over each group of query heads (spec 2).

    Args:
        query: ``[B, H * r, n, d]``.
        slots: what the layer holds, the queries' own tokens included.
        mask: as :func:`visible` has it.
        options: scaling and soft cap of the scores.

    Returns:
        Output ``[B, H * r, n, d]`` and averaged weights ``[B, H, n, K]`` in the model's dtype.
    """
    rows, query_heads, num_queries, size = query.shape
    heads, num_slots = slots.keys.shape[1:3]
    grouped = query.reshape(rows, heads, -1, size)
    scores = (grouped @ slots.keys.transpose(-1, -2)).mul_(options.scaling)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores.view(rows, heads, query_heads // heads, num_queries, num_slots)
    if mask is not None:
        scores = scores.masked_fill_(~mask[:, :, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = weights.view(rows, heads, -1, num_slots) @ slots.values
    return output.view(rows, query_heads, num_queries, -1), weights.mean(dim=2)


def attend(query: Tensor, slots: Slots, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Fused attention for memories that do not watch; shapes as in :func:`attend_and_watch`."""
    if options.softcap is not None:
        return attend_and_watch(query, slots, mask, options)[0]
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    return functional.scaled_dot_product_attention(
        query, slots.keys, slots.values, attn_mask=mask, scale=options.scaling, enable_gqa=True
    )


def memory_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over what the layer holds; signature as transformers' attention functions have it."""
    layer = take_staged_layer(key)
    if attention_mask is not None:
        raise UnsupportedUseError(
            "a cache that forgets takes no 4-D attention mask: it knows who sees whom by position"
        )
    if kwargs.get("s_aux") is not None:
        raise UnsupportedUseError(f"{type(module).__name__} uses attention sinks (s_aux), which no memory supports yet")
    options = AttentionOptions(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )
    memory = layer.cache.memory
    assert layer.held is not None
    slots = layer.held.at_work()
    outputs = []
    for start, stop in blocks(layer.seen_tokens, query.shape[2], memory.update_every):
        first = layer.seen_tokens
        slots = slots.append(key[:, :, start:stop], value[:, :, start:stop], first)
        mask = visible(slots, first, stop - start, options.sliding_window)
        block = query[:, :, start:stop]
        if memory.reads_attention:
            output, weights = attend_and_watch(block, slots, mask, options)
            slots = slots.with_trace(memory.observe(slots.trace, weights.detach()))
        else:
            output = attend(block, slots, mask, options)
        outputs.append(output)
        slots = layer.take_up(slots, first + stop - start)
    layer.held = slots.at_rest()
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def refuse_padding(*_args: Any, attention_mask: Tensor | None = None, **_kwargs: Any) -> None:
    """The mask function: masks are built from positions inside the attention, so there is nothing to make here."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedUseError(
            "a cache that forgets takes no padded batches: group prompts of equal length, or run them one by one"
        )


AttentionInterface.register(IMPLEMENTATION, memory_attention)
AttentionMaskInterface.register(IMPLEMENTATION, refuse_padding)


@contextmanager
def memory_attached(
    model: PreTrainedModel, memory: Memory, listener: UpdateListener | None = None
) -> Iterator[MemoryCache]:
    """Attach a memory to a model: yields the empty cache to pass as ``past_key_values``.

    The model is left as it was, also after an error.
    """
    text_config = model.config.get_text_config(decoder=True)
    former = text_config._attn_implementation
    model.set_attn_implementation(_for_text_part(model.config, text_config, IMPLEMENTATION) or IMPLEMENTATION)
    cache = MemoryCache(memory, text_config.num_hidden_layers, listener)
    try:
        yield cache
    finally:
        cache.is_open = False
        drop_staged_layer()
        model.set_attn_implementation(_for_text_part(model.config, text_config, former) or former)


_Implementation = str | dict[str, "_Implementation"]


def _for_text_part(config: Any, text_config: Any, implementation: str) -> _Implementation | None:
    """What ``set_attn_implementation`` takes for the text part alone: a vision tower keeps its own attention."""
    if config is text_config:
        return implementation
    for name in config.sub_configs:
        part = getattr(config, name, None)
        inner = None if part is None else _for_text_part(part, text_config, implementation)
        if inner is not None:
            return {name: inner}
    return None

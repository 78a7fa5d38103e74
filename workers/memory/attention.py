"""The attention function and the mask function that transformers calls while a memory is attached.

A long query is swept in blocks that end where updates are due: each block attends to what the layer still holds, the
memory takes its attention in, and evicts. One forward call, blocks of any size and token by token give the same
result, and only one layer at a time holds more than it keeps.

Shapes: B rows, H KV heads, r query heads per KV head, n queries, K slots, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from workers.memory.ahead import sweep_ahead, tokens_ahead
from workers.memory.cache import MemoryCache, MemoryLayer, UpdateListener, drop_staged_layer, take_staged_layer
from workers.memory.compiling import outside_graphs
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Memory
from workers.memory.options import AttentionOptions
from workers.memory.packed import PackedSlots, at_rest
from workers.memory.padding import Cohort
from workers.memory.room import explain_lack_of_room
from workers.memory.slots import Slots
from workers.memory.support import require_fit, switch_attention
from workers.memory.watching import watch

IMPLEMENTATION = "namm"
"""Name of our functions in transformers' registries."""


def blocks(seen_tokens: int, new_tokens: int, update_every: int | None) -> Iterator[tuple[int, int]]:
    """Cut ``new_tokens`` queries where updates are due: pairs (start, stop), relative to the first new one."""
    start = 0
    while start < new_tokens:
        room = new_tokens - start
        if update_every is not None:
            room = min(room, update_every - (seen_tokens + start) % update_every)
        yield start, start + room
        start += room


@outside_graphs
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
    layer = take_staged_layer(module, key)
    if attention_mask is not None and attention_mask.ndim != 2:
        raise UnsupportedUseError(
            "a cache that forgets takes no 4-D attention mask: it knows who sees whom by position"
        )
    options = AttentionOptions.of_call(module, query.shape[-1], scaling, kwargs)
    layer.options = options
    padding = layer.cache.padding
    padding.read(attention_mask, query.shape[0], layer.seen_tokens)
    if any(padding.by_row) and layer.cache.memory.num_genomes > 1:
        raise UnsupportedUseError("a block of genomes takes no padded batches: group prompts of equal length")
    layer.cache.layer_begins(layer.index)
    # Under autocast the rotation left queries and keys in float32, which plain attention would round as the values are;
    # what is done here knows its dtypes, and must not be rounded in its midst. That of the first call is for all: some
    # may be under autocast, and others not.
    dtype = value.dtype
    query, key, value = (tensor.to(layer.dtype) for tensor in (query, key, value))
    # Kernels are launched, and events recorded, on the current device, wherever their tensors are.
    with torch.cuda.device_of(query), without_autocast(query.device):
        output = attended(layer, query, key, value, options)
    layer.cache.layer_ends(layer.index)
    return output.transpose(1, 2).to(dtype).contiguous(), None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Where dtypes are as they are given."""
    is_on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


def attended(layer: MemoryLayer, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    """Attention ``[B, H * r, n, d]`` of the new tokens of all rows, each cohort by itself."""
    if layer.open is not None:
        return layer.open.attend(query, key, value, options)
    seen, new = layer.seen_tokens, query.shape[2]
    output: Tensor | None = None
    for cohort in layer.cache.padding.cohorts(query.device):
        if cohort.rows is None:
            output = sweep(layer, cohort, query, key, value, options)
            break
        if output is None:
            output = query.new_zeros(*query.shape[:3], value.shape[-1])
        first = max(0, cohort.padding - seen)
        if first < new:
            queries, keys, values = (tensor[cohort.rows, :, first:] for tensor in (query, key, value))
            output[cohort.rows, :, first:] = sweep(layer, cohort, queries, keys, values, options)
    assert output is not None
    layer.seen_tokens += new
    return output


def sweep(
    layer: MemoryLayer, cohort: Cohort, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
) -> Tensor:
    """Attention ``[B, H * r, n, d]`` of the new tokens of some rows, evicting on the way; shapes without padding."""
    num_queries = query.shape[2]
    held = layer.held_by(cohort, key, value)
    seen = max(0, layer.seen_tokens - cohort.padding)
    if num_queries == 1:  # a single token is attended to where the others lie; for more it pays to unpack them
        output, held = _block(layer, cohort, held, seen, query, key, value, options)
        layer.cohorts[cohort.padding] = at_rest(held)
        return output
    outputs: list[Tensor] = []
    start = 0
    while start < num_queries:
        held = held.at_work()
        ahead = tokens_ahead(layer, held, query[:, :, start:], seen, options)
        _, size = next(blocks(seen, num_queries - start, layer.cache.memory.update_every))
        block = slice(start, start + (ahead or size))
        tensors = (query[:, :, block], key[:, :, block], value[:, :, block])
        if ahead:
            output, settle = sweep_ahead(layer, cohort, held, seen, *tensors, options)
            if block.stop == num_queries:
                layer.owe(cohort, settle)
                return output if not outputs else torch.cat([*outputs, output], dim=2)
            held = settle()
        else:
            output, held = _block(layer, cohort, held, seen, *tensors, options)
        seen, start = seen + block.stop - block.start, block.stop
        outputs.append(output if start == num_queries else output.clone())  # a recorded sweep writes to one place
    layer.cohorts[cohort.padding] = at_rest(held)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _block(
    layer: MemoryLayer, cohort: Cohort, held: Slots | PackedSlots, seen: int,
    query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions,
) -> tuple[Tensor, Slots | PackedSlots]:  # fmt: skip
    """Attention of tokens at the end of which an update may be due, and what is held after it."""
    held = held.append(key, value, seen)
    output, held = watch(query, held, seen, options, layer.cache.memory)
    return output, layer.take_up(held, cohort, seen + query.shape[2], query.shape[2])


def padding_mask(
    *_args: Any,
    q_length: int = 1,
    q_offset: int = 0,
    kv_length: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    batch_size: int = 1,
    config: Any = None,
    use_vmap: bool = False,
    **_kwargs: Any,
) -> Tensor | None:
    """The mask function: who sees whom is known by position inside the attention, so only padding is handed on."""
    if use_vmap or _sees_the_future(mask_function, batch_size, q_offset, q_length):
        raise UnsupportedUseError(
            f"{getattr(config, 'model_type', 'this model')} changes the causal mask (an encoder, images whose patches "
            "see each other, packed texts): a cache that forgets serves plain text, or take another model"
        )
    if q_length == 0 or (attention_mask is not None and attention_mask.shape[-1] != kv_length):
        columns = kv_length if attention_mask is None else attention_mask.shape[-1]
        raise UnsupportedUseError(
            f"the attention mask covers {columns} tokens, but the cache has read "
            f"{kv_length - q_length} and the call brings {q_length} more: take a new cache for a new text, or go on "
            "with the whole text so far"
        )
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


def _sees_the_future(mask_function: Callable[..., Any] | None, rows: int, first: int, new: int) -> bool:
    """Whether any new token sees the one after it, as the patches of an image do in some models."""
    if mask_function is None or mask_function is causal_mask_function or new < 2:
        return False
    queries = torch.arange(first, first + new - 1)[None]  # on the CPU, to ask nothing of an accelerator that is busy
    return bool(torch.as_tensor(mask_function(torch.arange(rows)[:, None], 0, queries, queries + 1)).any())


@outside_graphs
def require_service(model: PreTrainedModel, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """A forward pre-hook: what a call under a memory's cache must not ask for.

    With ``use_cache=False`` ``generate`` would feed the cache the whole text at every step.
    """
    if not any(isinstance(value, MemoryCache) for value in (*arguments, *named.values())):
        return
    if named.get("use_cache") is False:
        raise UnsupportedUseError("a memory's cache was passed with use_cache=False: leave use_cache on")
    text_config = model.config.get_text_config(decoder=True)
    if named.get("output_attentions", text_config.output_attentions):
        raise UnsupportedUseError(
            "a memory's cache was passed with output_attentions=True, but attention is told to the memory and then "
            "dropped: leave output_attentions off"
        )


AttentionInterface.register(IMPLEMENTATION, memory_attention)
AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)


@contextmanager
def memory_attached(
    model: PreTrainedModel, memory: Memory, listener: UpdateListener | None = None
) -> Iterator[MemoryCache]:
    """Attach a memory to a model: yields the empty cache to pass as ``past_key_values``.

    The model is left as it was, also after an error. Inside the block a call without the cache is refused.
    """
    cache = MemoryCache(memory, require_fit(model, memory), listener)
    former = switch_attention(model, IMPLEMENTATION)
    handle = model.register_forward_pre_hook(require_service, with_kwargs=True)
    try:
        yield cache
    except RuntimeError as error:
        explain_lack_of_room(error, cache)
        raise
    finally:
        cache.is_open = False
        handle.remove()
        drop_staged_layer()
        switch_attention(model, former)

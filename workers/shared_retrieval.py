"""Makes the KV heads of a layer share the work of looking facts up, while the small Llama is trained.

Left alone, whichever KV head finds out first how to look facts up does all of it. Then the best memory is a constant,
"keep that head whole and forget the rest", and there is nothing to learn about tokens. A large model has many
retrieval heads; to be like one, each KV head of the last layer is made responsible for its share of the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tasks.words import KEYS
from workers.word_tokenizer import TOKEN_IDS


@contextmanager
def keys_shared_among_kv_heads(model: LlamaForCausalLM) -> Iterator[None]:
    """Within the context a position that reads key i gets the output of one KV head of the last layer only, i modulo n.

    All other positions see all heads. The model is as before afterwards.
    """
    open_heads = _open_heads(model)
    open_by_position = torch.empty(0)  # [rows, tokens, query heads] of the forward pass under way
    attention = model.model.layers[-1].self_attn

    def remember_ids(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal open_by_position
        open_by_position = open_heads[kwargs["input_ids"]]

    def close_heads(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        by_head = args[0].unflatten(-1, (-1, attention.head_dim))
        return ((by_head * open_by_position[..., None]).flatten(-2),)

    hooks = (
        model.model.register_forward_pre_hook(remember_ids, with_kwargs=True),
        attention.o_proj.register_forward_pre_hook(close_heads),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _open_heads(model: LlamaForCausalLM) -> torch.Tensor:
    """Float32 ``[vocabulary, query heads]``: 1 where a token that is read sees the output of a query head, else 0."""
    num_kv_heads = model.config.num_key_value_heads
    is_open = torch.ones(model.config.vocab_size, num_kv_heads)
    for index, key in enumerate(KEYS):
        is_open[TOKEN_IDS[key]] = torch.nn.functional.one_hot(torch.tensor(index % num_kv_heads), num_kv_heads).float()
    return is_open.repeat_interleave(model.config.num_attention_heads // num_kv_heads, dim=-1)

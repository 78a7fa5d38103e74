"""Makes the KV heads of a layer share the work of looking things up, while a small model is trained.

Left alone, whichever KV head finds out first how to look facts up does all of it. Then the best memory is a constant,
"keep that head whole and forget the rest", and there is nothing to learn about tokens. A large model has many
retrieval heads; to be like one, each KV head is made responsible for its share of the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SHARED_STEPS_SHARE = 0.7
"""Share of a training's steps in which KV heads are kept to their own keys; afterwards they settle."""


@contextmanager
def keys_shared_among_kv_heads(
    model: PreTrainedModel, attentions: Sequence[nn.Module], keys: Sequence[int]
) -> Iterator[None]:
    """Within the context a position that reads key i gets the output of one KV head only, i modulo n.

    All other positions see all heads. The model is as before afterwards.

    Args:
        model: whose ``model`` is called with ``input_ids``.
        attentions: of the layers in which keys are shared, as Llama has them.
        keys: token ids.
    """
    open_heads = _open_heads(model, keys)
    open_by_position = torch.empty(0)  # [rows, tokens, query heads] of the forward pass under way

    def remember_ids(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal open_by_position
        open_by_position = open_heads[kwargs["input_ids"]]

    def close_heads(_module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        by_head = args[0].unflatten(-1, (open_by_position.shape[-1], -1))
        return ((by_head * open_by_position[..., None]).flatten(-2),)

    with ExitStack() as stack:
        stack.callback(model.model.register_forward_pre_hook(remember_ids, with_kwargs=True).remove)
        for attention in attentions:
            stack.callback(attention.get_submodule("o_proj").register_forward_pre_hook(close_heads).remove)
        yield


def _open_heads(model: PreTrainedModel, keys: Sequence[int]) -> torch.Tensor:
    """Float32 ``[vocabulary, query heads]``: 1 where a token that is read sees the output of a query head, else 0."""
    config = model.config.get_text_config()
    num_kv_heads = config.num_key_value_heads
    is_open = torch.ones(config.vocab_size, num_kv_heads)
    for index, key in enumerate(keys):
        is_open[key] = nn.functional.one_hot(torch.tensor(index % num_kv_heads), num_kv_heads).float()
    return is_open.repeat_interleave(config.num_attention_heads // num_kv_heads, dim=-1)

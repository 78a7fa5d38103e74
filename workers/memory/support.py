"""Which models a memory can be attached to, and how the text part of one is switched to another attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import Memory

SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layer, in the words of transformers' ``layer_types``."""


def require_support(model: PreTrainedModel) -> Any:
    """The configuration of the model's text part, if a memory can be attached to it.

    Raises:
        UnsupportedUseError: it cannot; all the reasons, by the name of the architecture.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedUseError(
            f"no memory can be attached to a {type(model).__name__}: give a model of transformers, as "
            "AutoModelForCausalLM.from_pretrained returns it"
        )
    if reasons := list(obstacles(model.config, type(model))):
        raise UnsupportedUseError(
            f"no memory can be attached to {type(model).__name__}: {'; '.join(reasons)}; `namm doctor MODEL` says more"
        )
    return model.config.get_text_config(decoder=True)


def require_fit(model: PreTrainedModel, memory: Memory) -> int:
    """Layers of the model's text part, if this very memory can be attached to it.

    Raises:
        UnsupportedUseError: no memory can, or this one is made for other layers and heads.
    """
    text = require_support(model)
    if reason := misfit(memory.layout, text, type(model).__name__):
        raise UnsupportedUseError(reason)
    return int(text.num_hidden_layers)


def misfit(layout: tuple[int, int] | None, config: Any, name: str) -> str | None:
    """Why a memory made for the heads of ``layout`` does not fit the model ``name`` of ``config``; None if it does."""
    if layout is None or layout == (found := layers_and_heads(config)):
        return None
    return (
        f"the memory's layout is {layout[0]} layers of {layout[1]} KV heads, but {name} has {found[0]} of {found[1]}: "
        "take the model that the genome was made for"
    )


def layers_and_heads(config: Any) -> tuple[int, int]:
    """Layers of a model's text part and KV heads of each, by its configuration."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(text.num_hidden_layers), int(heads)


def obstacles(config: Any, model_class: type[PreTrainedModel]) -> Iterator[str]:
    """Why no memory can be attached to models of this configuration, as far as it tells before the model is run."""
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        yield "it has an encoder beside its decoder"
    if model_class._is_stateful:
        yield "it keeps a state (state space, linear attention or recurrence) where a KV cache would be"
    foreign = sorted(set(getattr(text, "layer_types", None) or ()) - SUPPORTED_LAYERS)
    if foreign:
        yield f"it has layers of the kind {', '.join(foreign)}"
    if getattr(text, "num_kv_shared_layers", 0):
        yield f"its last {text.num_kv_shared_layers} layers have no keys and values of their own"
    if not model_class._can_set_attn_implementation():
        yield "its code does not look its attention up in transformers' registry (an old or remote-code model)"
    if not (getattr(text, "num_attention_heads", None) and getattr(text, "num_hidden_layers", None)):
        yield "its configuration names no attention heads"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids are to be put: a model that is spread over several devices begins with its embeddings.

    Embeddings that are offloaded have no device of their own; accelerate's hook knows where they are computed.
    """
    weights: torch.Tensor = next(model.get_input_embeddings().parameters())
    if weights.device.type != "meta":
        return weights.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return weights.device if device is None else torch.device(device)


def switch_attention(model: PreTrainedModel, implementation: str) -> str:
    """Let the text part of a model use another attention implementation; returns the former."""
    text_config = model.config.get_text_config(decoder=True)
    former: str = text_config._attn_implementation
    if former != implementation:
        model.set_attn_implementation(_for_text_part(model.config, text_config, implementation) or implementation)
    return former


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

"""What a memory would find in a model, from its configuration alone: built and tried on torch's meta device.

There tensors have shapes and no contents, so a model of any size is looked at in seconds, without its weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PreTrainedModel,
)

from workers.language_model import model_folder, said_in_one_line
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryLayer
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import KeepAll
from workers.memory.support import obstacles


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One layer's share of the KV cache."""

    kv_heads: int
    key_size: int
    """Numbers in a key."""
    value_size: int
    """Numbers in a value."""
    token_bytes: int
    """Bytes of one token's keys and values, all heads together."""
    sliding_window: int | None
    """Tokens that a query sees; None for all."""
    softcap: float | None
    """Bound that the attention scores are squeezed into; None for none."""
    has_sinks: bool
    """Whether every query head has a logit that takes a share of the attention and brings no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A model as a memory sees it."""

    architecture: str
    """The class of the model."""
    dtype: str
    """Of the weights, and so of the cache."""
    max_tokens: int | None
    """Longest text that the model was made for."""
    layers: tuple[LayerFacts, ...]
    """In the order of the model; empty when it could not be tried."""
    obstacles: tuple[str, ...]
    """Why no memory can be attached; empty when one can."""
    untried: str | None
    """Why the model could not be tried without its weights; None when it was."""

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in the full cache."""
        return sum(layer.token_bytes for layer in self.layers)


def load_config(path_or_id: str) -> Any:
    """The configuration of a model: a folder, or a hub id with or without its commit (``ID@COMMIT``).

    No code that comes with a model is run.

    Raises:
        ModelError: there is none, or it needs code of its own.
    """
    name, _, revision = path_or_id.partition("@")
    folder = model_folder(name)
    with said_in_one_line(f"cannot read the configuration of {path_or_id!r}"):
        return AutoConfig.from_pretrained(
            str(folder or name),
            revision=revision or None,
            local_files_only=folder is not None or bool(os.environ.get("HF_HUB_OFFLINE")),
            trust_remote_code=False,
        )


def is_for_pictures(config: Any) -> bool:
    """Whether transformers knows the model of ``config`` as one that is shown pictures, and no other way."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def survey(config: Any) -> Survey:
    """Look at the model that ``config`` describes; ``config`` is changed on the way."""
    model_class = _class_for(config)
    text = config.get_text_config(decoder=True)
    layers: list[MemoryLayer] = []
    untried = None
    if model_class is None:
        found = ["transformers has no class of it that writes text after text"]
    elif not (found := list(obstacles(config, model_class))):
        layers, untried = _tried(model_class, config, found)
    return Survey(
        architecture=model_class.__name__ if model_class else type(config).__name__,
        dtype=str(config.dtype or torch.float32).removeprefix("torch."),
        max_tokens=getattr(text, "max_position_embeddings", None),
        layers=tuple(map(_facts, layers)),
        obstacles=tuple(found),
        untried=untried,
    )


def _class_for(config: Any) -> type[PreTrainedModel] | None:
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if found := mapping.get(type(config), None):
            model_class: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            return model_class
    return None


def _tried(model_class: type[PreTrainedModel], config: Any, found: list[str]) -> tuple[list[MemoryLayer], str | None]:
    """The layers after a call under a memory; what stands in the way is added to ``found``."""
    config.get_text_config(decoder=True).pad_token_id = None  # or some models look for it among the (absent) ids
    try:
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=config.dtype or torch.float32).eval()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")  # others look at which token goes where
        ids = torch.ones(1, 2, dtype=torch.long, device="meta")
        with torch.no_grad(), memory_attached(model, KeepAll()) as cache:
            model(input_ids=ids, past_key_values=cache, use_cache=True)
    except UnsupportedUseError as error:
        found.append(str(error))
        return [], None
    # Whatever else a model's own code raises on a device without contents says nothing about memories.
    except Exception as error:
        return [], f"{type(error).__name__}: {' '.join(str(error).split())}"
    if idle := sum(not layer.cohorts for layer in cache.layers):
        found.append(f"{idle} of its {len(cache.layers)} layers do not use the cache")
    return [layer for layer in cache.layers if layer.cohorts], None


def _facts(layer: MemoryLayer) -> LayerFacts:
    assert layer.held is not None
    assert layer.options is not None
    slots = layer.held.at_work()
    _, heads, tokens, key_size = slots.keys.shape
    return LayerFacts(
        kv_heads=heads,
        key_size=key_size,
        value_size=slots.values.shape[-1],
        token_bytes=(slots.cache_bytes - slots.spare_bytes) // tokens,
        sliding_window=layer.options.sliding_window,
        softcap=layer.options.softcap,
        has_sinks=layer.options.sinks is not None,
    )

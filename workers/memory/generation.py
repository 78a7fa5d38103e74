"""``model.generate`` whose tokens are replayed: all that transformers offers there, at a launch a token.

``generate`` feeds one token after another to the model that it is a method of. Here it is the method of a twin, which
has the model's very parts and class, but replays the call of a token under the memory's cache where that can be
(``replay.py``). The model itself stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from workers.memory.cache import MemoryCache
from workers.memory.hooks import is_ours
from workers.memory.replay import Decoder, Recorder

REPLAYED_ARGUMENTS = frozenset(
    {"input_ids", "past_key_values", "use_cache", "attention_mask", "position_ids", "cache_position"}
    | {"logits_to_keep", "return_dict"}
)
"""Of a call that is replayed: what else it may be given says nothing new about a token of a text without padding."""


def replaying(model: PreTrainedModel, cache: MemoryCache, recorder: Recorder | None = None) -> PreTrainedModel:
    """A twin of ``model`` to generate with under ``cache``, which is one of its own; ``recorder`` as of a decoder.

    Given back as it is: a compiled model, which has its own way to be fast; one that reads more than text, where the
    position of a token may depend on what was read before; and one with somebody's forward hooks, which a replayed call
    would pass over.
    """
    if not isinstance(model, PreTrainedModel) or _is_compiled(model):
        return model
    if _reads_more_than_text(model) or _has_hooks(model):
        return model
    twin: PreTrainedModel = object.__new__(_twin_class(type(model)))  # type: ignore[arg-type]  # classes are hashable
    object.__setattr__(twin, "__dict__", model.__dict__)
    object.__setattr__(twin, "_replays", (model, cache, Decoder(model, cache, recorder)))
    return twin


def _is_compiled(model: PreTrainedModel) -> bool:
    return model._compiled_call_impl is not None or hasattr(model.forward, "_torchdynamo_orig_callable")


def _reads_more_than_text(model: PreTrainedModel) -> bool:
    return model.config.get_text_config(decoder=True) is not model.config


def _has_hooks(model: PreTrainedModel) -> bool:
    """Other than a memory's, which are on the model itself and do nothing that a replayed call needs."""
    return any(
        not is_ours(hook)
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


@functools.cache
def _twin_class(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class that is ``kind`` in everything else."""

    def call(twin: Any, *arguments: Any, **named: Any) -> Any:
        model, cache, decoder = twin._replays
        if not arguments and _is_of_a_token(named, cache):
            logits = decoder.replayed(named["input_ids"], named.get("position_ids"))
            if logits is not None:
                return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=cache)
        return model(*arguments, **named)

    return type(kind.__name__, (kind,), {"__slots__": ("_replays",), "__call__": call, "__module__": kind.__module__})


def _is_of_a_token(named: Mapping[str, Any], cache: MemoryCache) -> bool:
    """Whether a call brings one token of each row, and asks for nothing but logits."""
    ids, positions = named.get("input_ids"), named.get("position_ids")
    given = {name for name, value in named.items() if value is not None and value is not False}
    return (
        given <= REPLAYED_ARGUMENTS
        and named.get("past_key_values") is cache
        and named.get("use_cache", True)
        and named.get("return_dict", True)
        and isinstance(ids, Tensor)
        and ids.shape[1:] == (1,)
        and (positions is None or positions.shape[1:] == (1,))
    )

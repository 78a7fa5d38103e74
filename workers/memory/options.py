"""What a model asks of its attention, and what of that a memory can serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workers.memory.errors import UnsupportedUseError

HARMLESS_ARGUMENTS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
    | {"num_items_in_batch", "cache_position", "token_type_ids", "logits_to_keep", "deterministic", "is_causal"}
    | {"dropout", "seq_idx"}
)
"""What models pass along beyond :class:`AttentionOptions`, and what changes nothing about causal attention."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a model asks of its attention beyond the usual."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    """``[H * r]``: a logit for each query head that takes its share of the attention and brings no value."""

    @property
    def is_plain(self) -> bool:
        """Whether weights are the softmax of the scaled products and of nothing else."""
        return self.softcap is None and self.sinks is None

    @staticmethod
    def of_call(
        module: nn.Module, head_size: int, scaling: float | None, arguments: Mapping[str, Any]
    ) -> AttentionOptions:
        """From the keyword arguments that the model has called its attention with.

        Raises:
            UnsupportedUseError: an argument with an effect that is not known here.
        """
        if complaint := complaint_about(arguments, is_causal=getattr(module, "is_causal", True)):
            raise UnsupportedUseError(f"{type(module).__name__} {complaint}")
        return AttentionOptions(
            scaling=head_size**-0.5 if scaling is None else scaling,
            sliding_window=arguments.get("sliding_window"),
            softcap=arguments.get("softcap"),
            sinks=arguments.get("s_aux"),
        )


def complaint_about(arguments: Mapping[str, Any], *, is_causal: bool = True) -> str | None:
    """Why attention with these keyword arguments cannot be served, to follow the module's name; None if it can."""
    known = {"sliding_window", "softcap", "s_aux"} | HARMLESS_ARGUMENTS
    unknown = sorted(name for name, value in arguments.items() if name not in known and value is not None)
    if unknown:
        return f"passes its attention {', '.join(unknown)}, which no memory supports: take another model"
    given = arguments.get("is_causal")
    if not (is_causal if given is None else given):
        return "attends to later tokens, which no cache can: take a decoder"
    if arguments.get("dropout"):
        return "drops attention out at random, as in training: call model.eval() first"
    return None

"""The dial: the threshold on importance at which a memory keeps a wanted share of the tokens.

The published rule keeps what has an importance of at least 0. Any other threshold is a rule as well, keeps more or
less, and costs no evolution. What one keeps depends on what earlier updates left over, so quantiles of importances seen
under another threshold would miss: it is measured by reading prompts under it, and the right one is found by bisection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.memory.attention import memory_attached
from workers.memory.build import build_memory
from workers.memory.errors import DialError
from workers.memory.memory import Memory
from workers.memory.specs import MOST_TOKENS, NammSpec
from workers.memory.support import input_device

TOLERANCE = 0.005
"""How near to what was asked is near enough, relatively."""
FARTHEST = 2.0**20
"""Beyond any importance of a memory that was evolved."""
CHUNK_TOKENS = 2048
"""Most tokens of a prompt in one forward call, for the sake of the accelerator's memory."""

Prompts = Sequence[Sequence[int] | Tensor]
"""Token ids of one prompt each, or ``[rows, n]`` for prompts of equal length that are read together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Where the dial is to be turned to; what is None is left as it is."""

    kept_ratio: float | None = None
    """Tokens held after a prompt / tokens read, mean over layers, KV heads and prompts."""
    bytes_per_token: float | None = None
    """Bytes of keys and values held after a prompt / tokens read."""
    cap: int | None = None
    """Most tokens that a KV head may keep at an update."""

    def __post_init__(self) -> None:
        if self.kept_ratio is not None and self.bytes_per_token is not None:
            raise DialError("kept_ratio and bytes_per_token turn the same dial: give one of them")
        if self.kept_ratio is None and self.bytes_per_token is None and self.cap is None:
            raise DialError("there is nothing to turn the dial to: give kept_ratio, bytes_per_token or cap")
        if self.kept_ratio is not None and not 0.0 < self.kept_ratio <= 1.0:
            raise DialError(f"kept_ratio must be above 0 and at most 1: got {self.kept_ratio}")
        if self.bytes_per_token is not None and not 0.0 < self.bytes_per_token < math.inf:
            raise DialError(f"bytes_per_token must be above 0: got {self.bytes_per_token}")
        if self.cap is not None and not (isinstance(self.cap, Integral) and 1 <= self.cap < MOST_TOKENS):
            raise DialError(f"cap must be a whole number of tokens, at least 1: got {self.cap}")


@dataclass(frozen=True, slots=True)
class Turned:
    """A setting of the dial, and what is kept there."""

    threshold: float
    kept: float


def turn(
    spec: NammSpec, genome: npt.NDArray[np.float32], wish: Wish, model: PreTrainedModel | None, prompts: Prompts
) -> tuple[NammSpec, dict[str, float]]:
    """The spec with its dial turned, and a record of how.

    Raises:
        DialError: model or prompts are missing or too short, or no threshold keeps so much.
    """
    record = {name: float(value) for name, value in dataclasses.asdict(wish).items() if value is not None}
    if wish.cap is not None:
        spec = replace(spec, settings=replace(spec.settings, cap=int(wish.cap)))
    wanted = wish.kept_ratio or wish.bytes_per_token
    if wanted is None:
        return spec, record
    if model is None or not len(prompts):
        raise DialError("what a threshold keeps must be measured: give model=… and prompts=[token ids, …]")
    batches = _as_batches(prompts, input_device(model), spec.settings.update_every)
    measure = kept_share if wish.kept_ratio is not None else kept_bytes

    def kept_at(threshold: float) -> float:
        return measure(model, build_memory(replace(spec, threshold=threshold), genome[None]), batches)

    found = find_threshold(kept_at, wanted)
    return replace(spec, threshold=found.threshold), record | {"reached": found.kept}


def find_threshold(kept_at: Callable[[float], float], wanted: float) -> Turned:
    """The threshold at which ``kept_at`` gives what is ``wanted``, or the nearest that its steps allow.

    Args:
        kept_at: what is kept at a threshold; falls with it, in steps. Called some ten times, first at 0.
        wanted: in the same unit.

    Raises:
        DialError: so little, or so much, is kept at no threshold.
    """
    tried = [_at(kept_at, 0.0)]
    is_down = tried[0].kept > wanted
    inner, outer = tried[0], tried[0]
    step = 1.0
    while (outer.kept > wanted) == is_down and not _is_near(outer, wanted):
        if step > FARTHEST:
            raise DialError(
                f"no threshold keeps {wanted:.4g}: {'least' if is_down else 'most'} is {outer.kept:.4g}, because an "
                "update leaves the newest token of every head and spares what was read since: ask for "
                f"{'more, or take longer prompts' if is_down else 'less, or a higher cap'}"
            )
        inner, outer = outer, _at(kept_at, step if is_down else -step)
        tried.append(outer)
        step *= 2.0
    while not _is_near(tried[-1], wanted):
        middle = _single((inner.threshold + outer.threshold) / 2)
        if middle in (inner.threshold, outer.threshold):
            break
        tried.append(_at(kept_at, middle))
        if (tried[-1].kept > wanted) == is_down:
            inner = tried[-1]
        else:
            outer = tried[-1]
    return min(tried, key=lambda turned: (abs(turned.kept - wanted), abs(turned.threshold)))


def kept_share(model: PreTrainedModel, memory: Memory, prompts: Sequence[Tensor]) -> float:
    """Tokens held after a prompt / tokens read, mean over layers, KV heads and prompts."""
    return _mean_over_rows(model, memory, prompts, lambda held, _bytes: held)


def kept_bytes(model: PreTrainedModel, memory: Memory, prompts: Sequence[Tensor]) -> float:
    """Bytes of keys and values held after a prompt / tokens read, mean over prompts."""
    return _mean_over_rows(model, memory, prompts, lambda _held, size: size)


def _as_batches(prompts: Prompts, device: torch.device, update_every: int) -> list[Tensor]:
    """Prompts as ``[rows, n]``.

    Raises:
        DialError: one of them is no token ids, or none is long enough for an update.
    """
    batches = [_as_batch(prompt, index).to(device) for index, prompt in enumerate(prompts)]
    longest = max((batch.shape[-1] for batch in batches), default=0)
    if longest < update_every:
        raise DialError(
            f"the longest prompt has {longest} tokens, but this memory forgets nothing before it has read "
            f"{update_every}: calibrate on a few prompts as long as those that it is for"
        )
    return batches


def _as_batch(prompt: Sequence[int] | Tensor, index: int) -> Tensor:
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):  # of texts, of nothing at all, of rows of unequal length
        ids = torch.empty(0)
    if ids.ndim not in (1, 2) or not ids.numel() or ids.dtype not in (torch.int64, torch.int32):
        raise DialError(
            f"prompts[{index}] must be the token ids of a text, or those of several as long as [rows, n]: got "
            f"{' '.join(str(prompt).split())[:40]}; give prompts=[tokenizer(text).input_ids, …]"
        )
    return ids[None] if ids.ndim == 1 else ids


@torch.inference_mode()
def _mean_over_rows(
    model: PreTrainedModel, memory: Memory, prompts: Sequence[Tensor], figure: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Mean over all prompts of ``figure(tokens held, bytes held)``, both by row and per token read."""
    figures = []
    for ids in prompts:
        with memory_attached(model, memory) as cache:
            for chunk in ids.split(CHUNK_TOKENS, dim=1):
                model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
        assert cache.meter.now is not None
        held = cache.held_tokens().double().mean(dim=(1, 2))
        figures.append(figure(held, cache.meter.now.double()) / ids.shape[1])
    return float(torch.cat(figures).mean())


def _at(kept_at: Callable[[float], float], threshold: float) -> Turned:
    return Turned(threshold, kept_at(threshold))


def _is_near(turned: Turned, wanted: float) -> bool:
    return math.isclose(turned.kept, wanted, rel_tol=TOLERANCE)


def _single(threshold: float) -> float:
    """As float32 has it, like the importances, so that the threshold saved is the threshold compared with."""
    return float(np.float32(threshold))

"""Settings of a worker: which frozen model it hosts, and how it is prompted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

SPREAD = ("auto", "balanced")
"""Values of ``model.device`` that spread one model over all devices of a worker."""

Truncation = Literal["refuse", "middle", "middle_exact"]

_DIGEST = re.compile(r"[0-9a-fA-F]{8,64}")
_SIZE = re.compile(r"[1-9]\d*(KiB|MiB|GiB|KB|MB|GB)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which frozen language model to load, and how."""

    path_or_id: str
    """Folder of a model in Hugging Face format, or a hub id. ``small-llama`` names the model in this repository."""
    revision: str | None = None
    """Commit of a hub model; None is refused for hub ids, because a run must be repeatable."""
    sha256: str | None = None
    """Expected SHA-256 of the weights in a folder, or its first digits (8 at least), as the cards of models trained
    here tell it; a worker that finds others refuses to start. None takes any."""
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` (or ``balanced``, the same) spreads the layers evenly over all
    accelerators that the worker sees, and needs the extra ``large``."""
    max_memory: dict[str, str] | None = None
    """With ``auto``: most bytes of weights by device, as in ``{0: 60GiB, 1: 60GiB, cpu: 200GiB}``; what finds no room
    is read from the model's files at every step. None fills the accelerators as they are, and refuses to offload."""
    quantization: str | None = None
    """``int8`` or ``int4``: weights of the linear layers in 8 or 4 bits, by the extra ``quantized``; None leaves them
    alone. Computing, and the cache, are in ``dtype``."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    rope_ntk_factor: float | None = None
    """Stretch the rotary base for contexts this many times as long (fixed NTK rescale); None leaves it alone."""
    rope_ntk_alpha: float = 2.0
    """Alpha of the NTK rescale; the published Llama-3 runs use 2."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"model.dtype must be float32, bfloat16 or float16: got {self.dtype!r}")
        if self.quantization not in (None, "int8", "int4"):
            raise ValueError(f"model.quantization must be int8, int4 or null: got {self.quantization!r}")
        if self.sha256 is not None and not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"model.sha256 must be 8 to 64 hexadecimal digits or null: got {self.sha256!r}")
        self._check_max_memory()
        if self.rope_ntk_factor is not None and self.rope_ntk_factor <= 1:
            raise ValueError(f"model.rope_ntk_factor must be above 1 or null: got {self.rope_ntk_factor}")

    @property
    def is_spread(self) -> bool:
        """Whether the layers may lie on several devices."""
        return self.device in SPREAD

    def _check_max_memory(self) -> None:
        if self.max_memory is None:
            return
        if not self.is_spread:
            raise ValueError(f"model.max_memory needs model.device auto, which spreads the model: got {self.device!r}")
        if not self.max_memory:
            raise ValueError("model.max_memory must name devices, or be null: got no device")
        for device, size in self.max_memory.items():
            if not (device.isdecimal() or device == "cpu") or not _SIZE.fullmatch(size):
                raise ValueError(
                    "model.max_memory must give accelerators by number, and cpu, sizes such as 60GiB: got "
                    f"{device}: {size!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """How prompts become token ids; decides scores, so it is part of what identifies them."""

    max_tokens: int | None = None
    """Room for a prompt and what follows it; None for the longest text that the model was made for."""
    truncation: Truncation = "refuse"
    """When a prompt is too long. ``refuse``: an error before the run. ``middle``: its first and last halves are decoded
    and encoded again, as LongBench does. ``middle_exact``: the same tokens as they are, and just as many as fit."""
    bos: bool | None = None
    """Whether a prompt begins with the beginning-of-sequence token; None leaves that to the tokenizer."""
    chat_template: bool = False
    """Whether requests are put into the model's chat template; text to be continued never is."""

    def __post_init__(self) -> None:
        if self.truncation not in get_args(Truncation):
            allowed = ", ".join(get_args(Truncation))
            raise ValueError(f"prompts.truncation must be one of {allowed}: got {self.truncation!r}")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"prompts.max_tokens must be at least 2 or null: got {self.max_tokens}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartSettings:
    """How the first genome is fitted."""

    examples: int = 8
    """Training examples of each task that are read."""
    steps: int = 200
    """Steps of the fit, each on one update of one example."""
    kept_ratio: float = 0.25
    """Share of all cached tokens that count as worth keeping."""

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"search.warm_start.examples must be at least 1: got {self.examples}")
        if self.steps < 1:
            raise ValueError(f"search.warm_start.steps must be at least 1: got {self.steps}")
        if not 0.0 < self.kept_ratio < 1.0:
            raise ValueError(f"search.warm_start.kept_ratio must lie between 0 and 1: got {self.kept_ratio}")

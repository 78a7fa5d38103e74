"""Settings of a worker: which frozen model it hosts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which frozen language model to load, and how."""

    path_or_id: str
    """Folder of a model in Hugging Face format, or a hub id. ``small-llama`` names the model in this repository."""
    revision: str | None = None
    """Commit of a hub model; None is refused for hub ids, because a run must be repeatable."""
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, …"""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    rope_ntk_factor: float | None = None
    """Stretch the rotary base for contexts this many times as long (fixed NTK rescale); None leaves it alone."""
    rope_ntk_alpha: float = 2.0
    """Alpha of the NTK rescale; the published Llama-3 runs use 2."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"model.dtype must be float32, bfloat16 or float16: got {self.dtype!r}")
        if self.rope_ntk_factor is not None and self.rope_ntk_factor <= 1:
            raise ValueError(f"model.rope_ntk_factor must be above 1 or null: got {self.rope_ntk_factor}")

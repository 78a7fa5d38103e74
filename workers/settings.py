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

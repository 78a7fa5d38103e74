"""Whether the fused kernels can be had."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Kernels = Literal["fused_attention", "fused_scorer", "fused_selection", "fused_token"]
"""The modules of Triton kernels."""
MOST_LANES = 65_535
"""Rows times heads: the second side of a grid of programs, by CUDA's limit."""


def kernels_for(tensor: Tensor, kind: Kernels) -> ModuleType | None:
    """A module where there is a CUDA device and Triton is installed; None for the portable path.

    None as well where a gradient is wanted, of which kernels know nothing. ``tensor [B, H, …]`` is of the work.
    """
    if torch.is_grad_enabled() or tensor.shape[0] * tensor.shape[1] > MOST_LANES or not can_run(tensor):
        return None
    return _module(kind)


def can_run(tensor: Tensor) -> bool:
    """Whether it is where kernels run."""
    return tensor.is_cuda


@functools.cache
def _module(kind: Kernels) -> ModuleType | None:
    return importlib.import_module(f"workers.memory.{kind}") if importlib.util.find_spec("triton") else None

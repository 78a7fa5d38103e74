"""Whether the fused kernels can be had."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Literal

from torch import Tensor

Kernels = Literal["fused_attention", "fused_scorer", "fused_selection"]
"""The modules of Triton kernels."""


def kernels_for(tensor: Tensor, kind: Kernels) -> ModuleType | None:
    """A module where there is a CUDA device and Triton is installed; None for the portable path."""
    return _module(kind) if can_run(tensor) else None


def can_run(tensor: Tensor) -> bool:
    """Whether it is where kernels run."""
    return tensor.is_cuda


@functools.cache
def _module(kind: Kernels) -> ModuleType | None:
    return importlib.import_module(f"workers.memory.{kind}") if importlib.util.find_spec("triton") else None

"""Whether the fused kernels can be had."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

from torch import Tensor


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """``fused.py`` where there is a CUDA device and Triton is installed; None for the portable path."""
    return _fused() if tensor.is_cuda else None


@functools.cache
def _fused() -> ModuleType | None:
    return importlib.import_module("workers.memory.fused") if importlib.util.find_spec("triton") else None

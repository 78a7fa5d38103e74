"""What ``torch.compile`` must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


def outside_graphs(function: AnyCallable) -> AnyCallable:
    """Run as plain Python in a compiled model: what a memory holds changes its shape with every token and eviction.

    The graph breaks here, before and after the attention of each layer; all else of the model stays compiled.
    """
    plain: AnyCallable = torch.compiler.disable(function)
    return plain

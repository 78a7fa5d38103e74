"""What a call launches on an accelerator, recorded once as a CUDA graph: a replay is a single launch for the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def cuda_graph(call: Callable[[], T]) -> Callable[[], T]:
    """Record what a call launches: the same, on the same tensors, whenever the result is called.

    Raises:
        RuntimeError: it asks the device for something, which cannot be recorded.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            result = call()
        except BaseException:
            _abandon(graph)
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def again() -> T:
        graph.replay()
        return result

    return again


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a recording that failed, which says once more that it did."""
    try:
        graph.capture_end()
    except RuntimeError:
        return

"""A CUDA graph on a processor: operations are noted with their very tensors, and done again without any Python.

What the host knows at a replay, such as how many tokens there are by then, has no way into it, as on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
Operation = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]
"""A function, its arguments, and the tensors that its results go to."""
ASKING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}
"""What an accelerator would have to be waited for."""


def emulated_graph(call: Callable[[], T]) -> Callable[[], T]:
    """In the place of ``recording.cuda_graph``; but the call is also made when it is recorded."""
    recorder = _Recorder()
    with recorder:
        result = call()

    def again() -> T:
        for function, arguments, named, places in recorder.operations:
            for place, made in zip(places, _tensors(function(*arguments, **named)), strict=False):
                if place.data_ptr() != made.data_ptr():
                    place.copy_(made)
        return result

    return again


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function in ASKING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        made = function(*arguments, **named)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((arguments, named))}
        places = [tensor for tensor in _tensors(made) if tensor.untyped_storage().data_ptr() not in given]
        if places or function._schema.is_mutable:  # all else is a view
            self.operations.append((function, arguments, named, places))
        return made


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

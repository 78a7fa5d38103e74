"""Where time goes adds up, and what was wrapped to measure it is as it was."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.autograd import DeviceType

from tests.benchmarks.contenders import SMALL, capped, prompt_ids, read_under
from tests.benchmarks.parts import LAUNCH, OWN, PARTS, by_part, measured_parts

CPU, CUDA = DeviceType.CPU, DeviceType.CUDA


def event(name: str, device: DeviceType, start: float, end: float, correlation: int = 0) -> Any:
    """As torch's profiler has them; microseconds."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, device_type=device, time_range=span, id=correlation)


def test_what_a_device_did_counts_for_the_innermost_part_that_launched_it() -> None:
    events = [
        event("part storage", CUDA, 0, 900, 1),  # the whole of a part's work on the device, in the profiler's words
        event("copy", CUDA, 100, 130, 11),
        event("kernel", CUDA, 130, 170, 12),
        event("product", CUDA, 200, 300, 13),
        event("part storage", CPU, 0, 50, 1),
        event("part attention", CPU, 20, 30, 2),
        event("aten::copy_", CPU, 5, 9, 11),
        event("cudaMemcpyAsync", CPU, 6, 8, 11),
        event("cuLaunchKernelEx", CPU, 22, 24, 12),
        event("cudaLaunchKernel", CPU, 60, 62, 13),
        event("cudaStreamSynchronize", CPU, 70, 90, 14),
    ]
    found = list(by_part(cast(Any, events)))
    assert [part for part, _ in found] == ["storage", "attention", "model"]
    assert [seconds for _, seconds in found] == pytest.approx([30e-6, 40e-6, 100e-6])


def test_calls_of_operators_are_no_launches() -> None:
    assert LAUNCH.match("cuLaunchKernel")
    assert LAUNCH.match("cudaGraphLaunch")
    assert not LAUNCH.match("aten::cumsum")
    assert not LAUNCH.match("cumsum")


def read(device: torch.device) -> dict[str, float]:
    """The parts of a prompt of two updates."""
    torch.manual_seed(0)
    model = SMALL.model(device, torch.float32)
    memory, ids = capped("even", 300, 1, model), prompt_ids(SMALL, 1, 1024, device)
    read_under(model, "", memory, ids, 0)
    with measured_parts(device) as seconds:
        read_under(model, "", memory, ids, 0)
    return seconds


def test_parts_add_up_and_leave_no_trace() -> None:
    before = {(owner, name): owner.__dict__[name] for wrapped in PARTS.values() for owner, name in wrapped}
    started = time.process_time()
    seconds = read(torch.device("cpu"))
    assert 0 < sum(seconds.values()) < time.process_time() - started
    assert all(seconds[part] > 0 for part in (*OWN, "attention", "model"))
    assert all(owner.__dict__[name] is function for (owner, name), function in before.items())


@pytest.mark.gpu
def test_parts_of_a_device() -> None:
    seconds = read(torch.device("cuda"))
    assert all(seconds[part] > 0 for part in (*OWN, "attention", "model"))
    assert sum(seconds.values()) < 1.0

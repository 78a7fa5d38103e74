"""Where the time of a model under a memory goes: seconds by part, which add up to the whole.

A part's functions are wrapped while it is measured; what a wrapped function spends in another one counts for that.
Everything else is the model. On a CPU, seconds are of the process. On an accelerator they are of the device at work: a
profiler tells what it did and when that was launched; the host, and a device that waits for it, do not count.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from workers.memory import ahead, attention, cpu_attention, folded_scorer, namm, watching
from workers.memory.features import SpectralSums
from workers.memory.meter import Meter
from workers.memory.open_slots import OpenPacked, OpenSlots
from workers.memory.packed import PackedSlots
from workers.memory.slots import Slots

Wrapped = tuple[Any, str]
PARTS: dict[str, list[Wrapped]] = {
    "attention": [
        (watching, "attend"),
        (watching, "attend_packed"),
        (watching, "attend_token"),
        (watching, "attend_unwatched"),
        (OpenPacked, "attend"),
        (OpenSlots, "attend"),
        (cpu_attention, "attend_and_observe"),  # what it sets up for the spectrum included
    ],
    "features": [
        (cpu_attention._Tile, "observe"),
        *((cpu_attention._Work, name) for name in ("begin", "end")),
        (SpectralSums, "__init__"),
        (SpectralSums, "take_in"),
        (namm.Namm, "features"),
        (watching, "told"),
        (watching, "told_packed"),
    ],
    "scorer": [(namm, "importances"), (folded_scorer, "importances")],
    "selection": [(namm, "select_wanted")],
    "storage": [
        *((Slots, name) for name in ("append", "select", "with_trace")),
        *((PackedSlots, name) for name in ("append", "at_work", "in_view", "with_recent")),
        (attention, "at_rest"),
        *((ahead, name) for name in ("_lay_out", "_account", "_settled")),
        *((Meter, name) for name in ("appended", "evicted")),
    ],
}
if importlib.util.find_spec("triton"):
    from workers.memory import fused_attention, fused_scorer, fused_selection

    PARTS["attention"].append((fused_attention, "_attended"))
    PARTS["features"].append((fused_attention, "_observed"))
    PARTS["scorer"].append((fused_scorer, "importances"))  # with the other features
    PARTS["storage"] += [(fused_selection, "moved"), (fused_selection, "own_trace")]
MODEL = "model"
OWN = ("features", "scorer", "selection", "storage")
"""The memory's own work."""
RANGE = "part "
"""Begins the name of what a profiler notes of a part."""
LAUNCH = re.compile(r"cu(da)?[A-Z]")
"""Begins the name of a call of CUDA's."""


@contextmanager
def measured_parts(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds by part, filled when the block ends."""
    seconds = dict.fromkeys((*PARTS, MODEL), 0.0)
    recorded_lanes, ahead.RECORDED_LANES = ahead.RECORDED_LANES, 0  # a recording cannot be looked into
    try:
        with (_of_the_device if device.type == "cuda" else _of_the_process)(seconds):
            yield seconds
    finally:
        ahead.RECORDED_LANES = recorded_lanes


@contextmanager
def _of_the_process(seconds: dict[str, float]) -> Iterator[None]:
    running = [MODEL]
    started = time.process_time()

    def count() -> None:
        nonlocal started
        now = time.process_time()
        seconds[running[-1]] += now - started
        started = now

    @contextmanager
    def counted(part: str) -> Iterator[None]:
        count()
        running.append(part)
        try:
            yield
        finally:
            count()
            running.pop()

    with _wrapped(counted):
        yield
    count()


@contextmanager
def _of_the_device(seconds: dict[str, float]) -> Iterator[None]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
        with _wrapped(lambda part: record_function(RANGE + part)):
            yield
        torch.cuda.synchronize()
    for part, spent in by_part(recorded.events() or ()):
        seconds[part] += spent


def by_part(events: Iterable[FunctionEvent]) -> Iterator[tuple[str, float]]:
    """Of everything that a device did: the part that launched it, and its seconds."""
    of_host, of_device = [], {}
    for event in events:
        if event.device_type == DeviceType.CPU:
            of_host.append(event)
        elif not event.name.startswith(RANGE):  # from a part's first work to its last
            of_device[event.id] = event.time_range.elapsed_us() / 1e6
    running = [(MODEL, float("inf"))]
    for event in sorted(of_host, key=lambda event: event.time_range.start):
        start, end = event.time_range.start, event.time_range.end
        while running[-1][1] <= start:
            running.pop()
        if event.name.startswith(RANGE):
            running.append((event.name.removeprefix(RANGE), end))
        elif event.id in of_device and LAUNCH.match(event.name):
            yield running[-1][0], of_device[event.id]


@contextmanager
def _wrapped(counted: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Every part's functions run within ``counted(part)``."""

    def within(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            with counted(part):
                return function(*arguments, **named)

        return run

    originals = [(owner, name, owner.__dict__[name], part) for part, names in PARTS.items() for owner, name in names]
    for owner, name, function, part in originals:
        setattr(owner, name, within(function, part))
    try:
        yield
    finally:
        for owner, name, function, _ in originals:
            setattr(owner, name, function)

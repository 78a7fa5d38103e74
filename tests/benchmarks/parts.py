"""Where the time of a model under a memory goes: seconds by part, which add up to the whole.

A part's functions are wrapped while it is measured; what a wrapped function spends in another one counts for that.
Everything else is the model. On an accelerator every part waits for what was launched before it and for its own, so
that times are of the device; the whole then takes longer than it does undisturbed.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

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

    PARTS["attention"].append((fused_attention, "attend_and_observe"))  # spectrum included: it cannot be told apart
    PARTS["scorer"].append((fused_scorer, "importances"))  # with the other features
    PARTS["storage"] += [(fused_selection, "moved"), (fused_selection, "own_trace")]
MODEL = "model"
OWN = ("features", "scorer", "selection", "storage")
"""The memory's own work."""


@contextmanager
def measured_parts(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds by part, filled when the block ends; CPU seconds on a CPU, else those of the clock."""
    seconds = dict.fromkeys((*PARTS, MODEL), 0.0)
    running = [MODEL]

    def clock() -> float:
        if device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    started = clock()

    def switch(part: str | None) -> None:
        nonlocal started
        now = clock()
        seconds[running[-1]] += now - started
        started = now
        if part is None:
            running.pop()
        else:
            running.append(part)

    def wrapped(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            switch(part)
            try:
                return function(*arguments, **named)
            finally:
                switch(None)

        return timed

    recorded_lanes, ahead.RECORDED_LANES = ahead.RECORDED_LANES, 0  # a recording cannot be looked into
    originals = [(owner, name, owner.__dict__[name], part) for part, names in PARTS.items() for owner, name in names]
    for owner, name, function, part in originals:
        setattr(owner, name, wrapped(function, part))
    try:
        yield seconds
    finally:
        for owner, name, function, _ in originals:
            setattr(owner, name, function)
        ahead.RECORDED_LANES = recorded_lanes
        seconds[MODEL] += clock() - started

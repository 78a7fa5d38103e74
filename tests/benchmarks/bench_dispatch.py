"""How near dispatch comes to the best possible schedule: ``python -m tests.benchmarks.bench_dispatch``.

Simulated workers, in virtual time: units take what is drawn for them, the driver takes what ``Dispatch`` really took on
this machine for each event, plus what a call through Ray costs it (measured: 0.6 ms), one event after the other.

- Overhead: against greedy list scheduling of the same units in the same order by a driver that takes no time.
- Makespan over the ideal (the larger of work / workers and the longest unit), with heavy-tailed times: those of an
  example are log-normal (sigma 1), the same in every generation but for 10 % noise, as with documents of very different
  lengths. Static: every worker is given its share of the units beforehand.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config import UnitSettings
from orchestrator.dispatch import Dispatch, Finished, Score, UnitScored, UnitSlow, WorkerReady
from orchestrator.pace import Pace
from orchestrator.units import plan_units
from workers.memory.specs import RivalSpec
from workers.unit import Unit

RAY_CALL_SECONDS = 0.0006
LIMITS = {"overhead at 64 x 0.3 s": 0.02, "overhead at 256 x 1 s": 0.01, "makespan over ideal": 1.2}

Durations = Callable[[Unit], float]


def plan(generation: int, num_units: int, candidates: int = 16) -> list[Unit]:
    """Units of one example each, under one block of candidates."""
    return plan_units(
        generation=generation,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((candidates, 1), np.float32),
        examples={"qa": tuple(range(num_units))},
        split="train",
        settings=UnitSettings(candidates_per_unit=candidates, examples_per_unit=1),
    )


@dataclass
class Round:
    """One generation in virtual time."""

    makespan: float
    driver_seconds: float
    copies: int


def simulate(units: Sequence[Unit], seconds_of: Durations, num_workers: int, pace: Pace, call_seconds: float) -> Round:
    """Let ``Dispatch`` drive workers that take ``seconds_of`` each unit; the driver handles one event at a time."""
    by_key = {unit.key: unit for unit in units}
    dispatch = Dispatch([unit.key for unit in pace.longest_first(units)], num_workers=num_workers, attempts_per_unit=2)
    queues: dict[int, list[tuple[str, float]]] = {worker: [] for worker in range(num_workers)}
    events: list[tuple[float, int, object]] = [(0.0, worker, WorkerReady(worker)) for worker in queues]
    heapq.heapify(events)
    count, driver_free, spent, copies, seen = len(events), 0.0, 0.0, 0, set()

    def begin(worker: int, now: float) -> None:
        nonlocal count
        key, sent = queues[worker][0]
        start = max(now, sent)
        heapq.heappush(events, (start + seconds_of(by_key[key]), count, UnitScored(worker, key)))
        count += 1
        expected = pace.expected(by_key[key])
        if expected is not None and pace.is_slow(by_key[key], seconds_of(by_key[key])):
            heapq.heappush(events, (start + 3 * expected, count, UnitSlow(key)))
            count += 1

    while True:
        now, _, event = heapq.heappop(events)
        if isinstance(event, UnitScored):
            queues[event.worker].pop(0)
            if queues[event.worker]:
                begin(event.worker, now)
            pace.learn(by_key[event.key], seconds_of(by_key[event.key]))
        began = time.perf_counter()
        commands = dispatch.handle(event)  # type: ignore[arg-type]
        took = time.perf_counter() - began + call_seconds
        spent += took
        driver_free = max(driver_free, now) + took
        for command in commands:
            if isinstance(command, Finished):
                return Round(driver_free, spent, copies)
            assert isinstance(command, Score)
            copies += command.key in seen
            seen.add(command.key)
            queues[command.worker].append((command.key, driver_free))
            if len(queues[command.worker]) == 1:
                begin(command.worker, driver_free)


def greedy(durations: Sequence[float], num_workers: int) -> float:
    """Makespan of list scheduling in this order, by a driver that takes no time."""
    free = [0.0] * num_workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def overhead(num_workers: int, mean_seconds: float, units_per_worker: int = 12) -> float:
    """Share of time lost to the driver, median of five rounds with times of +-20 %."""
    ratios = []
    for seed in range(5):
        units = plan(0, num_workers * units_per_worker)
        drawn = np.random.default_rng(seed).uniform(0.8, 1.2, len(units)) * mean_seconds
        seconds = dict(zip((unit.key for unit in units), drawn.tolist(), strict=True))
        made = simulate(units, lambda unit, of=seconds: of[unit.key], num_workers, Pace(), RAY_CALL_SECONDS)
        ratios.append(made.makespan / greedy(drawn.tolist(), num_workers) - 1)
    return statistics.median(ratios)


def heavy_tail(num_workers: int = 64, num_units: int = 384, generations: int = 6) -> dict[str, float]:
    """Makespan over the ideal by way of scheduling, medians over generations (the first, unknown one apart)."""
    rng = np.random.default_rng(0)
    typical = rng.lognormal(0.0, 1.0, num_units)
    pace, found = Pace(), {"static shares": [], "in the plan's order": [], "longest first": []}
    first = 0.0
    for generation in range(generations):
        units = plan(generation, num_units)
        drawn = typical * rng.uniform(0.9, 1.1, num_units)
        seconds = dict(zip((unit.key for unit in units), drawn.tolist(), strict=True))
        ideal = max(drawn.sum() / num_workers, drawn.max())
        made = simulate(units, lambda unit, of=seconds: of[unit.key], num_workers, pace, RAY_CALL_SECONDS)
        if generation == 0:
            first = made.makespan / ideal
            continue
        shares = np.array_split(rng.permutation(drawn), num_workers)
        found["static shares"].append(max(share.sum() for share in shares) / ideal)
        found["in the plan's order"].append(greedy(drawn.tolist(), num_workers) / ideal)
        found["longest first"].append(made.makespan / ideal)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "longest first, first generation": first}


def main() -> int:
    """Print the figures; exit code 1 when one is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    tail = heavy_tail()
    figures = {
        "overhead at 64 x 0.3 s": overhead(64, 0.3),
        "overhead at 256 x 1 s": overhead(256, 1.0),
        "makespan over ideal": tail["longest first"],
    }
    if arguments.json:
        print(json.dumps({**figures, "heavy tail": tail}))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:8.3f}   (limit {LIMITS[name]}, simulated workers)")
        for name, value in tail.items():
            print(f"  {name:32} {value:.2f}")
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    raise SystemExit(main())

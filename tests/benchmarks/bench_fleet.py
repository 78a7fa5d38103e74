"""Real Ray workers that sleep: ``python -m tests.benchmarks.bench_fleet``.

- Overhead: 8 workers, 320 units of 50 ms, against greedy list scheduling by a driver that takes no time.
- Loss: the same units with one of the eight killed (SIGKILL) a quarter into the round. A new worker takes its place;
  what is lost is what it had in flight, and at most 1/8 + 3 % of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time

import numpy as np

from orchestrator.config import ClusterSettings, UnitSettings
from orchestrator.fleet import RayFleet
from orchestrator.units import plan_units
from tests.orchestrator import recipes, scored
from tests.orchestrator.recipes import FakeRecipe
from workers.memory.specs import RivalSpec
from workers.unit import Unit

WORKERS, UNITS, SECONDS = 8, 320, 0.05
LIMITS = {"overhead": 0.05, "cost of a killed worker": 1 / 8 + 0.03}


def plan(generation: int, count: int) -> list[Unit]:
    """Units of one example each."""
    return plan_units(
        generation=generation,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((4, 4172), np.float32),
        examples={"qa": tuple(range(count))},
        split="train",
        settings=UnitSettings(candidates_per_unit=4, examples_per_unit=1),
    )


def seconds(fleet: RayFleet, generation: int, *, kill: bool = False) -> float:
    """How long a round takes, once all workers are loaded."""
    while len(fleet.worker_pids()) < WORKERS:
        list(fleet.score(plan(0, 1)))
    began = time.perf_counter()
    for done, _ in enumerate(fleet.score(plan(generation, UNITS))):
        if kill and done == UNITS // 4:
            os.kill(next(iter(fleet.worker_pids().values())), signal.SIGKILL)
    return time.perf_counter() - began


def main() -> int:
    """Print the figures; exit code 1 when one is beyond its limit."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    for module in (recipes, scored):  # tests are not installed in workers: their classes travel with the recipe
        ray.cloudpickle.register_pickle_by_value(module)
    ideal = UNITS * SECONDS / WORKERS
    with RayFleet(FakeRecipe(seconds=SECONDS), ClusterSettings(workers=WORKERS, cpus_per_worker=0.25)) as fleet:
        plain = [seconds(fleet, generation) for generation in range(arguments.repeats)]
        killed = [seconds(fleet, generation, kill=True) for generation in range(arguments.repeats)]
        retries = fleet.stats().retries
    figures = {
        "overhead": statistics.median(plain) / ideal - 1,
        "cost of a killed worker": statistics.median(killed) / statistics.median(plain) - 1,
        "units done again per death": retries / arguments.repeats,
    }
    if arguments.json:
        print(json.dumps({**figures, "ideal_seconds": ideal, "seconds": plain, "seconds_with_a_death": killed}))
    else:
        print(f"{WORKERS} real workers, {UNITS} units of {SECONDS * 1000:.0f} ms: {ideal:.2f} s at best")
        print(f"rounds: {min(plain):.2f} to {max(plain):.2f} s; with a death {min(killed):.2f} to {max(killed):.2f} s")
        for name, value in figures.items():
            limit = f"(limit {LIMITS[name]:.3f})" if name in LIMITS else ""
            print(f"{name:28} {value:8.3f} {limit}")
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    raise SystemExit(main())

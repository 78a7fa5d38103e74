"""Real Ray workers that sleep: ``python -m tests.benchmarks.bench_fleet``.

- Overhead: 8 workers, 960 units of 50 ms (+-20 %, so that not all end at once), against greedy list scheduling of the
  same units (of what each took in its worker) by a driver that takes no time.
- Loss: the same units with one of the eight killed (SIGKILL) a quarter into the round. A new worker takes its place;
  what is lost is what it had in flight, and at most 1/8 + 3 % of the time. Again against greedy scheduling of what the
  units took, because here the workers share the cores with the one that starts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.config import ClusterSettings, UnitSettings
from orchestrator.fleet import RayFleet
from orchestrator.units import plan_units
from tests.benchmarks.bench_dispatch import greedy
from tests.orchestrator import recipes, scored
from tests.orchestrator.recipes import FakeRecipe, FakeScorer
from workers.memory.specs import RivalSpec
from workers.unit import ScoredUnit, Unit

WORKERS, UNITS, SECONDS = 8, 960, 0.05
LIMITS = {"overhead": 0.05, "cost of a killed worker": 1 / 8 + 0.03}


@dataclass(frozen=True)
class TimedScorer(FakeScorer):
    """Says how long a unit really took."""

    def score(self, unit: Unit) -> ScoredUnit:
        """Sleep, and make up a result."""
        began = time.perf_counter()
        time.sleep(SECONDS * np.random.default_rng(unit.examples).uniform(0.8, 1.2))
        result = super().score(unit)
        return replace(result, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class TimedRecipe(FakeRecipe):
    """Builds a ``TimedScorer``."""

    def build(self) -> TimedScorer:
        """As ``WorkerRecipe.build``."""
        return TimedScorer(self)


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


def seconds(fleet: RayFleet, generation: int, *, kill: bool = False) -> tuple[float, float]:
    """How long a round takes, once all workers are loaded, and how long greedy list scheduling would take."""
    while len(fleet.worker_pids()) < WORKERS:
        list(fleet.score(plan(0, 1)))
    took: list[float] = []
    units = plan(generation, UNITS)
    began = time.perf_counter()
    for result in fleet.score(units):
        took.append(result.seconds)
        if kill and len(took) == UNITS // 4:
            os.kill(next(iter(fleet.worker_pids().values())), signal.SIGKILL)
    return time.perf_counter() - began, greedy(took, WORKERS)


def main() -> int:
    """Print the figures; exit code 1 when one is beyond its limit."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    for module in (recipes, scored):  # tests are not installed in workers: their classes travel with the recipe
        ray.cloudpickle.register_pickle_by_value(module)
    with RayFleet(TimedRecipe(), ClusterSettings(workers=WORKERS, cpus_per_worker=0.25)) as fleet:
        plain = [seconds(fleet, generation) for generation in range(arguments.repeats)]
        killed = [seconds(fleet, generation, kill=True) for generation in range(arguments.repeats)]
        retries = fleet.stats().retries
    median = statistics.median(made / best for made, best in plain)
    figures = {
        "overhead": median - 1,
        "cost of a killed worker": statistics.median(made / best for made, best in killed) / median - 1,
        "units done again per death": retries / arguments.repeats,
    }
    if arguments.json:
        print(json.dumps({**figures, "seconds_and_greedy": plain, "with_a_death": killed}))
    else:
        print(f"{WORKERS} real workers, {UNITS} units of {SECONDS * 1000:.0f} ms: seconds (greedy scheduling)")
        print("  without loss", ", ".join(f"{made:.2f} ({best:.2f})" for made, best in plain))
        print("  with a death", ", ".join(f"{made:.2f} ({best:.2f})" for made, best in killed))
        for name, value in figures.items():
            limit = f"(limit {LIMITS[name]:.3f})" if name in LIMITS else ""
            print(f"{name:28} {value:8.3f} {limit}")
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    raise SystemExit(main())

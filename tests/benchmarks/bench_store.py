"""Seconds and MB of one generation in the store, at the scale of the paper.

32 candidates x 3 tasks x 64 examples x 32 layers x 8 KV heads, in units of 32 candidates x 1 example. The numbers are
random, so files compress worse than real ones. Run from the repository root::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_store
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orchestrator.fitness import GenerationFitness
from orchestrator.schemas import CANDIDATES as CANDIDATES_SCHEMA
from orchestrator.store import Store
from workers.unit import ScoredUnit

CANDIDATES, TASKS, EXAMPLES, LAYERS, KV_HEADS, GENOME = (
    32,
    ("qasper", "passage_retrieval", "narrativeqa"),
    64,
    32,
    8,
    4172,
)


def scored_unit(task: str, example: int) -> ScoredUnit:
    """A unit of random numbers of plausible size."""
    rng = np.random.default_rng([TASKS.index(task), example])
    seen = int(rng.integers(4_000, 32_000))
    return ScoredUnit(
        key=f"g000000_namm_{task}_train_e{example:06d}-{example:06d}x1_c0000-{CANDIDATES - 1:04d}",
        generation=0,
        memory_name="namm",
        task=task,
        split="train",
        candidate=np.arange(CANDIDATES, dtype=np.int32),
        example=np.full(CANDIDATES, example, np.int32),
        exact=rng.integers(0, 5, CANDIDATES) / 4,
        graded=rng.random(CANDIDATES),
        seen_tokens=np.full(CANDIDATES, seen, np.int32),
        held_tokens=rng.integers(0, seen, (CANDIDATES, LAYERS, KV_HEADS), dtype=np.int32),
        mean_bytes=rng.random(CANDIDATES) * 1e9,
        peak_bytes=rng.integers(0, 2**31, CANDIDATES),
        state_bytes=rng.integers(0, 2**20, CANDIDATES),
        seconds=float(rng.random() * 60),
    )


def timed(what: str, action: Callable[[], object]) -> None:
    """Run ``action`` and print its wall-clock time, and the CPU time that tells how busy the machine was otherwise."""
    start, cpu_start = time.perf_counter(), time.process_time()
    action()
    print(f"{what:<42} {time.perf_counter() - start:7.3f} s ({time.process_time() - cpu_start:.3f} s of CPU)")


def megabytes(folder: Path) -> float:
    """Size of the files under ``folder``, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 1e6


def main() -> None:
    """Put, compact and read one generation."""
    units = [scored_unit(task, example) for task in TASKS for example in range(EXAMPLES)]
    rng = np.random.default_rng(0)
    genomes = rng.standard_normal((CANDIDATES, GENOME)).astype(np.float32)
    fitness = GenerationFitness(**{name: rng.random(CANDIDATES) for name in CANDIDATES_SCHEMA.names[2:]}, by_task={})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder)
        timed(f"put {len(units)} units", lambda: [store.put_unit(unit) for unit in units])
        print(f"{'unit files':<42} {megabytes(folder / 'units'):7.2f} MB")
        timed("genomes and candidates (before the journal)", lambda: store.commit_generation(0, genomes, fitness))
        timed("compact units (beside the next generation)", lambda: store.commit_units(0))
        for table in sorted((folder / "tables").iterdir()):
            rows = Store(folder).table(table.name).num_rows
            print(f"{f'  {table.name}, {rows} rows':<42} {megabytes(table):7.2f} MB")
        timed("read evictions", lambda: Store(folder).table("evictions"))
        timed("read all units back", lambda: Store(folder).units(0))


if __name__ == "__main__":
    main()

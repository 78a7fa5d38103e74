"""Seconds of a question over 200 generations at the scale of the paper: 1.6 million eviction rows each, 315 in all.

Eight generations are made up as in ``bench_store`` and copied until there are 200; their numbers are random, so files
compress worse than real ones. Needs 0.9 GB of disk. Run from the repository root::

    python -m tests.benchmarks.bench_query
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

from orchestrator.analysis.queries import database
from orchestrator.config import config_hash, config_to_dict, load_config
from orchestrator.journal import Journal
from orchestrator.store import Store
from tests.benchmarks.bench_store import EXAMPLES, TASKS, scored_unit

GENERATIONS, DISTINCT = 200, 8
QUESTIONS = {
    "mean by layer": "SELECT layer, avg(held_tokens / seen_tokens) FROM evictions GROUP BY layer ORDER BY layer",
    "mean by generation and layer, by the view": "SELECT generation, layer, kept_ratio FROM kept_by_layer",
}


def fill(folder: Path) -> None:
    """A run of 200 generations, as far as its evictions go."""
    config = load_config("small")
    Journal.open(folder, config_hash(config), config_to_dict(config)).close()
    store = Store(folder)
    for generation in range(DISTINCT):
        for task in TASKS:
            for example in range(EXAMPLES):
                unit = scored_unit(task, generation * EXAMPLES + example)
                key = unit.key.replace("g000000", f"g{generation:06d}")
                store.put_unit(dataclasses.replace(unit, key=key, generation=generation))
        store.commit_units(generation)
    for table in ("evictions", "evaluations", "units"):
        shelf = folder / "tables" / table
        for generation in range(DISTINCT, GENERATIONS):
            made = shelf / f"generation={generation % DISTINCT:06d}.parquet"
            shutil.copy(made, shelf / f"generation={generation:06d}.parquet")


def main() -> None:
    """Fill a folder and ask."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder)
        size = sum(path.stat().st_size for path in (folder / "tables" / "evictions").iterdir()) / 1e6
        with database(folder) as tables:
            rows = tables.ask("SELECT count(*) FROM evictions").rows[0][0]
            print(f"{rows:,} rows of {GENERATIONS} generations, {size:,.0f} MB")
            for what, sql in QUESTIONS.items():
                for _ in range(3):
                    start, cpu_start = time.perf_counter(), time.process_time()
                    found = tables.ask(sql)
                    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
                    # Of all threads together: on a machine with nothing else to do, the time is this by its cores.
                    print(f"{what} ({len(found.rows)} rows): {seconds:.2f} s ({cpu:.2f} s of CPU)")


if __name__ == "__main__":
    main()

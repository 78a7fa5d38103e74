"""Resume of a long run, without the model: ``python -m tests.benchmarks.bench_resume``.

A run of 200 generations at 4,172 dimensions, population 32, is made with invented scores; then everything is timed that
a new driver does before its first unit: read the journal, read the full-cache pass back, ask and tell every generation
again. Limits: 15 s, and 5 MB plus 1 KB a generation on disk besides Parquet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from orchestrator.config import RunConfig, config_hash, config_to_dict, load_config
from orchestrator.evolution import Evolved, Parts, evolve
from orchestrator.journal import Journal
from orchestrator.rounds import InProcessFleet
from orchestrator.search import Search
from orchestrator.store import Store
from tests.orchestrator.recipes import FakeRecipe

SECONDS_LIMIT = 15.0


def config(generations: int) -> RunConfig:
    """The published memory and population, on few examples."""
    words = ("memory.hidden_size=32", "search.population=32", "examples.pool=8", "examples.per_generation=1")
    return load_config("small", (*words, f"search.generations={generations}"))


def drive(folder: Path, settings: RunConfig) -> tuple[float, Evolved]:
    """Carry the run on to its last generation; seconds until it is there."""
    began = time.perf_counter()
    with (
        InProcessFleet(FakeRecipe()) as fleet,
        Journal.open(folder, config_hash(settings), config_to_dict(settings), takeover=True) as journal,
    ):
        search = Search(settings.search, settings.memory.genome_size, settings.seed)
        store = Store(journal.folder)
        evolved = evolve(
            Parts(config=settings, fleet=fleet, store=store, journal=journal, search=search, report=lambda _: None)
        )
    return time.perf_counter() - began, evolved


def main() -> int:
    """Print the figures; exit code 1 when one is beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    settings = config(arguments.generations)
    assert settings.memory.genome_size == 4172
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        made, first = drive(folder, settings)
        resumed, again = drive(folder, settings)
        files = [path for path in folder.rglob("*") if path.is_file()]
        besides = sum(path.stat().st_size for path in files if path.suffix != ".parquet")
        parquet = sum(path.stat().st_size for path in files if path.suffix == ".parquet")
    assert again.population_hash == first.population_hash
    limit = 5e6 + 1000 * arguments.generations
    figures = {"made_seconds": made, "resume_seconds": resumed, "bytes_besides_parquet": besides, "parquet": parquet}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{arguments.generations} generations at 4,172 dimensions, made in {made:.1f} s with invented scores")
        print(f"resume                {resumed:8.2f} s   (limit {SECONDS_LIMIT:.0f} s at 200 generations)")
        print(f"besides Parquet       {besides / 1e6:8.2f} MB  (limit {limit / 1e6:.1f} MB)")
        print(f"Parquet               {parquet / 1e6:8.2f} MB")
    return int(resumed > SECONDS_LIMIT or besides > limit)


if __name__ == "__main__":
    raise SystemExit(main())

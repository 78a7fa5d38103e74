"""Evolve with several seeds and print one table over them: ``python -m tests.benchmarks.seeds --seeds 0 1 2``.

Every run is an ordinary ``namm evolve`` in ``runs/PRESET-seedN``; finished or interrupted ones are taken up.
Cells are the median over the seeds, then the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FIRST = ("full", "namm", "one-head")
CELLS = (("exact", "{:.3f}"), ("graded_ratio", "{:.1%}"), ("kept_ratio", "{:.1%}"))
SIZES = ("mean_bytes", "peak_bytes", "state_bytes")


def run_seed(preset: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The summary of one run."""
    folder = Path("runs") / f"{preset}-seed{seed}"
    command = [sys.executable, "-m", "orchestrator", "evolve", preset, f"seed={seed}", *overrides, "--run", str(folder)]
    subprocess.run(command, check=True)
    return dict(json.loads((folder / "summary.json").read_text()))


def table(summaries: list[dict[str, Any]], *, all_splits: bool = False) -> list[str]:
    """Markdown rows by length and memory; of each rival only its best split of the bytes, unless told otherwise."""
    groups: dict[int, dict[str, list[Row]]] = {}
    for summary in summaries:
        for row in summary["table"]:
            groups.setdefault(row["length"], {}).setdefault(row["name"], []).append(row)
    lines = ["| tokens | memory | exact | graded, of full | kept | mean KB | peak KB | state KB |"]
    lines.append("|---:|---|---|---|---|---:|---:|---:|")
    for length, by_name in sorted(groups.items()):
        names = sorted(by_name, key=lambda name: _place(name, by_name[name]))
        for name in names if all_splits else _best_splits(names):
            cells = [_spread([row[key] for row in by_name[name]], form) for key, form in CELLS]
            sizes = [f"{_median(by_name[name], key) / 1024:,.0f}" for key in SIZES]
            lines.append(f"| {length:,} | {name} | {' | '.join(cells + sizes)} |")
    return lines


def _best_splits(names: list[str]) -> list[str]:
    """The first of each rival's splits (``h2o-uniform``, ``h2o-layer``, ``h2o-head``); the names come best first."""
    firsts: dict[str, str] = {}
    for name in names:
        firsts.setdefault(name if name in FIRST else name.split("-")[0], name)
    return list(firsts.values())


def _place(name: str, rows: list[Row]) -> tuple[int, float]:
    return FIRST.index(name) if name in FIRST else len(FIRST), -_median(rows, "graded")


def _median(rows: list[Row], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _spread(values: list[float], form: str) -> str:
    low, median, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"


def main() -> None:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-long")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--all-splits", action="store_true", help="every rival with each split of the bytes")
    parser.add_argument("overrides", nargs="*", help="settings like search.generations=40")
    arguments = parser.parse_args()
    summaries = [run_seed(arguments.preset, seed, arguments.overrides) for seed in arguments.seeds]
    print(*table(summaries, all_splits=arguments.all_splits), sep="\n")
    for summary in summaries:
        total = sum(summary["seconds"][part] for part in ("start", "evolve", "evaluate"))
        print(f"seed {summary['seed']}: {total:.0f} s, population {summary['population_hash'][:12]}")


if __name__ == "__main__":
    main()

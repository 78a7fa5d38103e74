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

CELLS = (("exact", "{:.3f}"), ("graded", "{:.3f}"), ("graded_ratio", "{:.1%}"), ("kept_ratio", "{:.1%}"))


def run_seed(preset: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The summary of one run."""
    folder = Path("runs") / f"{preset}-seed{seed}"
    command = [sys.executable, "-m", "orchestrator", "evolve", preset, f"seed={seed}", *overrides, "--run", str(folder)]
    subprocess.run(command, check=True)
    return dict(json.loads((folder / "summary.json").read_text()))


def table(summaries: list[dict[str, Any]]) -> list[str]:
    """Markdown rows by length and memory, in the order of the first run's table."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for summary in summaries:
        for row in summary["table"]:
            groups.setdefault((row["length"], row["name"]), []).append(row)
    lines = ["| tokens | memory | exact | graded | of full | kept | mean KB | peak KB |"]
    lines.append("|---:|---|---|---|---|---|---:|---:|")
    for (length, name), rows in sorted(groups.items(), key=lambda item: (item[0][0], _place(item[0][1], item[1]))):
        cells = [_spread([row[key] for row in rows], form) for key, form in CELLS]
        sizes = [f"{statistics.median(row[key] for row in rows) / 1024:,.0f}" for key in ("mean_bytes", "peak_bytes")]
        lines.append(f"| {length:,} | {name} | {' | '.join(cells + sizes)} |")
    return lines


def _place(name: str, rows: list[dict[str, Any]]) -> tuple[int, float]:
    first = ("full", "namm", "one-head")
    return first.index(name) if name in first else len(first), -statistics.median(row["graded"] for row in rows)


def _spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small-long")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="settings like search.generations=40")
    arguments = parser.parse_args()
    summaries = [run_seed(arguments.preset, seed, arguments.overrides) for seed in arguments.seeds]
    print(*table(summaries), sep="\n")
    for summary in summaries:
        total = sum(summary["seconds"][part] for part in ("start", "evolve", "evaluate"))
        print(f"seed {summary['seed']}: {total:.0f} s, population {summary['population_hash'][:12]}")


if __name__ == "__main__":
    main()

"""The dial's curve: ``python -m tests.benchmarks.dial`` (minutes on two cores).

Turns the dial of some evolved memories through many settings, and puts every rival beside each at equal bytes, on
held-out documents for the small Llama. Prints a table, writes JSON and a picture. Cells are medians over the
memories, then the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import numpy as np

from orchestrator import evaluation
from orchestrator.commands.evaluate import score_on
from orchestrator.config import RunConfig, load_config
from orchestrator.evaluation import FULL, MEMORY, EvaluationPlan, Result, ScoreUnits
from orchestrator.fleet import fleet_for
from orchestrator.run import evaluation_plan, worker_recipe
from orchestrator.units import plan_units
from tests.benchmarks.curves import Curve, picture
from workers.memory.errors import DialError, MemoryFileError
from workers.memory.pretrained import PretrainedMemory

DEFAULT_MEMORIES = "runs/small-long-seed*/champion"
HOW_TO_MAKE = "make evolve-long evolves three of them, or name folders of your own"
LOWEST = 0.08
"""Lowest kept ratio: at 256 tokens, what was read since the last update is 6 % already."""
SCAN = 40
"""Thresholds between the lowest and the highest at which the kept ratio is measured, as one block of genomes."""
TRIALS = 8
"""Training examples on which the control's head is chosen, at every setting."""


@dataclass(frozen=True)
class Point:
    """One memory, or one rival beside it, at one setting of the dial: means over the tasks."""

    memory: str
    setting: int
    threshold: float
    name: str
    kept_ratio: float
    mean_bytes: float
    exact: float
    graded_ratio: float


def main() -> int:
    arguments = parse()
    folders = arguments.memories or sorted(glob(DEFAULT_MEMORIES))
    if not folders:
        print(f"dial: error: there is no memory in {DEFAULT_MEMORIES}: {HOW_TO_MAKE}", file=sys.stderr)
        return 2
    try:
        memories = {folder: PretrainedMemory.from_pretrained(folder) for folder in folders}
        started = time.monotonic()
        points = measure(memories, arguments)
    except (DialError, MemoryFileError, ValueError) as error:
        print(f"dial: error: {error}", file=sys.stderr)
        return 2
    print(*table(points), sep="\n")
    print(f"{len(points)} points in {time.monotonic() - started:.0f} s", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps([vars(point) for point in points], indent=1) + "\n")
    arguments.picture.write_text(drawn(points, arguments.length))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memories", nargs="*", help=f"folders of saved memories (default: {DEFAULT_MEMORIES})")
    parser.add_argument("--points", type=int, default=20, help="settings of the dial")
    parser.add_argument("--length", type=int, default=256, help="tokens of a document")
    parser.add_argument("--examples", type=int, default=32, help="held-out examples of each of the two tasks")
    parser.add_argument("--rivals", help="a,b,c (default: all)")
    parser.add_argument("--all-splits", action="store_true", help="every split of the rivals' bytes, and take the best")
    parser.add_argument("--json", type=Path, default=Path("runs/dial.json"))
    parser.add_argument("--picture", type=Path, default=Path("dial.svg"))
    return parser.parse_args()


# Measuring -----------------------------------------------------------------------------------------------------------


def measure(memories: dict[str, PretrainedMemory], arguments: argparse.Namespace) -> list[Point]:
    config = settings(arguments)
    plan = evaluation_plan(config)
    if not arguments.all_splits:
        plan = replace(plan, allocations=("head",))
    ratios = np.geomspace(LOWEST, 1.0, arguments.points).tolist()
    points = []
    with fleet_for(worker_recipe(config), config.cluster) as fleet:
        score = score_on(fleet, lambda _progress: None)
        for name, memory in memories.items():
            for number, threshold in enumerate(thresholds_for(memory, ratios, plan, score)):
                turned = replace(memory, spec=replace(memory.spec, threshold=threshold))
                results = evaluation.evaluate(turned, replace(plan, control_examples=tuple(range(TRIALS))), score)
                points += points_of(results, memory=name, setting=number, threshold=threshold)
                print(f"{name}: setting {number + 1} of {len(ratios)}", file=sys.stderr)
    return points


def settings(arguments: argparse.Namespace) -> RunConfig:
    overrides = [
        f"evaluation.lengths=[{arguments.length}]",
        f"examples.heldout={arguments.examples}",
        *([f"evaluation.rivals=[{arguments.rivals}]"] if arguments.rivals else []),
    ]
    return load_config("small", overrides)


def thresholds_for(
    memory: PretrainedMemory, ratios: Sequence[float], plan: EvaluationPlan, score: ScoreUnits
) -> list[float]:
    """Thresholds that keep about ``ratios`` (ascending) of training examples."""
    ends = [evaluation.turn_dial(memory, ratio, plan, score).spec.threshold for ratio in (ratios[0], ratios[-1])]
    thresholds = np.linspace(*ends, SCAN).astype(np.float32).astype(float)  # what is kept grows along it
    units = plan_units(
        generation=0,
        memory_name=MEMORY,
        memory=replace(memory.spec, threshold=tuple(thresholds.tolist())),
        genomes=memory.genome[None].repeat(SCAN, axis=0),
        examples=dict.fromkeys(plan.tasks, plan.control_examples),
        split="train",
        settings=replace(plan.units, candidates_per_unit=SCAN, examples_per_unit=2),
    )
    kept = np.zeros(SCAN)
    rows = np.zeros(SCAN)
    for unit in score(units):
        np.add.at(kept, unit.candidate, unit.held_tokens.mean(axis=(1, 2)) / unit.seen_tokens)
        np.add.at(rows, unit.candidate, 1)
    return [float(np.float32(np.interp(ratio, np.maximum.accumulate(kept / rows), thresholds))) for ratio in ratios]


def points_of(results: Sequence[Result], *, memory: str, setting: int, threshold: float) -> list[Point]:
    """Means over tasks; of each rival the split that does best."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    full = statistics.mean(result.graded for result in by_name[FULL])
    best: dict[str, Point] = {}
    for split, group in by_name.items():
        name = split if split in (FULL, MEMORY, evaluation.CONTROL) else split.partition("-")[0]
        point = Point(
            memory=memory,
            setting=setting,
            threshold=threshold,
            name=name,
            kept_ratio=statistics.mean(result.kept_ratio for result in group),
            mean_bytes=statistics.mean(result.mean_bytes for result in group),
            exact=statistics.mean(result.exact for result in group),
            graded_ratio=statistics.mean(result.graded for result in group) / full,
        )
        if name not in best or point.graded_ratio > best[name].graded_ratio:
            best[name] = point
    return list(best.values())


# Telling -------------------------------------------------------------------------------------------------------------


def columns(points: Sequence[Point]) -> list[str]:
    """The memory, then its rivals, best first."""
    names = {point.name for point in points} - {FULL}
    mean = {name: statistics.mean(point.graded_ratio for point in points if point.name == name) for name in names}
    return sorted(names, key=lambda name: (name != MEMORY, -mean[name]))


def table(points: Sequence[Point]) -> list[str]:
    """Markdown: a row for each setting, graded score over the full cache's for the memory and every rival."""
    names = columns(points)
    lines = [f"| kept | {' | '.join(names)} |", f"|---:|{'---:|' * len(names)}"]
    for setting in sorted({point.setting for point in points}):
        row = [point for point in points if point.setting == setting]
        kept = statistics.median(point.kept_ratio for point in row if point.name == MEMORY)
        lines.append(f"| {kept:.1%} | {' | '.join(cell(row, name) for name in names)} |")
    return lines


def cell(row: Sequence[Point], name: str) -> str:
    values = [point.graded_ratio for point in row if point.name == name]
    low, median, high = (f"{value * 100:.1f}" for value in (min(values), statistics.median(values), max(values)))
    return median if low == high or name != MEMORY else f"{median} ({low}–{high})"


def drawn(points: Sequence[Point], length: int) -> str:
    curves = []
    for name in columns(points):
        chosen = [[p for p in points if p.name == name and p.setting == s] for s in sorted({p.setting for p in points})]
        curves.append(
            Curve(
                name=name,
                x=[statistics.median(point.kept_ratio for point in group) for group in chosen],
                y=[statistics.median(point.graded_ratio for point in group) for group in chosen],
                low=[min(point.graded_ratio for point in group) for group in chosen],
                high=[max(point.graded_ratio for point in group) for group in chosen],
            )
        )
    num_memories = len({point.memory for point in points})
    return picture(
        curves,
        title=f"One dial: {num_memories} evolved memories, {length} tokens, small Llama",
        x_label="tokens kept (log)",
        y_label="graded score, of the full cache's",
    )


if __name__ == "__main__":
    sys.exit(main())

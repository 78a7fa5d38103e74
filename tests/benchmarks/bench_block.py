"""Seconds to score a block of genomes at once, against one genome on one example at a time; the results must agree.

Preset ``small`` as it is: its model, memory and tasks, its cut into units (16 genomes x 2 examples), normalised by the
statistics of a full-cache pass. Both ways go through ``Evaluator.score`` on one torch thread and take turns. Seconds
are of CPU, so that a busy machine does not enter. Run from the repository root::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_block

What limits the ratio: the FLOPs. Reading 272 tokens with the small Llama, the spectrogram and the scorer is about 11 ms
of arithmetic and memory traffic per genome and example, in a block or alone, spread evenly over matrix products,
softmax, masks and gathers. Alone, about 16 ms come on top for the calls themselves, that is, Python and the dispatch of
a few thousand small operations. A block pays for the calls once, and reads the tokens before the first update (64 of
272) once for all its genomes; so on one CPU thread it is 2 to 3 times as fast, and a larger block gains no more. Where
the arithmetic takes less of the time of a call, as on an accelerator, there is more to gain.

Exit code 1 when the results differ by more than 1e-5, or the block is less than twice as fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.config import RunConfig, UnitSettings, load_config
from orchestrator.fitness import merge_statistics
from orchestrator.units import plan_units
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.specs import NammSpec, Normalisation
from workers.unit import ScoredUnit, Unit

GENOME_SIGMA = 0.3
"""Standard deviation of the random genomes: wide enough that they keep from a tenth to three quarters of the tokens."""
LARGEST_DIFFERENCE, SMALLEST_RATIO = 1e-5, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured."""

    rows: int
    """Genomes x examples of all tasks."""
    block_seconds: list[float]
    """CPU seconds of each repeat, in blocks."""
    single_seconds: list[float]
    """CPU seconds of each repeat, one genome and one example at a time."""
    graded_difference: float
    """Largest difference of graded scores between the two ways; the same for the rest."""
    exact_difference: float
    held_tokens_difference: int
    kept_ratios: tuple[float, float]
    """Lowest and highest share of tokens held in the end, over all rows: how different the genomes are."""

    @property
    def ratio(self) -> float:
        """How many times faster a block is."""
        return statistics.median(self.single_seconds) / statistics.median(self.block_seconds)

    @property
    def complaints(self) -> list[str]:
        """What must not be, one line each."""
        checks = {
            f"graded scores differ by {self.graded_difference:.1e}": self.graded_difference <= LARGEST_DIFFERENCE,
            f"exact scores differ by {self.exact_difference:.1e}": self.exact_difference <= LARGEST_DIFFERENCE,
            f"held tokens differ by {self.held_tokens_difference}": self.held_tokens_difference == 0,
            f"a block is only {self.ratio:.2f} times as fast": self.ratio >= SMALLEST_RATIO,
        }
        return [complaint for complaint, holds in checks.items() if not holds]


def evolved_spec(config: RunConfig, evaluator: Evaluator, num_examples: int) -> NammSpec:
    """The memory of a run: statistics gathered under the full cache."""
    raw = NammSpec(settings=config.memory)
    zeros = np.zeros((1, config.memory.genome_size), np.float32)
    units = planned(config, raw, zeros, num_examples, config.units, record_statistics=True)
    pooled = merge_statistics([evaluator.score(unit) for unit in units])
    return NammSpec(
        settings=config.memory,
        normalisation=Normalisation(tuple(pooled.mean.tolist()), tuple(pooled.variance.tolist())),
    )


def planned(
    config: RunConfig,
    spec: NammSpec,
    genomes: npt.NDArray[np.float32],
    num_examples: int,
    cut: UnitSettings,
    record_statistics: bool = False,
) -> list[Unit]:
    """Units that hold every genome on the first examples of every task."""
    return plan_units(
        generation=0,
        memory_name="namm",
        memory=spec,
        genomes=genomes,
        examples={task.name: tuple(range(num_examples)) for task in config.tasks},
        split="train",
        settings=cut,
        record_statistics=record_statistics,
    )


def timed(evaluator: Evaluator, units: Sequence[Unit]) -> tuple[float, list[ScoredUnit]]:
    """CPU seconds to score the units one after the other, and what came of them."""
    started = time.process_time()
    scored = [evaluator.score(unit) for unit in units]
    return time.process_time() - started, scored


def column(scored: Sequence[ScoredUnit], name: str) -> npt.NDArray[np.float64]:
    """One array over all units, rows by task, candidate and example, however the work was cut."""
    keys = [(u.task, int(c), int(e)) for u in scored for c, e in zip(u.candidate, u.example, strict=True)]
    rows = np.concatenate([getattr(unit, name) for unit in scored]).astype(np.float64)
    return rows[sorted(range(len(keys)), key=keys.__getitem__)]


def measure(num_genomes: int, num_examples: int, repeats: int) -> Outcome:
    """Score the same work both ways, in turns."""
    config = load_config("small")
    evaluator = EvaluatorRecipe(model=config.model, tasks=config.tasks, num_threads=1).build()
    spec = evolved_spec(config, evaluator, num_examples)
    normal = np.random.default_rng(0).normal(0.0, GENOME_SIGMA, (num_genomes, config.memory.genome_size))
    genomes = normal.astype(np.float32)
    blocks = planned(config, spec, genomes, num_examples, config.units)
    singles = planned(config, spec, genomes, num_examples, UnitSettings(candidates_per_unit=1, examples_per_unit=1))
    timed(evaluator, [blocks[0], singles[0]])  # tables are cached and memory is allocated before the clock runs
    block_seconds, single_seconds = [], []
    for _ in range(repeats):
        seconds, together = timed(evaluator, blocks)
        block_seconds.append(seconds)
        seconds, alone = timed(evaluator, singles)
        single_seconds.append(seconds)
    graded, exact, held = (
        float(np.abs(column(together, name) - column(alone, name)).max()) for name in ("graded", "exact", "held_tokens")
    )
    kept = column(alone, "held_tokens").mean((1, 2)) / column(alone, "seen_tokens")
    return Outcome(
        rows=len(kept),
        block_seconds=block_seconds,
        single_seconds=single_seconds,
        graded_difference=graded,
        exact_difference=exact,
        held_tokens_difference=int(held),
        kept_ratios=(float(kept.min()), float(kept.max())),
    )


def report(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [
        f"{outcome.rows} rows (genome x example), kept {outcome.kept_ratios[0]:.0%} to {outcome.kept_ratios[1]:.0%}"
    ]
    for name, seconds in (("in blocks", outcome.block_seconds), ("one at a time", outcome.single_seconds)):
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        lines.append(f"{name:<14} {median:6.2f} s of CPU ({spread}), {1000 * median / outcome.rows:5.1f} ms a row")
    lines.append(f"a block is {outcome.ratio:.2f} times as fast")
    differences = f"graded {outcome.graded_difference:.1e}, exact {outcome.exact_difference:.1e}"
    lines.append(f"largest difference: {differences}, held tokens {outcome.held_tokens_difference}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_block",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--genomes", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=8, help="of each task (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(arguments)
    outcome = measure(options.genomes, options.examples, options.repeats)
    if options.json:
        print(json.dumps({**dataclasses.asdict(outcome), "ratio": outcome.ratio, "complaints": outcome.complaints}))
    else:
        print(*report(outcome), sep="\n")
    for complaint in outcome.complaints:
        print(f"FAIL: {complaint}", file=sys.stderr)
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())

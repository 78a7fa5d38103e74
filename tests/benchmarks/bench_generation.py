"""What a generation costs as documents and population grow, with a straight line through each.

    python -m tests.benchmarks.bench_generation --model DIR --device cuda

Every unit is a document under all genomes, as in the preset ``medium``; genomes are drawn around one that keeps about a
quarter (or around ``--memory``). A figure is the shorter of two runs after one that warms up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from orchestrator.config import UnitSettings
from orchestrator.units import plan_units
from tasks.corpus_task import CorpusTaskSettings
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.pretrained import PretrainedMemory
from workers.settings import ModelSettings

SIGMA = 0.065
KIND = "text_fact_code"


def seconds(evaluator: Evaluator, memory: PretrainedMemory, population: int, documents: int, task: str) -> float:
    """Of one generation."""
    noise = np.random.default_rng(0).normal(size=(population, len(memory.genome)))
    units = plan_units(
        generation=0,
        memory_name="namm",
        memory=memory.spec,
        genomes=(memory.genome + SIGMA * noise).astype(np.float32),
        examples={task: tuple(range(documents))},
        split="train",
        settings=UnitSettings(candidates_per_unit=population, examples_per_unit=1),
        score="graded",
    )
    taken = []
    for _ in range(2):
        started = time.monotonic()
        for unit in units:
            evaluator.score(unit)
        taken.append(time.monotonic() - started)
    return min(taken)


def line(sizes: Sequence[int], taken: Sequence[float]) -> str:
    """``a s + b s for each (R²)``, by least squares."""
    slope, start = np.polyfit(sizes, taken, 1)
    residual = np.asarray(taken) - (start + slope * np.asarray(sizes))
    share = 1.0 - float(residual.var() / np.var(taken))
    return f"{start:.2f} s + {slope:.4f} s for each (R² {share:.3f})"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a medium Llama")
    parser.add_argument("--memory", required=True, help="folder of a memory that was evolved on it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--populations", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--documents", nargs="+", type=int, default=[4, 8, 16])
    options = parser.parse_args()
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    task = CorpusTaskSettings(kind=KIND, length=options.length)
    model = ModelSettings(path_or_id=options.model, device=options.device, dtype=dtype)
    evaluator = EvaluatorRecipe(model=model, tasks=(task,)).build()
    memory = PretrainedMemory.from_pretrained(options.memory)
    most, longest = max(options.populations), max(options.documents)
    seconds(evaluator, memory, most, 1, task.name)
    by_documents = [seconds(evaluator, memory, most, number, task.name) for number in options.documents]
    by_population = [seconds(evaluator, memory, number, longest, task.name) for number in options.populations]
    whole = by_documents[options.documents.index(longest)]
    print(f"{most} genomes x {longest} documents of {options.length:,} tokens: {whole:.2f} s, "
          f"{most * longest / whole:.0f} evaluations a second")  # fmt: skip
    print(f"documents {options.documents}: {line(options.documents, by_documents)}")
    print(f"genomes {options.populations}: {line(options.populations, by_population)}")


if __name__ == "__main__":
    main()

"""What a generation costs as documents and population grow, with a straight line through each.

    python -m tests.benchmarks.bench_generation --model DIR --memory DIR --device cuda
    python -m tests.benchmarks.bench_generation --model DIR --device cuda --grow

Every unit is a document under all genomes, as in the preset ``medium``, which are drawn around ``--memory``. With
``--grow`` models are larger and larger, with the tokenizer of ``--model`` and weights at random; genomes are drawn
around one at random whose dial is turned to a quarter. A figure is the shorter of two runs after one that warms up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.config import UnitSettings
from orchestrator.evaluation import EvaluationPlan, turn_dial
from orchestrator.units import plan_units
from tasks.corpus_task import CorpusTaskSettings
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.language_model import load_tokenizer
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec
from workers.settings import ModelSettings
from workers.text_model import TextShape, new_text_model, write_text_model

SIGMA = 0.065
KIND = "text_fact_code"
KEPT_RATIO = 0.25
GROWN = (
    TextShape(),
    TextShape(hidden=640, layers=8, query_heads=10, kv_heads=5, mlp=1728),
    TextShape(hidden=768, layers=12, query_heads=12, kv_heads=6, mlp=2048),
    TextShape(hidden=1024, layers=14, query_heads=16, kv_heads=8, mlp=2752),
)
"""Of 13, 42, 84 and 171 million parameters."""


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


def grown(
    model: ModelSettings, task: CorpusTaskSettings, shapes: Sequence[TextShape], population: int, documents: int
) -> None:
    """Print what a generation takes as the model grows."""
    tokenizer, _ = load_tokenizer(model)
    millions, taken = [], []
    for shape in shapes:
        fresh = new_text_model(replace(shape, vocabulary=len(tokenizer)), 0)
        millions.append(fresh.num_parameters() / 1e6)
        with tempfile.TemporaryDirectory() as folder:
            write_text_model(fresh, tokenizer, Path(folder))
            evaluator = EvaluatorRecipe(model=replace(model, path_or_id=folder), tasks=(task,)).build()
        memory = random_memory(evaluator, task.name)
        seconds(evaluator, memory, population, 1, task.name)
        taken.append(seconds(evaluator, memory, population, documents, task.name))
        print(f"{millions[-1]:.0f} million parameters: {taken[-1]:.2f} s", flush=True)
    print(f"millions: {line(millions, taken)}")


def random_memory(evaluator: Evaluator, task: str) -> PretrainedMemory:
    """A genome at random that keeps a quarter of a document."""
    settings = NammSettings(update_every=256, heads="ragged")
    genome = np.random.default_rng(0).normal(0.0, 0.3, settings.genome_size).astype(np.float32)
    plan = EvaluationPlan(
        generation=0,
        examples={task: (0,)},
        control_examples=(0,),
        rivals=(),
        units=UnitSettings(candidates_per_unit=1, examples_per_unit=1),
        seed=0,
        score="graded",
    )
    fresh = PretrainedMemory(NammSpec(settings=settings), genome, {})
    return turn_dial(fresh, KEPT_RATIO, plan, lambda units: [evaluator.score(unit) for unit in units])


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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--memory", help="folder of a memory that was evolved on it")
    what.add_argument("--grow", action="store_true", help="measure larger models instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--populations", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--documents", nargs="+", type=int, default=[4, 8, 16])
    options = parser.parse_args()
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    task = CorpusTaskSettings(kind=KIND, length=options.length)
    model = ModelSettings(path_or_id=options.model, device=options.device, dtype=dtype)
    most, longest = max(options.populations), max(options.documents)
    if options.grow:
        grown(model, task, GROWN, most, longest)
        return
    evaluator = EvaluatorRecipe(model=model, tasks=(task,)).build()
    memory = PretrainedMemory.from_pretrained(options.memory)
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

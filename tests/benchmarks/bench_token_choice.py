"""Which way of choosing tokens needs how many evaluations: every variant evolved for the same time, side by side.

    python -m tests.benchmarks.bench_token_choice --model DIR --device cuda --seconds 290 --out runs/token-choice

Every variant and seed is a process of its own, all on one accelerator, and they share it. Fitness is reported as score
ratio - 0.5 x kept ratio for all, whatever price a variant itself was told. The mean genomes are written to
``OUT/NAME-seedN``; ``bench_rivals`` compares them with every rival.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.config import FitnessSettings, SearchSettings, UnitSettings
from orchestrator.evaluation import EvaluationPlan, evaluate
from orchestrator.fitness import FullCacheScores, losses, merge_statistics
from orchestrator.search import Search
from orchestrator.units import draw_examples, plan_units
from tasks.corpus_task import CorpusTaskSettings
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.language_model import cache_layout
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec, Normalisation, RivalName
from workers.settings import ModelSettings
from workers.unit import FULL_CACHE_PASS
from workers.warm_start import WarmStartSettings, warm_start

KINDS = ("text_fact_prose", "text_fact_code", "text_kv", "text_passkey", "text_variable")
MARKS = (0.5, 0.6, 0.7, 0.75, 0.8)
"""Fitness to reach."""
HEAD_RIVALS: tuple[RivalName, ...] = ("snapkv", "h2o", "tova", "recent")
"""Given the memory's own bytes in every head."""
EXAMPLES_PER_UNIT = 8
"""Read side by side at most."""
SAY_EVERY = 10
"""Generations between two lines of progress."""


@dataclass(frozen=True)
class Variant:
    """What is switched on."""

    memory: Mapping[str, Any] = field(default_factory=dict)
    fitness: Mapping[str, Any] = field(default_factory=lambda: {"kept_price": 0.5})
    is_warm: bool = False
    needs_layout: bool = False


VARIANTS = {
    "published": Variant(),
    "offsets": Variant({"offsets": True}, needs_layout=True),
    "lookahead": Variant({"lookahead": 16}),
    "warm": Variant(is_warm=True),
    "target": Variant(fitness={"kept_price": 2.0, "kept_target": 0.30, "price_ramp": 20}),
    "heads-only": Variant({"choice": "snapkv"}, needs_layout=True),
    "heads-only-warm": Variant({"choice": "snapkv"}, needs_layout=True, is_warm=True),
    "all": Variant({"offsets": True, "lookahead": 16}, is_warm=True, needs_layout=True),
    "offsets-lookahead": Variant({"offsets": True, "lookahead": 16}, needs_layout=True),
    "offsets-lookahead-target": Variant(
        {"offsets": True, "lookahead": 16}, fitness={"kept_price": 1.0, "kept_target": 0.33}, needs_layout=True
    ),
    "offsets-warm": Variant({"offsets": True}, is_warm=True, needs_layout=True),
    "all-price": Variant(
        {"offsets": True, "lookahead": 16},
        fitness={"kept_price": 1.0, "price_ramp": 30},
        is_warm=True,
        needs_layout=True,
    ),
    "all-target": Variant(
        {"offsets": True, "lookahead": 16},
        fitness={"kept_price": 2.0, "kept_target": 0.30},
        is_warm=True,
        needs_layout=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The same for all variants."""

    model: ModelSettings
    out: Path
    seconds: float
    length: int = 2048
    update_every: int = 256
    population: int = 32
    pool: int = 48
    """Examples of each task to draw from, where ``per_generation`` are drawn."""
    per_generation: int = 2
    """Examples of each task."""
    more: Mapping[str, int] = field(default_factory=dict)
    """Examples of some kinds instead: what a genome is worth shows soonest where answers are lost."""
    kept_target: float | None = None
    """In place of a variant's own."""
    starts: str | None = None
    """Folder of the memory to go on from, with ``{seed}`` in its name; None starts from zeros."""
    valid: int = 8
    """Held-out examples of each task."""
    warm_steps: int = 300
    """Of a warm start's fit."""
    seed: int = 0

    def drawn_of(self, kind: str) -> int:
        """Examples of a kind in each generation."""
        return self.more.get(kind, self.per_generation)

    def pool_of(self, kind: str) -> int:
        """Examples of a kind to draw from: all come as often again."""
        return self.pool * self.drawn_of(kind) // self.per_generation

    @property
    def units(self) -> UnitSettings:
        """A unit holds all genomes."""
        return UnitSettings(candidates_per_unit=self.population, examples_per_unit=EXAMPLES_PER_UNIT)

    @property
    def tasks(self) -> tuple[CorpusTaskSettings, ...]:
        return tuple(CorpusTaskSettings(kind=kind, length=self.length) for kind in KINDS)


def settings_of(variant: Variant, plan: Plan) -> NammSettings:
    """The memory of a variant."""
    layout = {"layout": cache_layout(plan.model)} if variant.needs_layout else {}
    return NammSettings(update_every=plan.update_every, heads="ragged", **variant.memory, **layout)


def evolve(name: str, plan: Plan) -> dict[str, Any]:
    """One variant: its history, and how its mean genome fares on held-out examples."""
    variant = VARIANTS[name]
    settings = settings_of(variant, plan)
    evaluator = EvaluatorRecipe(model=plan.model, tasks=plan.tasks).build()
    full, spec = full_cache(evaluator, settings, plan)
    started = time.monotonic()
    begin, spec = beginning(variant, settings, evaluator, spec, plan)
    search = Search(
        SearchSettings(population=plan.population, generations=10_000), settings.genome_size, plan.seed, begin
    )
    history: list[dict[str, float]] = []
    means: list[np.ndarray] = []
    while time.monotonic() - started < plan.seconds or not history:
        history.append(one_generation(search, spec, fitness_of(variant, plan), full, evaluator, plan))
        means.append(search.mean)
        if len(history) % SAY_EVERY == 1:
            print(f"{name} seed {plan.seed}  generation {len(history) - 1}  {told(history[-1])}", flush=True)
            saved(name, plan, spec, means)
    memory = saved(name, plan, spec, means)
    return {
        "name": name,
        "seed": plan.seed,
        "genome": settings.genome_size,
        "history": history,
        **held_out(memory, evaluator, plan),
    }


def one_generation(
    search: Search, spec: NammSpec, fitness: FitnessSettings, full: FullCacheScores, evaluator: Evaluator, plan: Plan
) -> dict[str, float]:
    """Ask, score and tell; medians of the population, and seconds."""
    begun = time.monotonic()
    generation, genomes = search.generation, search.ask()
    units = plan_units(
        generation=generation,
        memory_name="namm",
        memory=spec,
        genomes=genomes,
        examples=drawn(plan, generation),
        split="train",
        settings=plan.units,
        score="graded",
    )
    result = losses([evaluator.score(unit) for unit in units], full, fitness, plan.population, generation)
    search.tell(result.loss)
    common = result.ratio - 0.5 * result.kept_ratio
    figures = {"fitness": common, "ratio": result.ratio, "kept": result.kept_ratio}
    medians = {key: float(np.median(values)) for key, values in figures.items()}
    return medians | {"seconds": time.monotonic() - begun}


def fitness_of(variant: Variant, plan: Plan) -> FitnessSettings:
    """The fitness of a variant."""
    target = {} if plan.kept_target is None else {"kept_target": plan.kept_target}
    return FitnessSettings(**(dict(variant.fitness) | target))


def beginning(
    variant: Variant, settings: NammSettings, evaluator: Evaluator, spec: NammSpec, plan: Plan
) -> tuple[np.ndarray | None, NammSpec]:
    """The genome that a search begins around, and the memory that it is of."""
    if plan.starts is not None:
        earlier = PretrainedMemory.from_pretrained(plan.starts.format(seed=plan.seed))
        if earlier.spec.settings != settings:
            raise SystemExit(f"{plan.starts}: a memory of other settings than the variant's; start from one of its own")
        return earlier.genome, earlier.spec
    if variant.is_warm:
        warm = WarmStartSettings(steps=plan.warm_steps)
        return warm_start(evaluator, [task.name for task in plan.tasks], settings, warm, plan.seed).genome, spec
    return None, spec


def drawn(plan: Plan, generation: int) -> dict[str, tuple[int, ...]]:
    """The examples of a generation, by task."""
    examples: dict[str, tuple[int, ...]] = {}
    for task in plan.tasks:
        examples |= draw_examples(plan.seed, generation, [task.name], plan.pool_of(task.kind), plan.drawn_of(task.kind))
    return examples


def saved(name: str, plan: Plan, spec: NammSpec, means: Sequence[np.ndarray]) -> PretrainedMemory:
    """Write the mean genome, and beside it the average of the last third of all means, which wanders less."""
    about = {"variant": name, "seed": plan.seed, "generations": len(means)}
    memory = PretrainedMemory(spec, means[-1], about)
    memory.save_pretrained(plan.out / named(name, plan.seed))
    averaged = np.mean(means[-max(1, len(means) // 3) :], axis=0)
    PretrainedMemory(spec, averaged, about).save_pretrained(plan.out / f"{named(name, plan.seed)}-averaged")
    return memory


def full_cache(evaluator: Evaluator, settings: NammSettings, plan: Plan) -> tuple[FullCacheScores, NammSpec]:
    """Scores and feature statistics of the pool."""
    scored = [
        evaluator.score(unit)
        for unit in plan_units(
            generation=FULL_CACHE_PASS,
            memory_name="full",
            memory=NammSpec(settings=settings),
            genomes=np.zeros((1, settings.genome_size), np.float32),
            examples={task.name: tuple(range(plan.pool_of(task.kind))) for task in plan.tasks},
            split="train",
            settings=plan.units,
            score="graded",
            record_statistics=True,
        )
    ]
    statistics = merge_statistics(scored)
    normalisation = Normalisation(tuple(statistics.mean.tolist()), tuple(statistics.variance.tolist()))
    return FullCacheScores.from_units(scored), NammSpec(settings=settings, normalisation=normalisation)


def held_out(memory: PretrainedMemory, evaluator: Evaluator, plan: Plan) -> dict[str, Any]:
    """Means over the tasks, of the memory, the full cache, and rivals that hold as much in every head."""
    results = evaluate(
        memory,
        EvaluationPlan(
            generation=1,
            examples={task.name: tuple(range(plan.valid)) for task in plan.tasks},
            control_examples=(0,),
            rivals=HEAD_RIVALS,
            units=UnitSettings(candidates_per_unit=1, examples_per_unit=8),
            seed=plan.seed,
            score="graded",
            allocations=("head",),
        ),
        lambda units: [evaluator.score(unit) for unit in units],
    )
    shown = ("full", "namm", *(f"{rival}-head" for rival in HEAD_RIVALS))
    rows = {name: [result for result in results if result.name == name] for name in shown}
    return {
        name: {key: float(np.mean([getattr(row, key) for row in found])) for key in ("exact", "graded", "kept_ratio")}
        for name, found in rows.items()
    }


def evaluations_to_reach(fitness: Sequence[float], mark: float, per_generation: int) -> int | None:
    """Evaluations (a genome on an example) until the mean of three generations' medians reaches ``mark``."""
    for number in range(1, len(fitness) + 1):
        if np.mean(fitness[max(0, number - 3) : number]) >= mark:
            return number * per_generation
    return None


def printed(documents: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """The table in Markdown."""
    per_generation = plan.population * sum(map(len, drawn(plan, 0).values()))
    rivals = [f"{rival}-head" for rival in HEAD_RIVALS]
    marks = [f"to {mark:g}" for mark in MARKS]
    heads = ["variant", "seed", "genome", "evaluations", *marks, "exact", "kept", *rivals]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    for row in documents:
        fitness = [entry["fitness"] for entry in row["history"]]
        reached = [evaluations_to_reach(fitness, mark, per_generation) for mark in MARKS]
        cells = [row["name"], f"{row['seed']}", f"{row['genome']:,}", f"{len(fitness) * per_generation:,}"]
        cells += ["–" if number is None else f"{number:,}" for number in reached]
        cells += [f"{row['namm']['exact']:.3f}", f"{row['namm']['kept_ratio']:.1%}"]
        cells += [f"{row[rival]['exact']:.3f}" for rival in rivals]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(entry: Mapping[str, float]) -> str:
    """A generation's medians, as the progress line has them."""
    return "  ".join(f"{key} {value:.3f}" for key, value in entry.items())


def named(variant: str, seed: int) -> str:
    """Folder of a mean genome."""
    return f"{variant}-seed{seed}"


def _work(name: str, plan: Plan) -> None:
    torch.set_num_threads(1)  # several share the machine
    document = evolve(name, plan)
    (plan.out / f"{named(name, plan.seed)}.json").write_text(json.dumps(document), encoding="utf-8")


def run(names: Sequence[str], plan: Plan, seeds: Sequence[int] = (0,)) -> list[dict[str, Any]]:
    """All variants with all seeds at once; what each found, in order."""
    plan.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    both = [(name, seed) for name in names for seed in seeds]
    processes = [context.Process(target=_work, args=(name, replace(plan, seed=seed))) for name, seed in both]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [json.loads((plan.out / f"{named(*pair)}.json").read_text(encoding="utf-8")) for pair in both]


def kind_and_count(text: str) -> tuple[str, int]:
    """``text_kv=4`` as a kind and how many."""
    kind, _, count = text.partition("=")
    if kind not in KINDS or not count.isdecimal() or int(count) == 0:
        raise argparse.ArgumentTypeError(f"one of {', '.join(KINDS)}, =, and a number from 1: got {text!r}")
    return kind, int(count)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a medium Llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=290.0, help="of evolution, for each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--per-generation", type=int, default=2, help="documents of each kind (default: %(default)s)")
    more = "documents of some kinds in its place"
    parser.add_argument("--more", nargs="*", default=[], type=kind_and_count, metavar="KIND=N", help=more)
    parser.add_argument("--pool", type=int, default=48, help="documents of each kind to draw from")
    parser.add_argument("--valid", type=int, default=8, help="held-out documents of each kind")
    parser.add_argument("--kept-target", type=float, help="in place of the variants' own")
    parser.add_argument("--from", dest="starts", help="memory to go on from: a folder with {seed} in its name")
    parser.add_argument("--warm-steps", type=int, default=300, help="of a warm start's fit (default: %(default)s)")
    options = parser.parse_args()
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    model = ModelSettings(path_or_id=options.model, device=options.device, dtype=dtype)
    plan = Plan(
        model=model,
        out=options.out,
        seconds=options.seconds,
        per_generation=options.per_generation,
        more=dict(options.more),
        pool=options.pool,
        valid=options.valid,
        kept_target=options.kept_target,
        starts=options.starts,
        warm_steps=options.warm_steps,
    )
    print(printed(run(options.variants, plan, options.seeds), plan))


if __name__ == "__main__":
    main()

"""What ``namm evaluate`` does: a saved memory beside its rivals, or one rival alone, on held-out examples."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from orchestrator import evaluation
from orchestrator.config import RunConfig, config_from_dict, load_config
from orchestrator.errors import InputError
from orchestrator.evaluation import FULL, EvaluationPlan, Result, ScoreUnits
from orchestrator.evolution import Progress
from orchestrator.files import make_folder, write_json_atomic
from orchestrator.fleet import Fleet, fleet_for
from orchestrator.journal import has_run, read_journal
from orchestrator.progress import Report, reporting
from orchestrator.report import HEADINGS, printed_rows, tabulate
from orchestrator.run import CHAMPION, evaluation_plan, evaluation_tasks, worker_recipe
from orchestrator.storage import folder_at, local_copy
from orchestrator.terminal import Answer, grid
from orchestrator.units import plan_units
from workers.language_model import model_folder
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalName, RivalSpec
from workers.unit import ScoredUnit, Unit

DEFAULT_PRESET = "small"
DEFAULT_KEPT_RATIO = 0.25
RIVALS: tuple[RivalName, ...] = get_args(RivalName)

Contender = PretrainedMemory | RivalName


def evaluate(
    what: str,
    *,
    preset: str | None,
    overrides: Sequence[str],
    kept_ratio: float | None,
    output: Path | None,
    quiet: bool,
) -> Answer:
    """Score a memory, or one rival, and the full cache.

    Args:
        what: folder of a saved memory, a run folder (its champion), or a rival's name.
        preset: whose tasks, model and cluster to use; None for the run's own, or ``small``.
        overrides: texts like ``evaluation.lengths=[256,512]``.
        kept_ratio: what is to be held in the end, of the tokens seen: by a rival alone (None for a quarter), or by a
            memory, whose dial is turned for each length on training examples (None leaves it as it is).
        output: JSON file to write as well.
        quiet: show no progress.

    Raises:
        NammError: the user can mend it.
        MemoryFileError: the memory cannot be read.
        ModelError: there is no such model.
    """
    contender = find_contender(what)
    config = _settings(what, preset, overrides)
    model_folder(config.model.path_or_id)
    if output is not None:
        _require_writable(output)
    with fleet_for(worker_recipe(config), config.cluster) as fleet, reporting(0, sys.stderr, quiet=quiet) as report:
        score = score_on(fleet, report)
        plan, lengths = evaluation_plan(config), {task.name: task.length for task in evaluation_tasks(config)}
        if isinstance(contender, PretrainedMemory):
            settings = _dial_settings(contender, kept_ratio, plan, lengths, score)
            results = [result for part, memory in settings for result in evaluation.evaluate(memory, part, score)]
        else:
            every, ratio = config.memory.update_every, DEFAULT_KEPT_RATIO if kept_ratio is None else kept_ratio
            settings, results = [], evaluate_rival(contender, ratio, every, plan, score)
    table = tabulate(results, lengths)
    document = {
        "what": what,
        "model": config.model.path_or_id,
        "table": [dataclasses.asdict(row) for row in table],
        "results": [result.document() for result in results],
        "thresholds": {lengths[part.tasks[0]]: memory.spec.threshold for part, memory in settings},
    }
    if output is not None:
        write_json_atomic(output, document)
    return Answer(document, [grid(HEADINGS, printed_rows(table), left=2)])


def _dial_settings(
    memory: PretrainedMemory,
    kept_ratio: float | None,
    plan: EvaluationPlan,
    lengths: Mapping[str, int],
    score: ScoreUnits,
) -> list[tuple[EvaluationPlan, PretrainedMemory]]:
    """A plan for each length, with the memory to score on it; at ``kept_ratio`` if that is given."""
    parts = [
        dataclasses.replace(plan, tasks=tuple(task for task in plan.tasks if lengths[task] == length))
        for length in sorted(set(lengths.values()))
    ]
    if kept_ratio is None:
        return [(part, memory) for part in parts]
    return [(part, evaluation.turn_dial(memory, kept_ratio, part, score)) for part in parts]


def find_contender(what: str) -> Contender:
    """The saved memory in a folder, the champion of a run folder, or a rival by its name.

    Raises:
        InputError: it is none of them, or the run has no champion yet.
        MemoryFileError: the memory cannot be read.
    """
    for name in RIVALS:
        if what == name:
            return name
    folder = folder_at(what)
    if not folder.exists():
        raise InputError(
            f"there is nothing to evaluate at {what!r}: name the folder of a saved memory, a run folder, "
            f"or one of {', '.join(RIVALS)}"
        )
    if has_run(folder):
        if not folder.exists(CHAMPION):
            raise InputError(
                f"the run in {folder} has no champion yet, because it has not reached its last generation: "
                f"go on with namm resume {folder}"
            )
        folder = folder.within(CHAMPION)
    with local_copy(folder) as path:
        return PretrainedMemory.from_pretrained(path)


def evaluate_rival(
    name: RivalName, kept_ratio: float, update_every: int, plan: EvaluationPlan, score: ScoreUnits
) -> list[Result]:
    """Score the full cache, then a rival that may hold the same number of tokens in every head.

    Args:
        name: of the rival; ``full`` scores the full cache alone.
        kept_ratio: tokens that the rival holds at the end of an example / tokens seen.
        update_every: tokens between two evictions.
        plan: what to evaluate on.
        score: on whatever fleet.
    """
    full = _by_task(score(_plan(plan, FULL, RivalSpec(name="full", update_every=update_every), plan.tasks)))
    seen = {task: int(scored[0].seen_tokens.max()) for task, scored in full.items()}
    results = [evaluation.summarise(FULL, task, scored, seen[task]) for task, scored in full.items()]
    if name == "full":
        return results
    units = [
        unit
        for task, scored in full.items()
        for unit in _plan(plan, name, _rival(name, kept_ratio, update_every, scored[0], plan.seed), (task,))
    ]
    rival = _by_task(score(units))
    return results + [evaluation.summarise(name, task, scored, seen[task]) for task, scored in rival.items()]


def score_on(fleet: Fleet, report: Report) -> ScoreUnits:
    """Scores units on ``fleet`` and returns them in the order given."""

    def score(units: Sequence[Unit]) -> list[ScoredUnit]:
        results: dict[str, ScoredUnit] = {}
        for scored in fleet.score(units):
            results[scored.key] = scored
            report(Progress(generation=scored.generation, units_done=len(results), units_total=len(units)))
        return [results[unit.key] for unit in units]

    return score


def _settings(what: str, preset: str | None, overrides: Sequence[str]) -> RunConfig:
    if preset is None and what not in RIVALS and has_run(what):
        return config_from_dict(read_journal(what).attempts[-1].config, overrides)
    return load_config(preset or DEFAULT_PRESET, overrides)


def _require_writable(output: Path) -> None:
    """Found out now, not when the results are there."""
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    make_folder(output.parent)


def _rival(name: RivalName, kept_ratio: float, update_every: int, full: ScoredUnit, seed: int) -> RivalSpec:
    """What was read since the last update everybody holds, so the budget after it is less by so much."""
    seen, (layers, heads) = int(full.seen_tokens.max()), full.held_tokens.shape[1:]
    tokens = max(1, math.ceil(kept_ratio * seen) - seen % update_every)
    budget = tuple(map(tuple, np.full((layers, heads), tokens).tolist()))
    return RivalSpec(name=name, update_every=update_every, budget=budget, seed=seed)


def _plan(plan: EvaluationPlan, name: str, memory: RivalSpec, tasks: Sequence[str]) -> list[Unit]:
    return plan_units(
        generation=plan.generation,
        memory_name=name,
        memory=memory,
        genomes=np.zeros((1, 0), np.float32),
        examples=dict.fromkeys(tasks, plan.examples),
        split="heldout",
        settings=plan.units,
    )


def _by_task(scored: Sequence[ScoredUnit]) -> dict[str, list[ScoredUnit]]:
    tasks: dict[str, list[ScoredUnit]] = {}
    for unit in scored:
        tasks.setdefault(unit.task, []).append(unit)
    return tasks

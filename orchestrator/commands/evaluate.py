"""What ``namm evaluate`` does: memories beside their rivals, or rivals alone, on any tasks and any model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any

from orchestrator import evaluation
from orchestrator.commands.contenders import Contender, contender_named, evaluate_rival
from orchestrator.config import RunConfig, config_from_dict, config_to_dict, load_config
from orchestrator.errors import InputError
from orchestrator.evaluation import EvaluationPlan, Result, ScoreUnits
from orchestrator.evolution import Progress, score_units
from orchestrator.files import read_json, require_output, write_atomic, write_json_atomic
from orchestrator.fleet import Fleet, fleet_for
from orchestrator.full_cache import scored_by
from orchestrator.journal import has_run, read_journal
from orchestrator.progress import Report, reporting
from orchestrator.readiness import require_layout, require_room
from orchestrator.report import TableRow, printed, tabulate
from orchestrator.run import evaluation_plan, evaluation_tasks, table_lengths, worker_recipe
from orchestrator.store import Store
from orchestrator.table_files import WRITERS, comma_separated, encoded, lm_eval_results, markdown
from orchestrator.terminal import Answer
from orchestrator.tracking import Tracker, check_tracking
from tasks.identity import data_digest
from tasks.task import Split
from workers.checksum import require_checksum
from workers.language_model import model_folder
from workers.memory.pretrained import PretrainedMemory
from workers.unit import ScoredUnit, Unit

DEFAULT_PRESET = "small"
DEFAULT_KEPT_RATIO = 0.25
SETTINGS, DOCUMENT = "evaluation-settings.json", "evaluation.json"
SETTINGS_VERSION = 2
"""Raised whenever the settings that a folder notes say more, or something else."""

KEPT_FORMATS = (".md", ".csv", ".parquet")
"""Forms of the table that a folder gets besides the document."""

FORMATS: Mapping[str, Callable[[Sequence[TableRow]], Any]] = {
    "table": printed,
    "markdown": lambda rows: markdown(rows).rstrip("\n"),
    "csv": lambda rows: comma_separated(rows).rstrip("\n"),
}
"""What is printed, by the value of ``--format``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be evaluated, and what becomes of it."""

    what: tuple[str, ...]
    """Folders of saved memories, run folders (their champions), and names of rivals."""
    preset: str | None = None
    """Whose model, tasks and cluster to use; None for the run's own, or ``small``."""
    overrides: tuple[str, ...] = ()
    """Texts like ``evaluation.lengths=[256,512]``."""
    kept_ratio: float | None = None
    """What is to be held in the end, of the tokens seen: by rivals alone (None for a quarter), or by memories, whose
    dials are turned for each length on training examples (None leaves them as they are)."""
    split: Split = "heldout"
    """Which examples are asked."""
    folder: Path | None = None
    """Where every scored unit is kept, so that an interrupted evaluation goes on, and MLflow is told of the result."""
    output: Path | None = None
    """A file to write the table to."""
    form: str = "table"
    """One of ``FORMATS``."""
    quiet: bool = False
    """Whether no progress is shown."""


def evaluate(request: Request) -> Answer:
    """Score memories, rivals and the full cache.

    Raises:
        NammError: the user can mend it.
        MemoryFileError: a memory cannot be read.
        ModelError: there is no such model.
        TaskError: a suite is not staged, or its files are not as they should be.
        PromptError: a prompt does not fit into the model's window.
    """
    contenders = _contenders(request.what)
    config = _settings(request)
    require_checksum(config.model, model_folder(config.model.path_or_id))
    for contender in contenders.values():
        if isinstance(contender, PretrainedMemory):
            require_layout(contender.spec.settings, config.model)
    plan = evaluation_plan(config, request.split)
    require_room(
        config.model,
        config.prompts,
        evaluation_tasks(config),
        {task: {request.split: examples} for task, examples in plan.examples.items()},
    )
    if request.output is not None:
        require_output(request.output, WRITERS)
    if request.folder is not None:
        _require_same_evaluation(request.folder, _identity(request, config, contenders))
    with ExitStack() as stack:
        tracker = stack.enter_context(_tracker(request, config)) if request.folder else None
        fleet = stack.enter_context(fleet_for(worker_recipe(config), config.cluster))
        report = stack.enter_context(reporting(0, sys.stderr, quiet=request.quiet))
        store = Store(request.folder) if request.folder else None
        score = score_on(fleet, report, store)
        results, thresholds = _evaluated(contenders, config, plan, request.kept_ratio, score)
        if store is not None:
            store.commit_units(plan.generation)
        table = tabulate(results, table_lengths(config))
        document = {
            "what": list(request.what),
            "model": config.model.path_or_id,
            "split": request.split,
            "table": [row.document() | {"seconds": row.seconds} for row in table],
            "results": [result.document() for result in results],
            "thresholds": thresholds,
        }
        _write(request, document, table)
        if tracker is not None and request.folder is not None:
            _show(tracker, table, request.folder)
    return Answer(document, [FORMATS[request.form](table)])


# --- what is evaluated ------------------------------------------------------------------------------------------------


def _evaluated(
    contenders: Mapping[str, Contender],
    config: RunConfig,
    plan: EvaluationPlan,
    kept_ratio: float | None,
    score: ScoreUnits,
) -> tuple[list[Result], dict[str, dict[str, Any]]]:
    """Results of all contenders, the full cache once; and where the dials of the memories stood, by task."""
    results: dict[tuple[str, str], Result] = {}
    thresholds: dict[str, dict[str, Any]] = {}
    lengths = table_lengths(config)
    for name, contender in contenders.items():
        if isinstance(contender, PretrainedMemory):
            for part, memory in _at_ratio(name, contender, kept_ratio, plan, lengths, score):
                found = evaluation.evaluate(memory, part, score, name=name)
                thresholds.setdefault(name, {}).update(dict.fromkeys(part.tasks, memory.spec.threshold))
                results |= {(result.name, result.task): result for result in found}
        else:
            ratio = DEFAULT_KEPT_RATIO if kept_ratio is None else kept_ratio
            found = evaluate_rival(contender, ratio, config.memory.update_every, plan, score)
            results |= {(result.name, result.task): result for result in found}
    return list(results.values()), thresholds


def _at_ratio(
    name: str,
    memory: PretrainedMemory,
    kept_ratio: float | None,
    plan: EvaluationPlan,
    lengths: Mapping[str, int | None],
    score: ScoreUnits,
) -> list[tuple[EvaluationPlan, PretrainedMemory]]:
    """The memory and the plan; with ``kept_ratio``, the memory as it is to be for each length, or task of a suite."""
    if kept_ratio is None:
        return [(plan, memory)]
    groups: dict[str | int, dict[str, tuple[int, ...]]] = {}
    for task, examples in plan.examples.items():
        groups.setdefault(lengths[task] or task, {})[task] = examples
    parts = [dataclasses.replace(plan, examples=examples) for examples in groups.values()]
    return [(part, evaluation.turn_dial(memory, kept_ratio, part, score, name)) for part in parts]


def _contenders(what: Sequence[str]) -> dict[str, Contender]:
    """Contenders by their names in tables: a lone memory is ``namm``, several are called after their folders."""
    found = {place: contender_named(place) for place in what}
    memories = [place for place, contender in found.items() if isinstance(contender, PretrainedMemory)]
    if len(memories) <= 1:
        names = dict.fromkeys(memories, evaluation.MEMORY)
    else:
        names = {place: _label(place) for place in memories}
    if len(set(names.values())) < len(memories):
        raise InputError(f"two memories would both be called {_label(memories[0])}: give their folders other names")
    return {names.get(place, place): contender for place, contender in found.items()}


def _label(place: str) -> str:
    parts = [part for part in PurePath(place).parts if part != "champion"]
    return re.sub("[^A-Za-z0-9_-]+", "-", parts[-1] if parts else place)


def _settings(request: Request) -> RunConfig:
    runs = [place for place in request.what if place not in evaluation.RIVALS and has_run(place)]
    if request.preset is None and runs:
        return config_from_dict(read_journal(runs[0]).attempts[-1].config, request.overrides)
    return load_config(request.preset or DEFAULT_PRESET, request.overrides)


# --- scoring ----------------------------------------------------------------------------------------------------------


def score_on(fleet: Fleet, report: Report, store: Store | None = None) -> ScoreUnits:
    """Scores units on ``fleet`` and returns them in the order given; each is scored once.

    Args:
        fleet: the workers.
        report: told after every unit.
        store: keeps what was scored, for a command that goes on later; None keeps it in this process.
    """
    known: dict[tuple[str, str, bytes], ScoredUnit] = {}

    def score(units: Sequence[Unit]) -> list[ScoredUnit]:
        if store is not None:
            return score_units(fleet, store, report, units)
        # Two memories may bear one name, like one memory at two settings of its dial.
        wanted = [(unit.key, repr(unit.memory), unit.genomes.tobytes()) for unit in units]
        missing = {unit.key: whole for unit, whole in zip(units, wanted, strict=True) if whole not in known}
        new = [unit for unit in units if unit.key in missing]
        for done, scored in enumerate(fleet.score(new), len(units) - len(new) + 1):
            known[missing[scored.key]] = scored
            report(Progress(generation=scored.generation, units_done=done, units_total=len(units)))
        return [known[whole] for whole in wanted]

    return score


# --- what is kept -----------------------------------------------------------------------------------------------------


def _identity(request: Request, config: RunConfig, contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """All that decides the scores; of the run's own memory only how often it updates, which rivals alone do as well."""
    settings = config_to_dict(config)
    keys = ("model", "prompts", "tasks", "examples", "evaluation", "seed")
    told = {
        name: contender
        if isinstance(contender, str)
        else hashlib.sha256(contender.genome.tobytes() + repr(contender.spec).encode()).hexdigest()
        for name, contender in contenders.items()
    }
    identity = {"version": SETTINGS_VERSION} | {key: settings[key] for key in keys}
    identity |= {"update_every": config.memory.update_every, "score": settings["fitness"]["score"]}
    identity |= {"contenders": told, "kept_ratio": request.kept_ratio, "split": request.split}
    identity |= {"data": {task.name: data_digest(task) for task in evaluation_tasks(config)}}
    plain: dict[str, Any] = json.loads(json.dumps(identity | scored_by(config.model)))
    return plain


def _require_same_evaluation(folder: Path, identity: Mapping[str, Any]) -> None:
    former = _former_identity(folder)
    if former is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"--folder {folder} holds something else: choose an empty or a new folder")
        write_json_atomic(folder / SETTINGS, identity)
    elif former.get("version") != identity["version"]:
        raise InputError(
            f"--folder {folder} holds an evaluation of another version of this program, which did not note all that "
            "decides the scores: choose another folder"
        )
    elif former != identity:
        changed = ", ".join(key for key in identity if former.get(key) != identity[key])
        raise InputError(f"--folder {folder} holds an evaluation with other {changed}: choose another folder")


def _former_identity(folder: Path) -> dict[str, Any] | None:
    """What an earlier evaluation noted in a folder; None where there was none."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--folder {folder} is a file: name a folder")
    try:
        former = read_json(folder / SETTINGS)
        if former is not None and not isinstance(former, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--folder {folder}: its {SETTINGS} cannot be read ({error}): choose another folder"
        ) from error
    return former


def _write(request: Request, document: Mapping[str, Any], table: Sequence[TableRow]) -> None:
    if request.output is not None:
        write_atomic(request.output, encoded(request.output, document, table))
    if request.folder is not None:
        for suffix in KEPT_FORMATS:
            path = request.folder / f"table{suffix}"
            write_atomic(path, encoded(path, document, table))
        for name, results in lm_eval_results(table, document["model"]).items():
            write_json_atomic(request.folder / f"lm_eval-{name}.json", results)
        write_json_atomic(request.folder / DOCUMENT, document)


def _tracker(request: Request, config: RunConfig) -> Tracker:
    assert request.folder is not None
    check_tracking(config.tracking)
    params = {"model": config.model.path_or_id, "split": request.split, "what": " ".join(request.what)}
    return Tracker(config.tracking, request.folder.resolve().name, request.folder, params, {"kind": "evaluation"})


def _show(tracker: Tracker, table: Sequence[TableRow], folder: Path) -> None:
    """Each row's figures as metrics ``task/memory/figure``, and the files."""
    stamp = (folder / DOCUMENT).stat().st_mtime_ns // 1_000_000
    for row in table:
        group = f"{row.task or f'generated-{row.length}'}/{row.name}"
        tracker.log_metrics(0, {f"{group}/ratio": row.ratio, f"{group}/kept_ratio": row.kept_ratio}, stamp)
    for name in (DOCUMENT, *(f"table{suffix}" for suffix in KEPT_FORMATS)):
        tracker.log_artifact(folder / name)

"""A whole run: build its parts, evolve, save the champion, compare it with the rivals, write the summary."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestrator import data_record
from orchestrator.analysis.store_readme import store_readme
from orchestrator.config import RunConfig, UnitSettings, config_hash, config_to_dict
from orchestrator.data_record import require_same_data
from orchestrator.driver_lock import require_no_driver
from orchestrator.errors import ConfigError
from orchestrator.evaluation import EvaluationPlan, evaluate
from orchestrator.evolution import Evolved, Parts, Progress, evolve, score_units
from orchestrator.files import json_bytes, write_atomic, write_json_atomic
from orchestrator.fleet import Fleet, fleet_for
from orchestrator.full_cache import FullCacheLibrary
from orchestrator.journal import Journal, has_run, read_journal, require_same_run
from orchestrator.provenance import best_rivals, origin_of
from orchestrator.readiness import available, require_layout, require_pool, require_room
from orchestrator.report import TableRow, tabulate
from orchestrator.search import Search
from orchestrator.storage import Folder, LocalFolder, Place, folder_at, local_copy
from orchestrator.store import TABLES, Store
from orchestrator.tracked import Pictures, log_surroundings, log_tasks, tracked_settings
from orchestrator.tracking import Tracker, check_tracking
from tasks.identity import data_digest
from tasks.registry import SIZED, SuiteTaskSettings, TaskSettings
from tasks.task import Split
from workers.checksum import require_checksum
from workers.evaluator import EvaluatorRecipe
from workers.language_model import model_folder
from workers.memory.errors import MemoryFileError
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSpec
from workers.warm_start import warm_start

SUMMARY, CHAMPION, WARM_START, REPORT = "summary.json", "champion", "warm-start", "report.html"
SUMMARY_VERSION = 1
CONTROL_EXAMPLES = 16
"""Training examples on which the control's head is chosen."""

_logger = logging.getLogger(__name__)


def run(
    config: RunConfig, place: Place, report: Callable[[Progress], None], *, takeover: bool = False
) -> dict[str, Any]:
    """Evolve in ``folder``, or go on there, up to the last generation; returns the summary that is written there.

    Args:
        config: the settings.
        place: path or address of the run folder.
        report: called after every unit and every generation.
        takeover: go on although another driver may still be at work there.

    Raises:
        DrainedError: SIGTERM came; what was in flight is stored.
        NammError: the user can mend it; nothing is written that was not there before, or all of it is whole.
    """
    seconds: dict[str, float] = {}
    folder = folder_at(place)
    initial = check(config, folder, takeover=takeover)
    # Made, and asked, before anything is written, because an optimizer may be refused, or find nothing to propose.
    search = Search(config.search, config.memory.genome_size, config.seed, initial)
    search.ask()
    with ExitStack() as stack:
        with _timed(seconds, "start"):
            fleet = stack.enter_context(fleet_for(worker_recipe(config), config.cluster, folder.name))
            stack.enter_context(_draining_at_sigterm(fleet))
            fleet.show({"cluster/generations": float(_generations_done(folder))})
            if not has_run(folder):  # a folder in which no worker can work is to stay free for other settings
                fleet.wait_for_a_worker()
            journal = stack.enter_context(_open_journal(config, folder, takeover=takeover))
            folder = journal.folder  # from here on nothing is written once another driver has opened the run
            tracker = stack.enter_context(_tracker(config, folder, journal))
            pictures = _pictures(config, folder, tracker)
            if pictures is not None:
                stack.enter_context(pictures)
        _describe(config, folder, tracker)
        for record in journal.generations():  # a driver that was killed may have committed what it did not log
            tracker.log_metrics(record.generation, record.metrics, record.timestamp_ms)
        with _timed(seconds, "warm start"):
            if config.search.warm_start:
                fitted = warm_genome(config, folder)
                search = Search(config.search, config.memory.genome_size, config.seed, fitted)
        parts = Parts(
            config=config,
            fleet=fleet,
            store=Store(folder),
            journal=journal,
            search=search,
            report=_with_tracking(report, tracker, pictures),
            library=FullCacheLibrary.beside(folder, config),
        )
        with _timed(seconds, "evolve"):
            evolved = evolve(parts)
            if pictures is not None:
                pictures.draw_waiting()
            champion = PretrainedMemory(evolved.spec, evolved.genome, origin_of(config, evolved.population_hash))
            save_champion(folder, champion)
        with _timed(seconds, "evaluate"):
            summary, table = summarise(parts, evolved, champion)
            champion = dataclasses.replace(champion, origin={**champion.origin, "table": best_rivals(table)})
            save_champion(folder, champion)
        with _timed(seconds, "report"):
            page = _report(config, folder)
        summary |= {"seconds": seconds | _seconds_by_part(journal), "mlflow": tracker.address}
        folder.write(SUMMARY, json_bytes(summary))
        _hand_out(tracker, _laid_out(config, folder, champion, summary, page), has_report=page is not None)
    return summary


def _describe(config: RunConfig, folder: Folder, tracker: Tracker) -> None:
    """Put down what the run is about: its data, what its tables mean, and what it runs on."""
    data = data_record.describe([*config.tasks, *evaluation_tasks(config)])
    data_record.keep(folder, data)
    folder.write(f"{TABLES}/README.md", store_readme().encode())
    log_tasks(data, config.tasks, evaluation_tasks(config), tracker)
    if config.tracking.enabled:
        log_surroundings(config, tracker, folder.desk / "tracking")


def _hand_out(tracker: Tracker, desk: Path, *, has_report: bool) -> None:
    """Give MLflow what the run ends with."""
    tracker.log_artifact(desk / SUMMARY)
    if has_report:
        tracker.log_artifact(desk / REPORT)
    tracker.register_champion(desk / CHAMPION)


def check(config: RunConfig, folder: Folder, *, takeover: bool = False) -> Any:
    """Everything that can be found wrong before a process starts or a file is written; returns the initial genome."""
    require_checksum(config.model, model_folder(config.model.path_or_id))
    if not takeover:
        require_no_driver(folder)
    require_same_run(folder, config_hash(config), config_to_dict(config))
    _require_generations_to_come(config, folder)
    require_layout(config.memory, config.model)
    _require_warm_start(config)
    require_same_data(folder, data_record.describe(config.tasks))
    _require_examples(config)
    folder.require_writable()
    check_tracking(config.tracking)
    if config.search.initial_genome is None:
        return None
    memory = PretrainedMemory.from_pretrained(config.search.initial_genome)
    if memory.spec.settings.genome_size != config.memory.genome_size:
        raise MemoryFileError(
            f"search.initial_genome: {config.search.initial_genome} has a genome of "
            f"{memory.spec.settings.genome_size} numbers, this run's memory needs {config.memory.genome_size}: "
            "use the memory settings that it was evolved with"
        )
    return memory.genome


def _require_examples(config: RunConfig) -> None:
    require_pool(config.tasks, config.examples.pool)
    heldout = available(evaluation_tasks(config), "heldout", config.examples.heldout)
    wanted: dict[str, dict[Split, Sequence[int]]] = {name: {"heldout": examples} for name, examples in heldout.items()}
    for task in config.tasks:
        wanted.setdefault(task.name, {})["train"] = range(config.examples.pool)
    tasks = {task.name: task for task in (*config.tasks, *evaluation_tasks(config))}
    require_room(config.model, config.prompts, tasks.values(), wanted)


def _require_generations_to_come(config: RunConfig, folder: Folder) -> None:
    """The memory of an earlier generation cannot be had any more: the search has gone on since."""
    done = _generations_done(folder)
    if config.search.generations < done:
        raise ConfigError(
            f"search.generations is {config.search.generations}, but the run in {folder} has {done} already: "
            f"ask for at least {done}, or start a new run folder"
        )


def _require_warm_start(config: RunConfig) -> None:
    """The driver fits the first genome itself, on its CPU: it may be where no accelerator is."""
    if config.search.warm_start is None:
        return
    if config.model.quantization is not None:
        raise ConfigError(
            f"search.warm_start needs a model that the driver can load on its CPU, and model.quantization is "
            f"{config.model.quantization}: leave one of the two out"
        )
    completed = [task.name for task in config.tasks if isinstance(task, SuiteTaskSettings)]
    if completed:
        raise ConfigError(f"search.warm_start needs tasks with questions, {completed[0]} has completions: leave it out")


def _generations_done(folder: Folder) -> int:
    return len(read_journal(folder).generations) if has_run(folder) else 0


def worker_recipe(config: RunConfig) -> EvaluatorRecipe:
    """What every worker loads: the model, the tasks of the fitness, and the same tasks at the lengths of the table."""
    tasks = {task.name: task for task in (*config.tasks, *evaluation_tasks(config))}
    digests = {name: data_digest(task) for name, task in tasks.items()}
    return EvaluatorRecipe(model=config.model, tasks=tuple(tasks.values()), prompts=config.prompts, digests=digests)


def evaluation_tasks(config: RunConfig) -> list[TaskSettings]:
    """The run's tasks, those of generated documents at each length of the table."""
    tasks = {
        resized.name: resized
        for length in config.evaluation.lengths
        for task in config.tasks
        for resized in [dataclasses.replace(task, length=length) if isinstance(task, SIZED) else task]
    }
    return list(tasks.values())


def table_lengths(config: RunConfig) -> dict[str, int | None]:
    """Document length of each task of the table; None where examples differ."""
    return {task.name: task.length if isinstance(task, SIZED) else None for task in evaluation_tasks(config)}


def evaluation_plan(config: RunConfig, split: Split = "heldout") -> EvaluationPlan:
    """What the table compares, and on which examples."""
    return EvaluationPlan(
        generation=config.search.generations,
        examples=available(evaluation_tasks(config), split, config.examples.heldout),
        split=split,
        control_examples=tuple(range(min(CONTROL_EXAMPLES, config.examples.pool))),
        rivals=config.evaluation.rivals,
        units=UnitSettings(candidates_per_unit=1, examples_per_unit=config.evaluation.examples_per_unit),
        seed=config.seed,
        score=config.fitness.score,
    )


def warm_genome(config: RunConfig, folder: Folder) -> Any:
    """The genome that the search starts from: fitted once, and then kept with the run, whoever goes on with it."""
    if not folder.exists(f"{WARM_START}/config.json"):
        assert config.search.warm_start is not None
        from orchestrator.run_report import on_this_machine

        recipe = worker_recipe(config)
        evaluator = dataclasses.replace(recipe, model=on_this_machine(recipe.model)).build()
        found = warm_start(evaluator, config.tasks_at(0), config.memory, config.search.warm_start, config.seed)
        spec = NammSpec(settings=config.memory, normalisation=found.normalisation)
        story = {"model": config.model.path_or_id, "warm_start": {"agreement": found.agreement}}
        save_memory(folder, WARM_START, PretrainedMemory(spec, found.genome, story))
    with local_copy(folder.within(WARM_START)) as path:
        return PretrainedMemory.from_pretrained(path).genome


def save_champion(folder: Folder, memory: PretrainedMemory) -> None:
    """Write the mean genome as a memory that others can load, with its card."""
    save_memory(folder, CHAMPION, memory)


def save_memory(folder: Folder, name: str, memory: PretrainedMemory) -> None:
    """Write a memory that others can load, with its card, to the folder ``name`` of a run."""
    with tempfile.TemporaryDirectory() as saved:
        memory.save_pretrained(saved)
        # The genome first: whoever finds config.json finds a whole memory.
        for path in sorted(Path(saved).iterdir(), key=lambda path: path.name == "config.json"):
            folder.write(f"{name}/{path.name}", path.read_bytes())


def summarise(parts: Parts, evolved: Evolved, champion: PretrainedMemory) -> tuple[dict[str, Any], list[TableRow]]:
    """Score the champion, the full cache and the rivals on held-out examples; the summary, and the table in it."""
    config, plan = parts.config, evaluation_plan(parts.config)
    results = evaluate(champion, plan, lambda units: score_units(parts.fleet, parts.store, parts.report, units))
    parts.store.commit_units(plan.generation)
    table = tabulate(results, table_lengths(config))
    summary = {
        "version": SUMMARY_VERSION,
        "model": config.model.path_or_id,
        "generations": config.search.generations,
        "evaluation": config_to_dict(config)["evaluation"],
        "seed": config.seed,
        "config_hash": config_hash(config),
        "population_hash": evolved.population_hash,
        "genome_sha256": hashlib.sha256(champion.genome.tobytes()).hexdigest(),
        "table": [row.document() for row in table],
        "results": [result.document() for result in results],
    }
    return summary, table


def _open_journal(config: RunConfig, folder: Folder, *, takeover: bool) -> Journal:
    return Journal.open(folder, config_hash(config), config_to_dict(config), takeover=takeover)


def _report(config: RunConfig, folder: Folder) -> bytes | None:
    """Make the page about the run; whatever goes wrong there, the run is as good as without it."""
    if not config.report.enabled:
        return None
    try:
        from orchestrator.run_report import is_small, make_report, on_this_machine

        model = on_this_machine(config.model)
        page = make_report(folder, trace="always" if is_small(model) else "never", model=model).encode()
        folder.write(REPORT, page)
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        _logger.warning("the report was not made (%s); mend that, then: namm report %s", told, folder)
        return None
    return page


def _laid_out(
    config: RunConfig, folder: Folder, champion: PretrainedMemory, summary: dict[str, Any], page: bytes | None
) -> Path:
    """Where this machine has the files that MLflow is to show: those of the run folder, or copies."""
    if config.tracking.enabled and not isinstance(folder, LocalFolder):
        champion.save_pretrained(folder.desk / CHAMPION)
        write_json_atomic(folder.desk / SUMMARY, summary)
        if page is not None:
            write_atomic(folder.desk / REPORT, page)
    return folder.desk


def _pictures(config: RunConfig, folder: Folder, tracker: Tracker) -> Pictures | None:
    """Pictures for MLflow; drawn from tables through a store of their own, because a store is for one thread."""
    if not config.tracking.enabled:
        return None
    return Pictures(config, Store(folder), tracker, folder.desk / "tracking" / "pictures")


def _tracker(config: RunConfig, folder: Folder, journal: Journal) -> Tracker:
    return Tracker(
        config.tracking,
        run_name=folder.name,
        # The outbox of a run on an object store stays on this machine: it holds nothing that the journal cannot give
        # again. ``run_id`` finds the run in MLflow from whichever machine goes on.
        run_folder=folder.desk,
        tracking_id=journal.run_id,
        **tracked_settings(config, str(folder), journal.attempt),
    )


def _with_tracking(
    report: Callable[[Progress], None], tracker: Tracker, pictures: Pictures | None
) -> Callable[[Progress], None]:
    def both(progress: Progress) -> None:
        if progress.record is not None:
            tracker.log_metrics(progress.record.generation, progress.record.metrics, progress.record.timestamp_ms)
            if pictures is not None:
                pictures.take(progress.record)
        report(progress)

    return both


def _seconds_by_part(journal: Journal) -> dict[str, float]:
    """Sums over the generations, by what was being done."""
    totals: dict[str, float] = {}
    for record in journal.generations():
        for part, value in record.seconds.items():
            totals[f"generations/{part}"] = totals.get(f"generations/{part}", 0.0) + value
    return totals


@contextmanager
def _draining_at_sigterm(fleet: Fleet) -> Iterator[None]:
    """Let SIGTERM, which machines send some time before they go, drain the fleet; a second one ends the program."""
    former = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or former is None:
        yield
        return

    def drain(*_: object) -> None:
        fleet.drain()
        signal.signal(signal.SIGTERM, former)

    signal.signal(signal.SIGTERM, drain)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[part] = time.monotonic() - started

"""What ``namm status`` says: where a run stands at this moment, from its folder alone.

Nothing is asked of the driver, its cluster or MLflow, so the answer is the same on every machine that sees the run
folder, while the run is alive and after it. Workers, deaths, retries and speed are those of the last finished
generation, because that is what the journal knows.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.config import RunConfig, config_from_dict, config_to_dict
from orchestrator.driver_lock import driver_in
from orchestrator.history import Attempt, GenerationRecord, JournalContents, read_journal
from orchestrator.progress import RECENT_GENERATIONS, Standing, clock
from orchestrator.storage import Folder, Place, folder_at
from orchestrator.store import Store
from orchestrator.terminal import Answer, facts, installed_command
from orchestrator.units import num_units
from workers.unit import FULL_CACHE_PASS

HAS_ENDED = ("finished", "stopped", "dead")
"""States in which nobody is at work on a run."""

SUMMARY = "summary.json"
_EVOLVING = re.compile(r"g\d+_namm_.+_train_e\d")
"""In the names of units of candidates; in those of an evaluation the memory or the split is another."""


def status(place: Place) -> Answer:
    """Say where a run stands.

    Args:
        place: path or address of the run folder.

    Raises:
        RunFolderError: there is no run, a damaged one, or one of another version.
    """
    document = standing(place)
    return Answer(document, [facts(standing_pairs(document))])


def standing(place: Place, contents: JournalContents | None = None) -> dict[str, Any]:
    """Where a run stands, as JSON has it; ``contents`` is its journal where that was read already."""
    folder = folder_at(place)
    contents = contents or read_journal(folder)
    driver, generations = driver_in(contents), contents.generations
    config = config_from_dict(contents.attempts[-1].config)
    part, units_done, units_total = _part(folder, config, len(generations), is_closed=driver is None)
    return {
        "folder": str(folder),
        "state": driver.state if driver else "finished" if part == "done" else "stopped",
        "driver": dataclasses.asdict(driver) if driver else None,
        "attempts": [_told(attempt) for attempt in contents.attempts],
        "generations": config.search.generations,
        "generations_done": len(generations),
        "last_generation_ms": generations[-1].timestamp_ms if generations else None,
        "part": part,
        "units_done": units_done,
        "units_total": units_total,
        **_cluster(contents),
        "seconds_left": _seconds_left(config, generations, units_done / units_total if units_total else 0.0),
    }


def standing_pairs(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a run stands, as a person reads it."""
    return [
        ("run", run["folder"]),
        ("generations", _generations(run)),
        ("now", _now(run)),
        ("driver", _driver(run)),
        ("attempts", _attempts(run["attempts"])),
        ("workers", _workers(run)),
    ]


# --- what is known ----------------------------------------------------------------------------------------------------


def _part(folder: Folder, config: RunConfig, done: int, *, is_closed: bool) -> tuple[str, int, int | None]:
    """What is being done, or would be next: its name, its units on disk, and how many there are if that is known."""
    if done >= config.search.generations:
        if is_closed and _is_summarised(folder, config):
            return "done", 0, None
        return "evaluation", _num_staged(folder, config.search.generations, evolving=False), None
    tasks = len(config.tasks_at(done))
    joining = tasks - (len(config.tasks_at(done - 1)) if done else 0)
    staged = _num_staged(folder, FULL_CACHE_PASS, evolving=False) if joining else 0
    # Of the first pass nothing may be there yet; of one for tasks that join, units are until it has ended.
    if (staged and done) or (done == 0 and FULL_CACHE_PASS not in Store(folder).generations("units")):
        return "full cache", staged, num_units(joining, 1, config.examples.pool, config.units)
    total = num_units(tasks, config.search.population, config.examples.per_generation, config.units)
    return "generation", min(total, _num_staged(folder, done, evolving=True)), total


def _is_summarised(folder: Folder, config: RunConfig) -> bool:
    """Whether the summary is of this end of the run: one that goes on keeps its former one until the new is there."""
    if not folder.exists(SUMMARY):
        return False
    try:
        summary = json.loads(folder.read(SUMMARY))
        evaluation = config_to_dict(config)["evaluation"]
        return bool(
            summary["generations"] == config.search.generations
            and summary.get("evaluation", evaluation) == evaluation  # those of before do not tell
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return False  # damaged: to resume the run writes it again


def _num_staged(folder: Folder, generation: int, *, evolving: bool) -> int:
    """Units of a generation that are on disk and not yet in its tables; counted by name, none is read.

    An evaluation of finished memories stands under the generation after the last, which a run that goes on evolves.
    """
    names = folder.names("units", prefix=f"g{generation:06d}_")
    return sum(bool(_EVOLVING.search(name)) == evolving for name in names)


def _cluster(contents: JournalContents) -> dict[str, float | None]:
    """Workers and speed of the last generation; losses of all drivers together, who each count from 0."""
    last = contents.generations[-1].metrics if contents.generations else {}
    of_driver: dict[int, GenerationRecord] = {}  # the last generation of each attempt
    for record in contents.generations:
        earlier = [one.attempt for one in contents.attempts if one.inherits <= record.generation]
        of_driver[earlier[-1]] = record
    losses = {
        name: int(sum(record.metrics[f"cluster/{name}"] for record in of_driver.values()))
        for name in ("deaths", "retries")
    }
    workers, speed = last.get("cluster/workers"), last.get("cluster/units_per_second")
    return {"workers": None if workers is None else int(workers), **losses, "units_per_second": speed}


def _seconds_left(config: RunConfig, records: Sequence[GenerationRecord], part_done: float) -> float | None:
    """For the generations to come; None before the first has shown how long one takes."""
    if not records:
        return None
    known = Standing(config.search.generations)
    for record in records[-RECENT_GENERATIONS:]:
        known.take(record)
    return known.seconds_left(records[-1], part_done)


def _told(attempt: Attempt) -> dict[str, Any]:
    return {name: getattr(attempt, name) for name in ("attempt", "host", "pid", "opened_ms")}


# --- what is said -----------------------------------------------------------------------------------------------------


def _generations(run: Mapping[str, Any]) -> str:
    done, total = run["generations_done"], run["generations"]
    if not done:
        return f"none of {total} yet"
    ago = clock(max(0.0, time.time() - run["last_generation_ms"] / 1000))
    evaluated = ", evaluated" if run["state"] == "finished" else ""
    return f"{done} of {total}{evaluated}; the last one ended {ago} ago"


def _now(run: Mapping[str, Any]) -> str:
    if run["state"] == "finished":
        return "finished"
    name = f"generation {run['generations_done'] + 1}" if run["part"] == "generation" else run["part"]
    of = "" if run["units_total"] is None else f" of {run['units_total']}"
    left = "" if not run["seconds_left"] else f", about {clock(run['seconds_left'])} left for the generations"
    if run["state"] in HAS_ENDED:
        resume = f"{installed_command('namm')} resume {run['folder']}"
        return f"interrupted in {name}, {run['units_done']}{of} units are safe; go on with: {resume}"
    return f"{name}: {run['units_done']}{of} units{left}"


def _driver(run: Mapping[str, Any]) -> str:
    driver = run["driver"]
    if driver is None:
        return "none: the run was closed"
    return f"pid {driver['pid']} on {driver['host']} is {driver['state']}"


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> str:
    began = datetime.fromtimestamp(attempts[-1]["opened_ms"] / 1000).isoformat(sep=" ", timespec="seconds")
    return f"{len(attempts)}, the last one since {began}"


def _workers(run: Mapping[str, Any]) -> str:
    if run["workers"] is None:
        return "not known before the first generation has ended"
    return (
        f"{run['workers']}, {run['units_per_second']:.1f} units/s in the last generation; "
        f"{run['deaths']} lost and {run['retries']} units sent again so far"
    )

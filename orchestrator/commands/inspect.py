"""What ``namm inspect`` says of a run, also while it is alive, or of a saved memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from orchestrator.driver_lock import driver_of
from orchestrator.errors import InputError
from orchestrator.journal import JOURNAL_NAME, GenerationRecord, read_journal
from orchestrator.presets import flatten
from orchestrator.progress import clock
from orchestrator.terminal import Answer, facts, grid, spark_line
from orchestrator.tracking_server import without_credentials

if TYPE_CHECKING:  # knows torch, which takes seconds to import and is not needed to look at a run
    from workers.memory.specs import Normalisation

TOLD = ("seed", "model.path_or_id", "memory", "tasks", "examples", "search", "fitness", "units", "cluster", "tracking")
"""Settings and sections that are told; all of them are in the journal."""

CURVES = {
    "best fitness": "fitness/best",
    "mean fitness": "fitness/mean",
    "kept ratio": "cache/kept_ratio_mean",
}
"""What is drawn over the generations, and the metric behind it."""


def inspect(what: str) -> Answer:
    """Look at a run folder or a saved memory.

    Raises:
        InputError: there is neither.
        RunFolderError: the run is damaged or of another version.
        MemoryFileError: the memory is.
    """
    folder = Path(what)
    if (folder / JOURNAL_NAME).is_file():
        return inspect_run(folder)
    if (folder / "config.json").is_file():
        return inspect_memory(folder)
    raise InputError(
        f"neither a run nor a saved memory is at {what}: name a folder that holds {JOURNAL_NAME} (a run), "
        "or config.json and model.safetensors (a memory)"
    )


# --- a run ------------------------------------------------------------------------------------------------------------


def inspect_run(folder: Path) -> Answer:
    """Where a run stands, from its journal alone."""
    contents = read_journal(folder)
    config, generations, driver = contents.attempts[-1].config, contents.generations, driver_of(folder)
    document = {
        "kind": "run",
        "folder": str(folder),
        "settings": {key: _without_secrets(value) for key, value in flatten(config).items() if _is_told(key)},
        "config_hash": contents.attempts[-1].config_hash,
        "attempts": [_attempt(dataclasses.asdict(attempt)) for attempt in contents.attempts],
        "driver": driver and dataclasses.asdict(driver),
        "generations": config["search"]["generations"],
        "generations_done": len(generations),
        "last_generation_ms": generations[-1].timestamp_ms if generations else None,
        "curves": {metric: [record.metrics[metric] for record in generations] for metric in CURVES.values()},
        "metrics": generations[-1].metrics if generations else {},
        "seconds": seconds_by_part(generations),
        "population_hash": generations[-1].population_hash if generations else None,
        "champion": _if_there(folder / "champion"),
        "summary": _if_there(folder / "summary.json"),
    }
    return Answer(document, [*_run_parts(document), "", *_settings(document["settings"])])


def seconds_by_part(generations: Sequence[GenerationRecord]) -> dict[str, float]:
    """Wall-clock time of all generations together, by what was being done."""
    parts = dict.fromkeys(part for record in generations for part in record.seconds)
    return {part: sum(record.seconds.get(part, 0.0) for record in generations) for part in parts}


def _run_parts(run: Mapping[str, Any]) -> list[RenderableType]:
    pairs = [
        ("run", run["folder"]),
        ("generations", _generations(run)),
        ("driver", _driver(run["driver"])),
        ("attempts", _attempts(run["attempts"])),
    ]
    pairs += [(name, _curve(run["curves"][metric])) for name, metric in CURVES.items() if run["curves"][metric]]
    pairs += [
        ("seconds", ", ".join(f"{part} {seconds:.1f}" for part, seconds in run["seconds"].items()) or "none yet"),
        ("champion", run["champion"] or "none yet: it is written after the last generation"),
        ("population", run["population_hash"] or "none yet"),
    ]
    return [facts(pairs)]


def _generations(run: Mapping[str, Any]) -> str:
    done, total = run["generations_done"], run["generations"]
    if not done:
        return f"none of {total} yet"
    ago = clock(max(0.0, time.time() - run["last_generation_ms"] / 1000))
    finished = ", evaluated" if run["summary"] and done >= total else ""
    return f"{done} of {total}{finished}; the last one ended {ago} ago"


def _driver(driver: Mapping[str, Any] | None) -> str:
    if driver is None:
        return "none: the run was closed"
    return f"pid {driver['pid']} on {driver['host']} is {driver['state']}"


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> str:
    began = datetime.fromtimestamp(attempts[-1]["opened_ms"] / 1000).isoformat(sep=" ", timespec="seconds")
    return f"{len(attempts)}, the last one since {began}"


def _curve(values: Sequence[float]) -> str:
    return f"{spark_line(values)}  {values[0]:.3f} to {values[-1]:.3f}"


def _attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {key: attempt[key] for key in ("attempt", "host", "pid", "opened_ms")}


def _is_told(key: str) -> bool:
    return any(key == told or key.startswith(f"{told}.") for told in TOLD)


def _without_secrets(value: Any) -> Any:
    return without_credentials(value) if isinstance(value, str) else value


def _if_there(path: Path) -> str | None:
    return str(path) if path.exists() else None


# --- a memory ---------------------------------------------------------------------------------------------------------


def inspect_memory(folder: Path) -> Answer:
    """What a saved memory is and where it came from."""
    from workers.memory.pretrained import PretrainedMemory

    memory = PretrainedMemory.from_pretrained(folder)
    document: dict[str, Any] = {
        "kind": "memory",
        "folder": str(folder),
        "settings": dataclasses.asdict(memory.spec.settings),
        "genome_size": len(memory.genome),
        "genome_norm": float((memory.genome.astype(float) ** 2).sum() ** 0.5),
        "genome_sha256": hashlib.sha256(memory.genome.tobytes()).hexdigest(),
        "normalisation_sha256": normalisation_hash(memory.spec.normalisation),
        "origin": dict(memory.origin),
    }
    pairs = [
        ("memory", str(folder)),
        ("genome", f"{document['genome_size']:,} numbers, norm {document['genome_norm']:.3f}"),
        ("genome sha256", document["genome_sha256"]),
        ("normalisation", document["normalisation_sha256"] or "none: raw features"),
        *((f"origin: {key}", _shown(value)) for key, value in memory.origin.items()),
    ]
    return Answer(document, [facts(pairs), "", *_settings(document["settings"])])


def normalisation_hash(normalisation: Normalisation | None) -> str | None:
    """SHA-256 (hex) of the means and variances as JSON writes them, ``[[…], […]]``; None without any."""
    if normalisation is None:
        return None
    return hashlib.sha256(json.dumps([normalisation.mean, normalisation.variance]).encode()).hexdigest()


def _settings(settings: Mapping[str, Any]) -> list[RenderableType]:
    return [grid(("setting", "value"), [(key, _shown(value)) for key, value in settings.items()], left=2)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""What ``namm inspect`` says of a run, also while it is alive, or of a saved memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.journal import JOURNAL_NAME, GenerationRecord, JournalContents, read_journal
from orchestrator.presets import flatten
from orchestrator.progress import clock
from orchestrator.terminal import Answer, grid, spark_line

if TYPE_CHECKING:  # knows torch, which takes a second and is not needed to look at a run
    from workers.memory.specs import Normalisation

CHAMPION, SUMMARY = "champion", "summary.json"

TOLD = (
    "model.path_or_id",
    "tasks",
    "memory",
    "examples",
    "search",
    "fitness",
    "units",
    "cluster.address",
    "cluster.workers",
    "tracking.uri",
)
"""Settings that matter to a reader; sections are told whole. All of them are in the journal."""


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
        f"neither a run nor a saved memory is at {what}: name a folder that holds {JOURNAL_NAME} (a run) "
        "or config.json and model.safetensors (a memory)"
    )


def inspect_run(folder: Path) -> Answer:
    """Where a run stands, from its journal alone."""
    contents = read_journal(folder)
    attempt = contents.attempts[-1]
    last = contents.generations[-1] if contents.generations else None
    settings = {key: value for key, value in flatten(attempt.config).items() if _is_told(key)}
    document = {
        "kind": "run",
        "folder": str(folder),
        "seed": attempt.config["seed"],
        "settings": settings,
        "attempts": [
            {key: getattr(one, key) for key in ("attempt", "host", "pid", "opened_ms")} for one in contents.attempts
        ],
        "generations_done": len(contents.generations),
        "generations": attempt.config["search"]["generations"],
        "curves": _curves(contents),
        "metrics": last.metrics if last else {},
        "seconds": seconds_by_part(contents.generations),
        "last_generation_ms": last.timestamp_ms if last else None,
        "population_hash": last.population_hash if last else None,
        "config_hash": attempt.config_hash,
        "champion": _existing(folder / CHAMPION),
        "summary": _existing(folder / SUMMARY),
    }
    return Answer(document, [_run_lines(document), *_curve_lines(document["curves"]), _settings_table(settings)])


def inspect_memory(folder: Path) -> Answer:
    """What a saved memory is and where it came from."""
    from workers.memory.pretrained import PretrainedMemory

    memory = PretrainedMemory.from_pretrained(folder)
    settings = {entry: getattr(memory.spec.settings, entry) for entry in memory.spec.settings.__slots__}
    genome = memory.genome.astype(float)
    document = {
        "kind": "memory",
        "folder": str(folder),
        "settings": settings,
        "genome_size": int(genome.size),
        "genome_norm": float((genome**2).sum() ** 0.5),
        "genome_sha256": hashlib.sha256(memory.genome.tobytes()).hexdigest(),
        "normalisation_sha256": normalisation_hash(memory.spec.normalisation),
        "origin": dict(memory.origin),
    }
    facts = [
        ("memory", str(folder)),
        ("genome", f"{genome.size:,} numbers of norm {document['genome_norm']:.3f}, sha256 {document['genome_sha256']}"),
        ("normalisation", f"sha256 {document['normalisation_sha256']}" if memory.spec.normalisation else "none: raw features"),
    ]
    facts += [(f"origin: {key}", _shown(value)) for key, value in memory.origin.items()]
    return Answer(document, [grid(("", ""), facts, left=2), _settings_table(settings)])


def normalisation_hash(normalisation: Normalisation | None) -> str | None:
    """SHA-256 (hex) of the statistics: the means, then the variances, as JSON writes them; None without any."""
    if normalisation is None:
        return None
    return hashlib.sha256(json.dumps([normalisation.mean, normalisation.variance]).encode()).hexdigest()


def seconds_by_part(generations: tuple[GenerationRecord, ...]) -> dict[str, float]:
    """Wall-clock time of all generations together, by what was being done."""
    totals: dict[str, float] = {}
    for record in generations:
        for part, seconds in record.seconds.items():
            totals[part] = totals.get(part, 0.0) + seconds
    return totals

"""What ``namm inspect`` says: all of a run, also while it is alive, or of a saved memory.

Of a run it says what ``namm status`` does, and what the run is and how it came there: settings, curves, hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from orchestrator.commands.status import standing, standing_pairs
from orchestrator.credentials import without_credentials
from orchestrator.errors import InputError
from orchestrator.journal import JOURNAL_NAME, GenerationRecord, has_run, read_journal
from orchestrator.presets import flatten
from orchestrator.storage import Folder, Place, folder_at, local_copy
from orchestrator.terminal import Answer, facts, grid, spark_line

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
    folder = folder_at(what)
    if has_run(folder):
        return inspect_run(folder)
    if folder.exists("config.json"):
        return inspect_memory(folder)
    raise InputError(
        f"neither a run nor a saved memory is at {what}: name a folder that holds {JOURNAL_NAME}/ (a run), "
        "or config.json and model.safetensors (a memory)"
    )


# --- a run ------------------------------------------------------------------------------------------------------------


def inspect_run(place: Place) -> Answer:
    """A run, from its folder alone."""
    folder = folder_at(place)
    contents = read_journal(folder)
    config, generations = contents.attempts[-1].config, contents.generations
    document = {
        "kind": "run",
        **standing(folder, contents),
        "settings": {key: _without_secrets(value) for key, value in flatten(config).items() if _is_told(key)},
        "config_hash": contents.attempts[-1].config_hash,
        "curves": {metric: [record.metrics[metric] for record in generations] for metric in CURVES.values()},
        "metrics": generations[-1].metrics if generations else {},
        "seconds": seconds_by_part(generations),
        "population_hash": generations[-1].population_hash if generations else None,
        "champion": _if_there(folder, "champion"),
        "summary": _if_there(folder, "summary.json"),
    }
    return Answer(document, [*_run_parts(document), "", *_settings(document["settings"])])


def seconds_by_part(generations: Sequence[GenerationRecord]) -> dict[str, float]:
    """Wall-clock time of all generations together, by what was being done."""
    parts = dict.fromkeys(part for record in generations for part in record.seconds)
    return {part: sum(record.seconds.get(part, 0.0) for record in generations) for part in parts}


def _run_parts(run: Mapping[str, Any]) -> list[RenderableType]:
    pairs = standing_pairs(run)
    pairs += [(name, _curve(run["curves"][metric])) for name, metric in CURVES.items() if run["curves"][metric]]
    pairs += [
        ("seconds", ", ".join(f"{part} {seconds:.1f}" for part, seconds in run["seconds"].items()) or "none yet"),
        ("champion", run["champion"] or "none yet: it is written after the last generation"),
        ("population", run["population_hash"] or "none yet"),
    ]
    return [facts(pairs)]


def _curve(values: Sequence[float]) -> str:
    return f"{spark_line(values)}  {values[0]:.3f} to {values[-1]:.3f}"


def _is_told(key: str) -> bool:
    return any(key == told or key.startswith(f"{told}.") for told in TOLD)


def _without_secrets(value: Any) -> Any:
    return without_credentials(value) if isinstance(value, str) else value


def _if_there(folder: Folder, name: str) -> str | None:
    return folder.place(name) if folder.exists(name) else None


# --- a memory ---------------------------------------------------------------------------------------------------------


def inspect_memory(place: Place) -> Answer:
    """What a saved memory is and where it came from."""
    from workers.memory.pretrained import PretrainedMemory

    folder = folder_at(place)
    with local_copy(folder) as path:
        memory = PretrainedMemory.from_pretrained(path)
    document: dict[str, Any] = {
        "kind": "memory",
        "folder": str(folder),
        "settings": dataclasses.asdict(memory.spec.settings),
        "threshold": memory.spec.threshold,
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
        ("threshold", f"{memory.spec.threshold} (as evolved: 0.0)"),
        *((f"origin: {key}", _shown(value)) for key, value in memory.origin.items() if key != "table"),
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

r"""What a run's journal says, as anybody may read it at any time; ``journal.py`` writes it.

Every opening of a run by a driver is an *attempt*, and a file of its own that nobody else writes::

    journal/attempt-000001-6f1c09aa41d2.jsonl
        {"kind": "attempt", "version": 2, "attempt": 1, "config": {…}, "host": "head-0", …, "inherits": 0}
        {"kind": "generation", "generation": 0, "losses": [-0.98, …], "population_hash": "b1…", …}
        {"kind": "generation", "generation": 1, …}
    journal/attempt-000002-03be77d1c9f0.jsonl
        {"kind": "attempt", "version": 2, "attempt": 2, …, "after": "attempt-000001-6f1c09aa41d2.jsonl", "inherits": 1}
        {"kind": "generation", "generation": 1, …}
        {"kind": "closed", "at_ms": 1795438151000}

The run is the attempt whose name sorts last, after the first ``inherits`` generations of the attempt it names in
``after``, and so on back. So what a replaced driver still adds to its own file is void for every reader, whenever it
arrives: here generation 1 of the first attempt. An attempt without ``closed`` is at work, or died.

Object stores cannot append, so a file is written anew for every generation: at 2 KB each the thousandth costs 2 MB,
less than its Parquet. A file for each generation would need as many requests to be read. Everything finished is in a
whole line; a last line without its line feed is not read. ``tail -F`` follows a run on a disk.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import RunFolderError
from orchestrator.storage import Folder, Place, folder_at

JOURNAL_NAME = "journal"
"""The journal's folder in a run folder."""

JOURNAL_VERSION = 2
"""Raised whenever a line changes its fields or their meaning."""

_FIRST_JOURNAL = "journal.jsonl"
"""Where version 1 was."""
_LATEST_MS = 253_402_300_800_000
"""The year 10,000, which no calendar here knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """What must be known of a finished generation to replay the search and to draw the run again."""

    generation: int
    losses: list[float]
    """What the search was told, in candidate order; exact to the last bit."""
    population_hash: str
    """SHA-256 (hex) of the genomes, to prove a replay."""
    examples: dict[str, tuple[int, ...]]
    """Indices of the examples that every candidate answered, by task."""
    timestamp_ms: int
    """When the generation was complete, since 1970; points in MLflow carry it, so that they can be sent again."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What dashboards show, like ``fitness/best``."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time by phase: information only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One opening of the journal by a driver."""

    attempt: int
    """1 for the driver that created the run."""
    config_hash: str
    config: dict[str, Any]
    """Settings of this attempt; those that decide the trajectory are the same in all."""
    host: str
    pid: int
    opened_ms: int
    """When, since 1970."""
    after: str | None
    """File of the attempt that this one goes on from; None for the first."""
    inherits: int
    """Generations taken over from there; what that attempt holds beyond them is void."""


@dataclass(frozen=True, slots=True)
class JournalContents:
    """A journal as read."""

    attempts: tuple[Attempt, ...]
    """Those that the run is made of, oldest first; at least one."""
    generations: tuple[GenerationRecord, ...]
    """Generation 0, 1, 2, …"""
    names: tuple[str, ...]
    """File of each attempt."""
    is_closed: bool
    """Whether the last driver has ended in good order."""


@dataclass(frozen=True, slots=True)
class _AttemptFile:
    attempt: Attempt
    generations: list[GenerationRecord]
    is_closed: bool


def attempt_names(place: Place) -> list[str]:
    """Files of all attempts, in the order in which they count; the last one's driver is the run's.

    Raises:
        RunFolderError: the run is of a version before there were such files.
        StorageError: the folder may not be read, or its bucket is not there.
    """
    folder = folder_at(place)
    names = [name.rpartition("/")[2] for name in folder.names(JOURNAL_NAME, prefix="attempt-")]
    if not names and folder.exists(_FIRST_JOURNAL):
        raise RunFolderError(_other_version(1))
    return sorted(name for name in names if re.fullmatch(r"attempt-\d{6}-[0-9a-f]+\.jsonl", name))


def has_run(place: Place) -> bool:
    """Whether there is a run at a path or address."""
    return bool(attempt_names(place))


def read_journal(place: Place) -> JournalContents:
    """Read a run's journal without touching it; its driver may be at work.

    Raises:
        RunFolderError: there is no run, a damaged one, or one of another version.
        StorageError: it may not be read, or its bucket is not there.
    """
    folder = folder_at(place)
    names = attempt_names(folder)
    if not names:
        raise RunFolderError(f"{folder} is no run folder: it holds no {JOURNAL_NAME}; name the folder that a run made")
    chain = [(names[-1], _read_attempt(folder, names[-1]))]
    while (before := chain[0][1].attempt.after) is not None:
        chain.insert(0, (before, _read_attempt(folder, before)))
    generations: list[GenerationRecord] = []
    for name, file in chain:
        if file.attempt.inherits > len(generations):
            raise RunFolderError(
                f"{folder.place(f'{JOURNAL_NAME}/{name}')} goes on from {file.attempt.inherits} generations, but there "
                f"are {len(generations)}: restore the journal from a copy or start a new run folder"
            )
        generations = generations[: file.attempt.inherits] + file.generations
    names_read, files = zip(*chain, strict=True)
    return JournalContents(
        tuple(file.attempt for file in files), tuple(generations), names_read, is_closed=files[-1].is_closed
    )


def read_attempt(folder: Folder, name: str) -> Attempt:
    """Whose file of the journal it is."""
    return _read_attempt(folder, name).attempt


def _read_attempt(folder: Folder, name: str) -> _AttemptFile:
    place = f"{JOURNAL_NAME}/{name}"
    lines = folder.read(place).split(b"\n")[:-1]  # what follows the last line feed was torn
    number = 1
    try:
        attempt = _attempt(json.loads(lines[0]))
        generations: list[GenerationRecord] = []
        is_closed = False
        for number in range(2, len(lines) + 1):
            fields = json.loads(lines[number - 1])
            is_closed = fields.pop("kind") == "closed"
            if not is_closed:
                generations.append(_generation(fields, expected=attempt.inherits + len(generations)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"line {number} of {folder.place(place)} is damaged ({error}): "
            "restore the file from a copy or start a new run folder"
        ) from error
    return _AttemptFile(attempt, generations, is_closed)


def _attempt(line: dict[str, Any]) -> Attempt:
    version = line.pop("version")
    if version != JOURNAL_VERSION:
        raise RunFolderError(_other_version(version))
    if line.pop("kind") != "attempt":
        raise ValueError("it does not say whose it is")
    attempt = Attempt(**line)
    is_plain = isinstance(attempt.config, dict) and all(
        isinstance(number, int) for number in (attempt.attempt, attempt.pid, attempt.opened_ms, attempt.inherits)
    )
    if not is_plain or not 0 <= attempt.opened_ms < _LATEST_MS:
        raise ValueError("its fields are not what a driver writes")
    return attempt


def _generation(line: dict[str, Any], expected: int) -> GenerationRecord:
    line["examples"] = {task: tuple(indices) for task, indices in line["examples"].items()}
    record = GenerationRecord(**line)
    if record.generation != expected:
        raise ValueError(f"generation {record.generation} stands where {expected} should")
    return record


def _other_version(version: Any) -> str:
    return (
        f"the journal has version {version}, this program reads {JOURNAL_VERSION}: "
        "go on with the program that wrote it, or start a new run folder"
    )

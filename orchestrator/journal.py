r"""The source of truth of a run: one line per opening and per generation in ``journal.jsonl``.

::

    {"kind": "attempt", "version": 1, "attempt": 1, "config_hash": "9f…", "config": {…}, "host": "head-0", …}
    {"kind": "generation", "attempt": 1, "generation": 0, "losses": [-0.98, …], "population_hash": "b1…", …}
    {"kind": "attempt", "version": 1, "attempt": 2, …}
    {"kind": "generation", "attempt": 2, "generation": 1, …}

A generation is part of the run once its line is on disk. The attempt number is a fencing token: whoever opens the
journal last may append; a line of an earlier attempt behind it is refused by writers and skipped by readers. A last
line without its line feed was torn by a crash; it is cut off when the journal is opened.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.config import differences
from orchestrator.driver_lock import LOCK_NAME, DriverLock
from orchestrator.errors import RunFolderError
from orchestrator.files import make_folder, storage_errors, sweep_temporaries, write_atomic

JOURNAL_NAME = "journal.jsonl"
"""The journal's file name in a run folder."""

JOURNAL_VERSION = 1
"""Raised whenever a line changes its fields or their meaning."""

_MOST_TOLD = 8
"""Changed settings named in an error; a longer line is not read."""


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


@dataclass(frozen=True, slots=True)
class JournalContents:
    """A journal as read."""

    attempts: tuple[Attempt, ...]
    """Oldest first; at least one."""
    generations: tuple[GenerationRecord, ...]
    """Generation 0, 1, 2, …"""


class Journal:
    """The journal of a run folder, open for the one driver that may append to it."""

    def __init__(self, path: Path, lock: DriverLock, contents: JournalContents) -> None:
        """Use ``Journal.open``."""
        self._path = path
        self._lock = lock
        self._attempt = contents.attempts[-1].attempt
        self._generations = list(contents.generations)
        self._size = path.stat().st_size

    @classmethod
    def open(cls, folder: Path, config_hash: str, config: Mapping[str, Any], *, takeover: bool = False) -> Journal:
        """Create a run folder, or go on with the run in it.

        Args:
            folder: the run folder.
            config_hash: what must not change within a run.
            config: all settings, to say what changed if it did.
            takeover: go on although another driver may still be at work; its next append is then refused.

        Raises:
            RunFolderError: the run has another configuration or version, or another driver is at work on it.
            StorageError: the folder may not be written.
        """
        make_folder(folder)
        lock = DriverLock.acquire(folder, takeover=takeover)
        try:
            sweep_temporaries(folder)
            return cls(folder / JOURNAL_NAME, lock, _begin_attempt(folder, config_hash, dict(config)))
        except BaseException:
            lock.release()
            raise

    @property
    def attempt(self) -> int:
        """Number of this opening; 1 for the first."""
        return self._attempt

    def generations(self) -> list[GenerationRecord]:
        """All finished generations, from 0."""
        return list(self._generations)

    def append(self, record: GenerationRecord) -> None:
        """Make a finished generation part of the run.

        Raises:
            RunFolderError: another driver has opened the journal since; this one must stop.
            StorageError: the disk is full or may not be written; the journal is as it was.
        """
        if record.generation != len(self._generations):
            raise ValueError(f"the next generation is {len(self._generations)}: got {record.generation}")
        line = {"kind": "generation", "attempt": self._attempt, **asdict(record)}
        self._size = _append_line(self._path, line, self._size)
        self._generations.append(record)

    def close(self) -> None:
        """Let another driver open the run."""
        self._lock.release()

    def __enter__(self) -> Journal:
        """Return the open journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def read_journal(folder: Path) -> JournalContents:
    """Read a run's journal without touching it; its driver may be at work.

    Raises:
        RunFolderError: ``folder`` holds no run, a damaged one, or one of another version.
    """
    path = folder / JOURNAL_NAME
    if not path.is_file():
        raise RunFolderError(f"{folder} is no run folder: it holds no {JOURNAL_NAME}; name the folder that a run made")
    attempts: list[Attempt] = []
    generations: list[GenerationRecord] = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            _add_line(json.loads(line), attempts, generations)
        except (ValueError, LookupError, TypeError) as error:
            raise RunFolderError(
                f"line {number} of {path} is damaged ({error}): restore the file from a copy or start a new run folder"
            ) from error
    if not attempts:
        raise RunFolderError(f"{path} is empty: restore it from a copy or start a new run folder")
    return JournalContents(tuple(attempts), tuple(generations))


def require_same_run(folder: Path, config_hash: str, config: Mapping[str, Any]) -> None:
    """Make sure that ``folder`` may hold the run of a configuration, without touching it.

    Raises:
        RunFolderError: it holds a run of another configuration or version, or a damaged one.
    """
    path = folder / JOURNAL_NAME
    if path.exists():
        _require_same_trajectory(path, read_journal(folder).attempts[-1], config_hash, dict(config))


def _begin_attempt(folder: Path, config_hash: str, config: dict[str, Any]) -> JournalContents:
    path = folder / JOURNAL_NAME
    before = read_journal(folder) if path.exists() else JournalContents((), ())
    if before.attempts:
        _require_same_trajectory(path, before.attempts[-1], config_hash, config)
    attempt = Attempt(
        attempt=len(before.attempts) + 1,
        config_hash=config_hash,
        config=config,
        host=socket.gethostname(),
        pid=os.getpid(),
        opened_ms=time.time_ns() // 1_000_000,
    )
    line = {"kind": "attempt", "version": JOURNAL_VERSION, **asdict(attempt)}
    if before.attempts:
        _append_line(path, line, _cut_torn_line(path))
    else:
        write_atomic(path, _encoded(line))
    return JournalContents((*before.attempts, attempt), before.generations)


def _require_same_trajectory(path: Path, former: Attempt, config_hash: str, config: dict[str, Any]) -> None:
    if former.config_hash == config_hash:
        return
    changed = differences(former.config, config)
    told = ", ".join(f"{key} (was {json.dumps(_value(former.config, key))})" for key in changed[:_MOST_TOLD])
    more = f" and {len(changed) - _MOST_TOLD} more" if len(changed) > _MOST_TOLD else ""
    raise RunFolderError(
        f"{path.parent} holds a run with other settings: {told or 'config_hash'}{more} changed; "
        "start a new run folder, or go back to the former values"
    )


def _value(config: Any, dotted_key: str) -> Any:
    for part in dotted_key.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            return None
    return config


def _add_line(line: dict[str, Any], attempts: list[Attempt], generations: list[GenerationRecord]) -> None:
    if line.pop("kind") == "attempt":
        version = line.pop("version")
        if version != JOURNAL_VERSION:
            raise RunFolderError(
                f"the journal has version {version}, this program reads {JOURNAL_VERSION}: "
                "go on with the program that wrote it, or start a new run folder"
            )
        attempts.append(Attempt(**line))
    elif line.pop("attempt") == attempts[-1].attempt:  # else a driver wrote it that had been replaced
        line["examples"] = {task: tuple(indices) for task, indices in line["examples"].items()}
        generations.append(GenerationRecord(**line))


def _encoded(line: dict[str, Any]) -> bytes:
    # JSON writes the shortest decimal that reads back as the same float64.
    return (json.dumps(line, separators=(",", ":")) + "\n").encode()


def _append_line(path: Path, line: dict[str, Any], size: int) -> int:
    """Append a line to a journal of ``size`` bytes and force it to disk; returns the new size.

    A refused line leaves the file as it was.
    """
    encoded = _encoded(line)
    with storage_errors(path), open(path, "ab", buffering=0) as file:
        # Asked after opening: only then does a network file system tell what other machines have written.
        if os.fstat(file.fileno()).st_size != size:
            raise RunFolderError(
                f"another driver has opened {path} since: this one stops, because a run has one driver; "
                f"{LOCK_NAME} beside it says which"
            )
        try:
            rest = memoryview(encoded)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    return size + len(encoded)


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; allow this user to read it") from error


def _cut_torn_line(path: Path) -> int:
    """Remove what follows the last line feed; returns the size that is left, in bytes."""
    size = path.read_bytes().rfind(b"\n") + 1
    with storage_errors(path), open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    return size

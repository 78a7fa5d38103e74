"""The source of truth of a run, open for its one driver; ``history.py`` says what is in it and reads it.

A generation is part of the run once its line is in the attempt's file, which is replaced whole. Fencing needs nothing
of the storage but that a listing shows what was written: a driver asks before and after every commit, and before any
other change to the run folder, whether its attempt is still the last by name. One that is not stops, and what it may
have written in between is void, because its successor's attempt says how many generations count.

Two drivers that open a run at the same moment are told apart by name as well: the later name stays, the other stops at
once or, if it had looked before the later file was there, at its next write. On a disk the lock refuses one of them
before. What remains on an object store, for want of a conditional write: a driver that passed the check may complete
one upload of a table after it was replaced, and tables of a generation are the same whoever writes them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any
from uuid import uuid4

from orchestrator.config import differences
from orchestrator.driver_lock import DriverLock, driver_in, require_driver_gone
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.history import (
    JOURNAL_NAME,
    JOURNAL_VERSION,
    Attempt,
    GenerationRecord,
    JournalContents,
    attempt_names,
    has_run,
    read_attempt,
    read_journal,
)
from orchestrator.storage import Folder, Place, folder_at

__all__ = [
    "JOURNAL_NAME",
    "Attempt",
    "GenerationRecord",
    "Journal",
    "JournalContents",
    "has_run",
    "read_journal",
    "require_same_run",
]

_MOST_TOLD = 8
"""Changed settings named in an error; a longer line is not read."""


class Journal:
    """The journal of a run folder, open for the one driver that may append to it."""

    def __init__(self, folder: Folder, lock: DriverLock, contents: JournalContents) -> None:
        """Use ``Journal.open``."""
        self.folder = folder.guarded(self.require_current)
        """The run folder for this driver: every change is refused once another driver has opened the run."""
        self._lock = lock
        self._name = contents.names[-1]
        self._run_id = contents.names[0].removesuffix(".jsonl").rpartition("-")[2]
        self._attempt = contents.attempts[-1].attempt
        self._generations = list(contents.generations)
        self._is_closed = False

    @classmethod
    def open(cls, place: Place, config_hash: str, config: Mapping[str, Any], *, takeover: bool = False) -> Journal:
        """Create a run folder, or go on with the run in it.

        Args:
            place: path or address of the run folder.
            config_hash: what must not change within a run.
            config: all settings, to say what changed if it did.
            takeover: go on although another driver may still be at work; it then cannot write any more.

        Raises:
            RunFolderError: the run has another configuration or version, or another driver is at work on it.
            StorageError: the folder may not be written.
        """
        folder = folder_at(place)
        lock = DriverLock.acquire(folder, takeover=takeover)
        try:
            before = read_journal(folder) if has_run(folder) else None
            if not takeover:
                require_driver_gone(folder, driver_in(before), lock.answer)
            if before:
                _require_same_trajectory(folder, before, config_hash, dict(config))
            for under in ("", JOURNAL_NAME):
                folder.sweep(under)
            journal = cls(folder, lock, _begin_attempt(folder, before, config_hash, dict(config)))
            journal.require_current()
        except BaseException:
            lock.release()
            raise
        return journal

    @property
    def attempt(self) -> int:
        """Number of this opening; 1 for the first."""
        return self._attempt

    @property
    def run_id(self) -> str:
        """Hex digits that this run has, and no other, wherever its folder is copied to."""
        return self._run_id

    def generations(self) -> list[GenerationRecord]:
        """All finished generations, from 0."""
        return list(self._generations)

    def append(self, record: GenerationRecord) -> None:
        """Make a finished generation part of the run.

        Raises:
            RunFolderError: another driver has opened the run since; this one must stop.
            StorageError: the storage is full or may not be written; the journal is as it was.
        """
        if record.generation != len(self._generations):
            raise ValueError(f"the next generation is {len(self._generations)}: got {record.generation}")
        self._add({"kind": "generation", **asdict(record)})
        self.require_current()
        self._generations.append(record)

    def require_current(self) -> None:
        """Make sure that this driver is still the run's.

        Raises:
            RunFolderError: another one has opened the run since.
        """
        last = attempt_names(self.folder)[-1:]
        if last == [self._name]:
            return
        who = f" ({_who(read_attempt(self.folder, last[0]))})" if last else ", or removed it"
        raise RunFolderError(
            f"another driver has opened {self.folder} since{who}: this one stops, because a run has one driver; "
            "what it had finished is safe"
        )

    def close(self) -> None:
        """Let another driver open the run."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # An attempt that could not be closed is as good as one that was killed: it may have to be taken over.
            with suppress(RunFolderError, StorageError):
                self._add({"kind": "closed", "at_ms": time.time_ns() // 1_000_000})
        finally:
            self._lock.release()

    def __enter__(self) -> Journal:
        """Return the open journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _add(self, line: dict[str, Any]) -> None:
        # Read again: an interrupt may have come between a write and our note of it.
        place = f"{JOURNAL_NAME}/{self._name}"
        self.folder.write(place, self.folder.read(place) + _encoded(line))


def require_same_run(place: Place, config_hash: str, config: Mapping[str, Any]) -> None:
    """Make sure that a folder may hold the run of a configuration, without touching it.

    Raises:
        RunFolderError: it holds a run of another configuration or version, or a damaged one.
        StorageError: it may not be read, or its bucket is not there.
    """
    folder = folder_at(place)
    if has_run(folder):
        _require_same_trajectory(folder, read_journal(folder), config_hash, dict(config))


def _begin_attempt(
    folder: Folder, before: JournalContents | None, config_hash: str, config: dict[str, Any]
) -> JournalContents:
    attempt = Attempt(
        attempt=before.attempts[-1].attempt + 1 if before else 1,
        config_hash=config_hash,
        config=config,
        host=socket.gethostname(),
        pid=os.getpid(),
        opened_ms=time.time_ns() // 1_000_000,
        after=before.names[-1] if before else None,
        inherits=len(before.generations) if before else 0,
    )
    name = f"attempt-{attempt.attempt:06d}-{uuid4().hex[:12]}.jsonl"
    line = {"kind": "attempt", "version": JOURNAL_VERSION, **asdict(attempt)}
    folder.write(f"{JOURNAL_NAME}/{name}", _encoded(line))
    attempts, names = (before.attempts, before.names) if before else ((), ())
    generations = before.generations if before else ()
    return JournalContents((*attempts, attempt), generations, (*names, name), is_closed=False)


def _who(attempt: Attempt) -> str:
    return f"pid {attempt.pid} on {attempt.host}, attempt {attempt.attempt}"


def _require_same_trajectory(folder: Folder, run: JournalContents, config_hash: str, config: dict[str, Any]) -> None:
    former = run.attempts[-1]
    if former.config_hash == config_hash:
        return
    changed = differences(former.config, config, len(run.generations))
    if not changed:  # only stages to come are others
        return
    told = ", ".join(f"{key} (was {json.dumps(_value(former.config, key))})" for key in changed[:_MOST_TOLD])
    more = f" and {len(changed) - _MOST_TOLD} more" if len(changed) > _MOST_TOLD else ""
    raise RunFolderError(
        f"{folder} holds a run with other settings: {told}{more} changed; "
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


def _encoded(line: dict[str, Any]) -> bytes:
    # JSON writes the shortest decimal that reads back as the same float64.
    return (json.dumps(line, separators=(",", ":")) + "\n").encode()

"""One driver per run folder: a courtesy that tells the second driver who the first one is.

The guarantee is the journal's (``journal.py``); this only stops two drivers from wasting each other's work. The last
attempt in the journal says who opened the run, and whether it was closed. On a disk the kernel holds a lock besides
(``flock``) and lets go when the process ends, however it ends, so a dead driver on this machine is known to be dead.
On an object store the process number has to do. A driver that died on another machine cannot be told from a living
one, and is replaced only on request: there is no heartbeat that a paused machine could miss.
"""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from orchestrator.errors import RunFolderError
from orchestrator.files import storage_errors
from orchestrator.history import JournalContents, has_run, read_journal
from orchestrator.storage import Folder, LocalFolder

LOCK_NAME = "driver.lock"
"""The lock's file name in a run folder on a disk; always empty."""

Answer = Literal["taken", "held", "unsupported"]
"""What the kernel said: ours now, another living process has it, or this storage has no locks."""


class DriverLock:
    """The kernel's lock on a run folder, as far as there is one."""

    def __init__(self, descriptor: int | None, answer: Answer) -> None:
        """Use ``DriverLock.acquire``."""
        self._descriptor = descriptor
        self.answer = answer

    @classmethod
    def acquire(cls, folder: Folder, *, takeover: bool = False) -> DriverLock:
        """Try to take the lock of a run folder, which is created; ``answer`` says what came of it.

        Args:
            folder: the run folder.
            takeover: take the lock also from a driver that is alive.

        Raises:
            StorageError: the folder may not be written.
        """
        if not isinstance(folder, LocalFolder):
            return cls(None, "unsupported")
        folder.make()
        path = folder.path / LOCK_NAME
        with storage_errors(path):
            if takeover:
                # The former holder keeps its lock on a file that has no name any more.
                path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        return cls(descriptor, _try_flock(descriptor))

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Who has opened a run and not closed it."""

    host: str
    pid: int
    since: str
    """When it opened the run, in ISO 8601."""
    state: Literal["at work", "dead", "out of sight"]
    """``out of sight``: on another machine, where a dead driver cannot be told from a living one."""


def driver_in(contents: JournalContents | None) -> Driver | None:
    """The driver that a journal names, None when it is closed or there is none yet."""
    if contents is None or contents.is_closed:
        return None
    last = contents.attempts[-1]
    since = datetime.fromtimestamp(last.opened_ms / 1000).astimezone().isoformat(timespec="seconds")
    return Driver(host=last.host, pid=last.pid, since=since, state=_state(last.host, last.pid))


def require_no_driver(folder: Folder) -> None:
    """Refuse a run that another driver works on, before anything is started for it.

    Raises:
        RunFolderError: says who.
    """
    if not has_run(folder):
        return
    lock = DriverLock.acquire(folder)
    try:
        require_driver_gone(folder, driver_in(read_journal(folder)), lock.answer)
    finally:
        lock.release()


def require_driver_gone(folder: Folder, driver: Driver | None, answer: Answer) -> None:
    """Refuse a run that another driver works on, or may work on.

    Raises:
        RunFolderError: says who.
    """
    is_here = driver is not None and driver.host == socket.gethostname()
    if answer != "held" and (driver is None or driver.state == "dead" or (answer == "taken" and is_here)):
        return
    who = f"pid {driver.pid} on {driver.host}, since {driver.since}" if driver else "it has not said who it is yet"
    state = "is at work" if answer == "held" else "was at work and may still be"
    raise RunFolderError(
        f"another driver {state} on {folder} ({who}): stop it first, "
        f"or take the run over if it is surely dead (namm resume {folder} --takeover); it can then no longer add to it"
    )


def _state(host: str, pid: int) -> Literal["at work", "dead", "out of sight"]:
    if host != socket.gethostname():
        return "out of sight"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:
        pass  # it is there, and another user's
    return "at work"


def _try_flock(descriptor: int) -> Answer:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unsupported"
    return "taken"

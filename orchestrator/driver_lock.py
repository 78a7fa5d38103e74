"""One driver per run folder: a courtesy that tells the second driver who the first one is.

The guarantee is the journal's fencing token; the lock only stops two drivers from wasting each other's work. The kernel
holds it (``flock``) and lets go when the process ends, however it ends, so a dead driver on this machine is known to be
dead. A driver that died on another machine cannot be told from a living one, and is replaced only on request.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import RunFolderError
from orchestrator.files import storage_errors

LOCK_NAME = "driver.lock"
"""The lock's file name in a run folder; empty when no driver is at work."""

_Flock = Literal["taken", "held", "unsupported"]
"""What the kernel said: ours now, another living process has it, or this file system has no locks."""


class DriverLock:
    """The right to drive the run in a folder."""

    def __init__(self, descriptor: int) -> None:
        """Use ``DriverLock.acquire``."""
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, folder: Path, *, takeover: bool = False) -> DriverLock:
        """Take the lock of a run folder.

        Args:
            folder: the run folder; exists.
            takeover: take the lock also from a driver that may be alive.

        Raises:
            RunFolderError: another driver holds the lock, and is not known to be dead.
            StorageError: the folder may not be written.
        """
        path = folder / LOCK_NAME
        with storage_errors(path):
            if takeover:
                # The former holder keeps its lock on a file that has no name any more.
                path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _require_free(folder, _holder(descriptor), _try_flock(descriptor))
            with storage_errors(path):
                _overwrite(descriptor, _ourselves())
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
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


def driver_of(folder: Path) -> Driver | None:
    """The driver of the run in a folder, None when it is closed; nothing is written, and nothing locked."""
    try:
        holder = json.loads((folder / LOCK_NAME).read_bytes())
        return Driver(**holder, state=_state(holder["host"], holder["pid"]))
    except (OSError, ValueError, TypeError, LookupError):  # absent, empty, or its writer died while writing
        return None


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


def _require_free(folder: Path, holder: dict[str, Any], flock: _Flock) -> None:
    was_here = holder.get("host") == socket.gethostname()
    if flock != "held" and (not holder or (flock == "taken" and was_here)):
        return
    who = f"pid {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}, since {holder.get('since', '?')}"
    state = "is at work" if flock == "held" else "was at work and may still be"
    raise RunFolderError(
        f"another driver {state} on {folder} ({who}): stop it first, "
        f"or take the run over if it is surely dead (namm resume {folder} --takeover); it can then no longer add to it"
    )


def _try_flock(descriptor: int) -> _Flock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unsupported"
    return "taken"


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # empty, or its writer died while writing
        return {}
    return holder if isinstance(holder, dict) else {}


def _ourselves() -> bytes:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode()


def _overwrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)

"""Post for a server that may be away: items wait in a file, a thread delivers them when it can.

``put`` costs one small write and never waits for the server. What was not delivered when the process ended waits in the
file and goes out with the next process. An item may be delivered twice, when a process dies between a delivery and the
note of it; it is never lost and never overtaken.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.credentials import without_credentials
from orchestrator.files import make_folder, read_json, sweep_temporaries, write_json_atomic

log = logging.getLogger(__name__)

Item = Mapping[str, Any]
"""What is delivered, as JSON has it."""

Deliver = Callable[[Sequence[Item]], int]
"""Deliver some of the first items and tell how many; raise anything to be asked again later."""

MOST_ITEMS = 100
"""Items offered to one delivery."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


def _delivered_bytes(path: Path) -> int:
    """None, where that cannot be read: to deliver twice does no harm, and tracking must not stop a run."""
    try:
        delivered = read_json(path)
    except ValueError:
        return 0
    count = delivered.get("bytes") if isinstance(delivered, dict) else None
    return max(0, count) if isinstance(count, int) else 0


class Outbox:
    """Items in order of arrival, and how many of them were delivered."""

    def __init__(self, folder: Path) -> None:
        """Open, or create, the outbox in a folder.

        Args:
            folder: holds ``outbox.jsonl``, all items ever put, and ``delivered.json``.

        Raises:
            StorageError: the folder may not be written.
        """
        make_folder(folder)
        sweep_temporaries(folder)
        self.path = folder / "outbox.jsonl"
        self._delivered_path = folder / "delivered.json"
        self._lock = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as the outbox
        self._size = self.path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._file.fileno(), self._size)  # a line without its end was torn by a crash
        self._delivered_size = min(_delivered_bytes(self._delivered_path), self._size)

    def put(self, item: Item) -> None:
        """Add an item. A full disk loses it with a warning, because tracking must not stop a run."""
        line = (json.dumps(item) + "\n").encode()
        with self._lock:
            try:
                written = self._file.write(line)
            except OSError as error:
                written, reason = 0, str(error)
            else:
                reason = "the disk is full"
            if written == len(line):
                self._size += written
            else:
                os.ftruncate(self._file.fileno(), self._size)
                log.warning("cannot write %s (%s): %s is not tracked", self.path, reason, item.get("kind", "an item"))

    def waiting(self, most: int = MOST_ITEMS) -> list[Item]:
        """The oldest items that were not delivered."""
        return [_parsed(line) for line in self._waiting_lines(most)]

    def note_delivered(self, count: int) -> None:
        """The ``count`` oldest waiting items were delivered."""
        self._delivered_size += sum(len(line) for line in self._waiting_lines(count))
        write_json_atomic(self._delivered_path, {"bytes": self._delivered_size})

    def rewind(self) -> None:
        """Let all items ever put wait again."""
        self._delivered_size = 0
        write_json_atomic(self._delivered_path, {"bytes": 0})

    @property
    def is_empty(self) -> bool:
        """Whether no item waits."""
        return self._delivered_size == self._size

    def close(self) -> None:
        """Close the file; ``put`` must not be called any more."""
        self._file.close()

    def _waiting_lines(self, most: int) -> list[bytes]:
        with self._lock:
            size = self._size
        lines: list[bytes] = []
        with open(self.path, "rb") as file:
            file.seek(self._delivered_size)
            while len(lines) < most and file.tell() < size:
                lines.append(file.readline())
        return lines


class Courier:
    """A daemon thread that delivers what waits in an outbox, with ever longer pauses while that fails."""

    def __init__(self, outbox: Outbox, deliver: Deliver, to: str) -> None:
        """Prepare the thread.

        Args:
            outbox: where the items wait.
            deliver: called in the thread only.
            to: names the recipient in log messages.
        """
        self._outbox = outbox
        self._deliver = deliver
        self._to = to
        self._changed = threading.Condition()
        self._failures = 0
        self._is_hurried = False
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item; returns at once."""
        self._outbox.put(item)
        with self._changed:
            self._changed.notify_all()

    def flush(self, timeout_seconds: float, *, is_patient: bool = True) -> bool:
        """Wait until everything is delivered, ending a pause that is going on.

        Args:
            timeout_seconds: longest wait.
            is_patient: False gives up as soon as a delivery fails.

        Returns:
            Whether nothing waits any more.
        """
        with self._changed:
            failures_before = self._failures
            self._is_hurried = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._outbox.is_empty or (not is_patient and self._failures > failures_before), timeout_seconds
            )
            return self._outbox.is_empty

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End the thread after the delivery that is going on, if it ends in time."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def _work(self) -> None:
        while not self._is_stopped:
            items = self._outbox.waiting()
            if not items:
                self._pause(None)
            elif not self._try_to_deliver(items):
                self._pause(min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS))

    def _try_to_deliver(self, items: Sequence[Item]) -> bool:
        try:
            self._outbox.note_delivered(self._deliver(items))
        except Exception as error:  # whatever is wrong with the server, it must not end the thread or the run
            self._note_failure(error)
            return False
        if self._failures:
            log.info("%s answers again", self._to)
        with self._changed:
            self._failures = 0
            self._changed.notify_all()
        return True

    def _note_failure(self, error: Exception) -> None:
        if not self._failures:
            log.warning(
                "%s does not take what is tracked (%s): the run goes on, what waits in %s is sent later",
                self._to,
                without_credentials(" ".join(str(error).split()))[:300],
                self._outbox.path,
            )
        with self._changed:
            self._failures += 1
            self._changed.notify_all()

    def _pause(self, seconds: float | None) -> None:
        """Sleep: until something is put when ``seconds`` is None, else that long; less when hurried or stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopped or self._is_hurried or (seconds is None and not self._outbox.is_empty), seconds
            )
            self._is_hurried = False


def _parsed(line: bytes) -> Item:
    try:
        item = json.loads(line)
    except ValueError:
        item = None
    return item if isinstance(item, dict) else {"kind": "damaged"}

"""A disk that fails at a step of one's choice, for the tests of what a crash leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.history import JOURNAL_NAME, attempt_names


def last_attempt(folder: Path) -> Path:
    """The file of a run's journal that its last driver writes."""
    return folder / JOURNAL_NAME / attempt_names(folder)[-1]


def journal_files(folder: Path) -> dict[str, bytes]:
    """Content of a run's journal, by file."""
    return {path.name: path.read_bytes() for path in (folder / JOURNAL_NAME).iterdir()}


class Killed(BaseException):
    """Nothing may clean up after it, as nothing does after SIGKILL."""


class Disk:
    """Counts the steps that change what is on disk, and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.fail_at: int | None = None
        self.failure: Callable[[], BaseException] = Killed
        self.fails_after_the_step = False
        monkeypatch.setattr(os, "fsync", self._counted(lambda _: None))  # counted, not waited for
        for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, step: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.steps += 1
            if self.steps - 1 != self.fail_at:
                return step(*arguments, **options)
            if self.fails_after_the_step:
                step(*arguments, **options)
            raise self.failure()

        return counted

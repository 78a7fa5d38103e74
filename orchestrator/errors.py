"""Every way in which a run can fail, each told in one line.

::

    NammError                   exit code 2: something outside the run must be mended first
    ├── ConfigError             a setting is unknown, of the wrong type or out of bounds (also a ValueError)
    ├── InputError              a prompt cannot be read or used, or nothing has the name given
    ├── RunFolderError          the run folder belongs to another configuration or version, or is no run folder
    ├── StorageError            the disk is full, or may not be written
    ├── FleetError              no cluster at the address, or too few accelerators in it
    ├── TrackingError           the tracking server does not answer at the start
    ├── SearchError             exit code 1: the optimizer broke one of its guards
    └── UnitQuarantinedError    exit code 1: a unit failed on every attempt; carries its story

Workers and tasks raise ``ValueError`` subclasses of their own, because they must not import this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class NammError(Exception):
    """Base of the tree; the message says what is wrong, what came, what is allowed and what to do."""

    exit_code: ClassVar[int] = 2
    """What the process returns: 2 when the user can mend the cause beforehand, 1 when the run itself failed."""

    def __init__(self, message: str) -> None:
        """Fold ``message`` into one line: logs and terminals show it as such."""
        super().__init__(" ".join(message.split()))


class ConfigError(NammError, ValueError):
    """A setting is unknown, missing, of the wrong type or out of bounds."""


class InputError(NammError):
    """A prompt cannot be read or used, or nothing that a command could work on has the name given."""


class RunFolderError(NammError):
    """The run folder belongs to another configuration or version, or is no run folder."""


class StorageError(NammError):
    """The run folder cannot be written: full disk, no permission."""


class FleetError(NammError):
    """No cluster answers at the address, or it has too few accelerators."""


class TrackingError(NammError):
    """The tracking server does not answer at the start of a run."""


class SearchError(NammError):
    """The optimizer broke one of its guards."""

    exit_code = 1


class UnitQuarantinedError(NammError):
    """A unit failed on every attempt allowed; the last failure alone is rarely the cause, so all are told."""

    exit_code = 1

    def __init__(self, key: str, story: Sequence[str]) -> None:
        """Keep the unit's key and its failed attempts.

        Args:
            key: the unit's key.
            story: what came of each attempt, oldest first.
        """
        attempts = "; ".join(f"attempt {number}: {text}" for number, text in enumerate(story, start=1))
        super().__init__(f"unit {key} failed {len(story)} times and was set aside ({attempts})")
        self.key = key
        self.story = tuple(story)

    def __reduce__(self) -> tuple[type[UnitQuarantinedError], tuple[str, tuple[str, ...]]]:
        """Survive pickling between processes, which by default would pass only the message."""
        return type(self), (self.key, self.story)

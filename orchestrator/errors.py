"""Every way in which a run can fail, each told in one line.

::

    NammError                   exit code 2: something outside the run must be mended first
    ├── ConfigError             a setting is unknown, of the wrong type or out of bounds (also a ValueError)
    ├── InputError              a prompt cannot be read or used, or nothing has the name given
    ├── RunFolderError          the run folder belongs to another configuration or version, or is no run folder
    ├── StorageError            the disk is full, or may not be written
    ├── FleetError              no cluster at the address, or too few accelerators in it
    ├── TrackingError           the tracking server does not answer at the start
    ├── JobError                exit code 1: a job that was submitted and followed failed, or was stopped
    ├── SearchError             exit code 1: the optimizer broke one of its guards
    ├── UnitQuarantinedError    exit code 1: units failed on every attempt; carries their stories
    └── DrainedError            exit code 0: the run was asked to stop, and did so in good order

Workers and tasks raise ``ValueError`` subclasses of their own, because they must not import this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from orchestrator.credentials import without_credentials


class NammError(Exception):
    """Base of the tree; the message says what is wrong, what came, what is allowed and what to do."""

    exit_code: ClassVar[int] = 2
    """What the process returns: 2 when the user can mend the cause, 1 when the run itself failed, 0 when it did not."""

    def __init__(self, message: str) -> None:
        """Fold ``message`` into one line without secrets: logs and terminals show it as such."""
        super().__init__(without_credentials(" ".join(message.split())))


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


class JobError(NammError):
    """A job that was submitted and followed failed, or was stopped by somebody."""

    exit_code = 1


class SearchError(NammError):
    """The optimizer broke one of its guards."""

    exit_code = 1


class UnitQuarantinedError(NammError):
    """Units failed on every attempt allowed; the last failure alone is rarely the cause, so all are told."""

    exit_code = 1

    def __init__(self, stories: Mapping[str, Sequence[str]]) -> None:
        """Keep what came of each attempt.

        Args:
            stories: by the unit's key, oldest attempt first; at least one unit.
        """
        key, story = next(iter(stories.items()))
        attempts = "; ".join(f"attempt {number}: {text}" for number, text in enumerate(story, start=1))
        others = f"; {len(stories) - 1} more were set aside" if len(stories) > 1 else ""
        super().__init__(f"unit {key} failed {len(story)} times and was set aside ({attempts}){others}")
        self.stories = {key: tuple(story) for key, story in stories.items()}

    def __reduce__(self) -> tuple[type[UnitQuarantinedError], tuple[dict[str, tuple[str, ...]]]]:
        """Survive pickling between processes, which by default would pass only the message."""
        return type(self), (self.stories,)


class DrainedError(NammError):
    """The run was asked to stop, and has handed nothing out since; what came back is stored."""

    exit_code = 0

    def __init__(self, num_open: int) -> None:
        """Keep how much of the round is still to be scored.

        Args:
            num_open: units of the round that were not scored.
        """
        super().__init__(f"stopped as asked: {num_open} units of this round are still to be scored")
        self.num_open = num_open

    def __reduce__(self) -> tuple[type[DrainedError], tuple[int]]:
        """As in ``UnitQuarantinedError``."""
        return type(self), (self.num_open,)

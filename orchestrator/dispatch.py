"""Decides which worker scores which unit: events in, commands out, through one door.

No I/O, no clock, no threads, so a thousand schedules of deaths and arrivals are a unit test. A fleet (``fleet.py``)
reports what happened and does what the commands say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

Worker = int
"""A worker's number; a replacement gets a new one, so that late news of the old one cannot be mistaken for it."""

UNITS_IN_FLIGHT = 2
"""Most units on a worker, the one in work included: one more hides the round trip, further ones gain little."""

DEATHS_PER_UNIT = 2
"""Workers that may die with a unit in work before the unit is blamed.

Losses of whole machines do not count, nor does a second copy that was out when a death was counted: what kills several
workers at a time may have met both. A worker that was stopped over the unit counts in any case.
"""

LOSSES_PER_UNIT = 8
"""The same with losses of whole machines counted: a unit that brings machines down cannot go on for ever."""

COPIES_PER_UNIT = 2
"""Workers that may hold the same unit at the same time, when the first is slow and the second has nothing to do."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker that holds no unit can take some."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class UnitScored:
    """A unit came back."""

    worker: Worker
    key: str


@dataclass(frozen=True, slots=True)
class UnitFailed:
    """Scoring a unit raised an exception; the worker is well."""

    worker: Worker
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone, with every unit on it."""

    worker: Worker
    message: str
    with_its_machine: bool = False
    """Whether its whole machine went: hardly the unit's doing."""
    was_stopped: bool = False
    """Whether it was stopped because the unit took too long: surely the unit's doing."""


@dataclass(frozen=True, slots=True)
class WorkerLeaving:
    """A worker's machine will go soon: what the worker has may come back, nothing else goes to it."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class UnitSlow:
    """A unit in work takes much longer than was to be expected."""

    key: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The driver has to go soon: what is in flight may come back, nothing else goes out."""


Event = WorkerReady | UnitScored | UnitFailed | WorkerLost | WorkerLeaving | UnitSlow | DrainAsked


@dataclass(frozen=True, slots=True)
class Score:
    """Send a unit to a worker, behind those that it has."""

    worker: Worker
    key: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a worker in the place of this one, under a new number."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Set a unit aside: it will not be scored."""

    key: str
    story: tuple[str, ...]
    """What came of each attempt, oldest first."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every unit is scored or set aside."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is in flight any more, and nothing will be."""


Command = Score | Replace | Quarantine | Finished | Drained


class InvalidEventError(Exception):
    """A fleet reported what cannot have happened; a defect of the fleet, told with what is known of the unit."""


@dataclass(slots=True)
class _Record:
    """What befell a unit."""

    story: list[str] = field(default_factory=list)
    failed_on: list[Worker] = field(default_factory=list)
    num_deaths: int = 0
    num_losses: int = 0
    excused: set[Worker] = field(default_factory=set)
    """Workers that held another copy when a death was counted."""


class Dispatch:
    """The decisions of one round of units.

    Every unit is in exactly one place: waiting, in flight, scored, or set aside. In flight it is on one worker, or on
    two when the first was slow: whichever comes back first counts, the other is late and is ignored.
    """

    def __init__(self, keys: Sequence[str], *, num_workers: int, attempts_per_unit: int) -> None:
        """Start with every unit waiting and no worker known.

        Args:
            keys: the units, each once, in the order in which they are preferably scored.
            num_workers: workers that the fleet strives for; some may not be there yet.
            attempts_per_unit: times that scoring a unit may raise before it is set aside.
        """
        if len(set(keys)) != len(keys):
            raise ValueError(f"the {len(keys)} units have only {len(set(keys))} different keys")
        self._num_workers = num_workers
        self._attempts_per_unit = attempts_per_unit
        self._waiting = deque(keys)
        self._in_flight: dict[Worker, list[str]] = {}  # by living worker, oldest first: that one is in work
        self._leaving: set[Worker] = set()
        self._slow: list[str] = []
        self._scored: set[str] = set()
        self._quarantined: set[str] = set()
        self._records = {key: _Record() for key in keys}
        self._num_retries = 0
        self._is_draining = False

    @property
    def num_retries(self) -> int:
        """Times that a unit went back to waiting."""
        return self._num_retries

    def open_keys(self) -> list[str]:
        """Units that are neither scored nor set aside."""
        return [key for key in self._records if key not in self._scored and key not in self._quarantined]

    def is_scored(self, key: str) -> bool:
        """Whether a unit has come back: a second copy of it is late."""
        return key in self._scored

    def handle(self, event: Event) -> list[Command]:
        """Take in what happened; gives what to do about it, in order.

        Raises:
            InvalidEventError: it cannot have happened.
        """
        match event:
            case WorkerReady(worker):
                commands = self._worker_ready(worker)
            case UnitScored(worker, key):
                commands = self._unit_scored(worker, key)
            case UnitFailed(worker, key, message):
                commands = self._unit_failed(worker, key, message)
            case WorkerLost():
                commands = self._worker_lost(event)
            case WorkerLeaving(worker):
                self._leaving.add(worker)
                commands = []
            case UnitSlow(key):
                commands = self._unit_slow(key)
            case DrainAsked():
                self._is_draining, commands = True, []
        if not self._is_draining:
            commands += self._assign()
        if len(self._scored) + len(self._quarantined) == len(self._records):
            commands.append(Finished())
        elif self._is_draining and not any(self._in_flight.values()):
            commands.append(Drained())
        return commands

    def validate(self) -> None:
        """Assert the invariants; for tests."""
        held = [key for queue in self._in_flight.values() for key in queue]
        places = [*self._waiting, *self._scored, *self._quarantined, *(set(held) - self._scored)]
        assert sorted(places) == sorted(self._records), "a unit is lost, or in two places"
        assert all(held.count(key) <= COPIES_PER_UNIT for key in held), "too many copies of a unit"
        assert all(len(queue) <= UNITS_IN_FLIGHT for queue in self._in_flight.values()), "too many units in flight"
        for key, record in self._records.items():
            assert len(record.story) == len(record.failed_on) + record.num_losses
            if key in self._waiting:
                assert not self._is_spent(record), f"{key} has no attempt left"

    def _worker_ready(self, worker: Worker) -> list[Command]:
        if worker in self._in_flight:
            raise InvalidEventError(f"worker {worker} is ready for the second time: it holds {self._in_flight[worker]}")
        self._in_flight[worker] = []
        return []

    def _unit_scored(self, worker: Worker, key: str) -> list[Command]:
        self._take_back(worker, key)
        self._scored.add(key)
        return []

    def _unit_slow(self, key: str) -> list[Command]:
        if key not in self._records:
            raise InvalidEventError(f"unit {key} is slow but is not a unit of this round")
        if key not in self._slow:
            self._slow.append(key)
        return []

    def _unit_failed(self, worker: Worker, key: str, message: str) -> list[Command]:
        self._take_back(worker, key)
        if key in self._scored:
            return []
        record = self._records[key]
        record.failed_on.append(worker)
        record.story.append(f"on worker {worker}: {message}")
        return self._try_again([key])

    def _worker_lost(self, event: WorkerLost) -> list[Command]:
        if event.worker not in self._in_flight:
            raise InvalidEventError(f"worker {event.worker} is lost but was never ready, or lost before")
        units = self._in_flight.pop(event.worker)
        if units and units[0] not in self._scored:
            self._note_loss(event, units[0])
        return [Replace(event.worker), *self._try_again(units)]

    def _note_loss(self, event: WorkerLost, key: str) -> None:
        """In the record of the unit that was in work."""
        record = self._records[key]
        record.story.append(f"worker {event.worker} was lost: {event.message}")
        record.num_losses += 1
        is_excused = event.worker in record.excused and not event.was_stopped
        if not event.with_its_machine and not is_excused:
            record.num_deaths += 1
            record.excused.update(self._holders(key))

    def _take_back(self, worker: Worker, key: str) -> None:
        queue = self._in_flight.get(worker, [])
        if key not in queue:
            story = "; ".join(self._records[key].story) if key in self._records else "not a unit of this round"
            raise InvalidEventError(f"worker {worker} reports unit {key} but holds {queue}; the unit's story: {story}")
        queue.remove(key)

    def _try_again(self, keys: Sequence[str]) -> list[Command]:
        """Let units wait in front of all others, so that a bad one is found out early, or set them aside.

        One that has come back, or may still come back from another worker, is left as it is.
        """
        commands: list[Command] = []
        for key in reversed(keys):
            if key in self._scored or self._holders(key):
                continue
            record = self._records[key]
            if self._is_spent(record):
                self._quarantined.add(key)
                commands.append(Quarantine(key, tuple(record.story)))
            else:
                self._waiting.appendleft(key)
                self._num_retries += 1
        return commands

    def _is_spent(self, record: _Record) -> bool:
        return (
            len(record.failed_on) >= self._attempts_per_unit
            or record.num_deaths >= DEATHS_PER_UNIT
            or record.num_losses >= LOSSES_PER_UNIT
        )

    def _assign(self) -> list[Command]:
        """Give waiting units away: to idle workers first, then behind the unit that a worker has in work.

        The last units, one for each worker, wait until a worker is idle: behind a long unit they would be the last to
        come back, while other workers have nothing to do.
        """
        staying = self._staying()
        idle = [worker for worker in staying if not self._in_flight[worker]]
        commands = self._hand_out(idle, keep=0)
        commands += self._copy([worker for worker in idle if not self._in_flight[worker]])
        with_room = [worker for worker in staying if 0 < len(self._in_flight[worker]) < UNITS_IN_FLIGHT]
        return commands + self._hand_out(with_room, keep=self._num_workers)

    def _hand_out(self, workers: Sequence[Worker], keep: int) -> list[Command]:
        """One suitable unit for each of the workers, as long as more than ``keep`` units wait."""
        commands: list[Command] = []
        for worker in workers:
            key = next((key for key in self._waiting if self._suits(worker, key)), None)
            if key is not None and len(self._waiting) > keep:
                self._waiting.remove(key)
                self._in_flight[worker].append(key)
                commands.append(Score(worker, key))
        return commands

    def _copy(self, idle: Sequence[Worker]) -> list[Command]:
        """Second copies for workers without work: of units stuck behind a long one, then of slow ones."""
        stuck = [key for queue in self._in_flight.values() for key in queue[1:]] if idle else []
        commands: list[Command] = []
        for worker in idle:
            key = next((key for key in (*stuck, *self._slow) if self._may_be_copied(key)), None)
            if key is not None:
                self._in_flight[worker].append(key)
                commands.append(Score(worker, key))
        return commands

    def _may_be_copied(self, key: str) -> bool:
        """Whether a unit is open on one worker; one that has failed or killed before is not given to two at a time."""
        is_open = key not in self._scored and 0 < len(self._holders(key)) < COPIES_PER_UNIT
        return is_open and not self._records[key].story

    def _holders(self, key: str) -> list[Worker]:
        return [worker for worker, queue in self._in_flight.items() if key in queue]

    def _suits(self, worker: Worker, key: str) -> bool:
        """Whether a worker may take a unit: one that failed goes to another worker, where there is another."""
        failed_on = self._records[key].failed_on
        return worker not in failed_on or all(other in failed_on for other in self._staying())

    def _staying(self) -> list[Worker]:
        return [worker for worker in self._in_flight if worker not in self._leaving]

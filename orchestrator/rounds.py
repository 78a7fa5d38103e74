"""What a fleet is, the round that all fleets share, and the simplest fleet: one worker in this process."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from orchestrator.dispatch import (
    Command,
    Dispatch,
    DrainAsked,
    Drained,
    Event,
    Finished,
    Quarantine,
    Replace,
    Score,
    UnitFailed,
    UnitScored,
    Worker,
    WorkerReady,
)
from orchestrator.errors import DrainedError, FleetError, UnitQuarantinedError
from orchestrator.pace import Pace
from workers.unit import ScoredUnit, Unit

_logger = logging.getLogger(__name__)

News = tuple[Event, ScoredUnit | None]
"""What happened, with the scored unit if it is a ``UnitScored``."""


class Scorer(Protocol):
    """What a worker holds: a model, loaded once."""

    limits: MutableMapping[str, int]
    """Most rows at once, by task, where the accelerator had no room for a whole unit; else empty."""

    def score(self, unit: Unit) -> ScoredUnit:
        """Score a unit; the result depends on the unit alone."""
        ...


class WorkerRecipe(Protocol):
    """A plain, picklable value that says what a worker holds; built inside the worker."""

    def build(self) -> Scorer:
        """Load what is needed; also the place to set the number of threads."""
        ...


@dataclass(frozen=True, slots=True)
class FleetStats:
    """What became of a fleet so far."""

    workers: int
    """Workers alive and loaded, as far as is known."""
    deaths: int
    """Workers lost since the fleet was entered."""
    retries: int
    """Times that a unit was sent out again."""


class Fleet(Protocol):
    """Workers that persist over many rounds of units, within a ``with``."""

    def __enter__(self) -> Self:
        """Start the workers; they load in the background."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the workers."""
        ...

    def wait_for_a_worker(self) -> None:
        """Return when the first worker has loaded, or the fleet is to be drained.

        Raises:
            FleetError: no worker can be built.
        """
        ...

    def score(self, units: Sequence[Unit]) -> Iterator[ScoredUnit]:
        """Score every unit once; gives them in order of arrival.

        Raises:
            FleetError: no worker can be built.
            UnitQuarantinedError: units were set aside; raised when all others are scored and given.
            DrainedError: the fleet was drained; raised when what was in flight is given.
        """
        ...

    def drain(self) -> None:
        """Hand out nothing more; safe in a signal handler."""
        ...

    def show(self, figures: Mapping[str, float]) -> None:
        """Show how far the run is, by figures like those of a generation, on the cluster's dashboards if it has any."""
        ...

    def stats(self) -> FleetStats:
        """What became of the fleet so far."""
        ...


class DispatchedFleet(ABC):
    """The loop that fleets share: report an event to dispatch, do what it says."""

    def __init__(self, attempts_per_unit: int, drain_seconds: float) -> None:
        self._attempts_per_unit = attempts_per_unit
        self._drain_seconds = drain_seconds
        self._pace = Pace()
        self._units: dict[str, Unit] = {}  # of this round
        self._num_retries = 0
        self._is_drain_asked = False

    def drain(self) -> None:
        """As ``Fleet.drain``."""
        self._is_drain_asked = True

    def wait_for_a_worker(self) -> None:
        """As ``Fleet.wait_for_a_worker``."""
        self._units = {}
        self._begin_round()
        while not self._is_drain_asked:
            news = self._next_news()
            if news is not None and isinstance(news[0], WorkerReady):
                return

    def score(self, units: Sequence[Unit]) -> Iterator[ScoredUnit]:
        """As ``Fleet.score``."""
        if not units:
            return
        self._units = {unit.key: unit for unit in units}
        dispatch = Dispatch(
            [unit.key for unit in self._pace.longest_first(units)],
            num_workers=self._num_workers(),
            attempts_per_unit=self._attempts_per_unit,
        )
        past_retries = self._num_retries
        quarantined: list[Quarantine] = []
        drain_until: float | None = None
        last: Command | None = None
        self._begin_round()
        while not isinstance(last, Finished | Drained):
            news: News | None
            if self._is_drain_asked and drain_until is None:
                drain_until, news = time.monotonic() + self._drain_seconds, (DrainAsked(), None)
            elif drain_until is not None and (time.monotonic() > drain_until or self._is_cut_off()):
                break
            else:
                news = self._next_news()
            if news is None:
                continue
            event, scored = news
            is_first = scored is not None and not dispatch.is_scored(scored.key)
            # New work goes out before the caller sees the result: it may take its time to store it.
            for last in dispatch.handle(event):
                self._obey(last, quarantined)
            self._num_retries = past_retries + dispatch.num_retries
            if scored is not None and is_first:
                self._pace.learn(self._units[scored.key], scored.seconds)
                yield scored
        if not isinstance(last, Finished):
            raise DrainedError(len(dispatch.open_keys()))
        if quarantined:
            raise UnitQuarantinedError({command.key: command.story for command in quarantined})

    def _obey(self, command: Command, quarantined: list[Quarantine]) -> None:
        match command:
            case Score(worker, key):
                self._send(worker, self._units[key])
            case Replace(worker):
                _logger.warning("worker %d was lost; starting another in its place", worker)
                self._replace(worker)
            case Quarantine(key, story):
                _logger.error("unit %s was set aside: %s", key, "; ".join(story))
                quarantined.append(command)
            case Finished() | Drained():
                pass

    def _is_cut_off(self) -> bool:
        """Whether nothing can come back any more; asked while the fleet is drained."""
        return False

    @abstractmethod
    def _num_workers(self) -> int:
        """Workers to expect, those that still load included."""

    @abstractmethod
    def _begin_round(self) -> None:
        """Forget the former round; let every worker alive report that it is ready."""

    @abstractmethod
    def _next_news(self) -> News | None:
        """Wait a moment for something to happen; None when nothing did that dispatch need know of."""

    @abstractmethod
    def _send(self, worker: Worker, unit: Unit) -> None:
        """Send a unit to a worker, behind those that it has."""

    @abstractmethod
    def _replace(self, worker: Worker) -> None:
        """Start a worker in the place of a lost one."""


class InProcessFleet(DispatchedFleet):
    """One worker inside this process: for tests, for debugging, and for machines where Ray cannot run."""

    def __init__(self, recipe: WorkerRecipe, attempts_per_unit: int = 2) -> None:
        """Remember what to build.

        Args:
            recipe: says what the worker holds.
            attempts_per_unit: times that scoring a unit may raise before it is set aside.
        """
        super().__init__(attempts_per_unit, drain_seconds=math.inf)
        self._recipe = recipe
        self._scorer: Scorer | None = None
        self._queue: deque[Unit] = deque()
        self._is_ready = False

    def __enter__(self) -> Self:
        """Nothing to start: the worker loads when it is first needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the model."""
        self._scorer = None

    def stats(self) -> FleetStats:
        """As ``Fleet.stats``."""
        return FleetStats(workers=int(self._scorer is not None), deaths=0, retries=self._num_retries)

    def show(self, figures: Mapping[str, float]) -> None:
        """There is no dashboard."""

    def _num_workers(self) -> int:
        return 1

    def _begin_round(self) -> None:
        self._queue.clear()
        self._is_ready = False

    def _next_news(self) -> News | None:
        if self._scorer is None:
            self._scorer = _built(self._recipe)
        if not self._is_ready:
            self._is_ready = True
            return WorkerReady(0), None
        unit = self._queue.popleft()
        try:
            scored = self._scorer.score(unit)
        except Exception as error:
            _logger.warning("unit %s failed", unit.key, exc_info=True)
            return UnitFailed(0, unit.key, told(error)), None
        return UnitScored(0, unit.key), scored

    def _send(self, worker: Worker, unit: Unit) -> None:  # noqa: ARG002
        self._queue.append(unit)

    def _replace(self, worker: Worker) -> None:
        raise AssertionError(f"worker {worker} is this very process and cannot have been lost")


def _built(recipe: WorkerRecipe) -> Scorer:
    try:
        return recipe.build()
    except Exception as error:
        raise cannot_build(told(error)) from error


def cannot_build(what_happened: str) -> FleetError:
    """The recipe itself does not work: another worker would fare no better."""
    return FleetError(f"no worker can be built: {what_happened}")


def told(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

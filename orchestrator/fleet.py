"""Does what dispatch decides with Ray, on this machine or on many.

Ray appears in the files ``fleet*.py`` only, and is imported when a ``RayFleet`` is entered. Nothing that a fleet does
can change a score: it decides where and when a unit is scored, and hands over what came of it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from orchestrator import fleet_cluster
from orchestrator.config import ClusterSettings
from orchestrator.dispatch import UnitFailed, UnitScored, UnitSlow, Worker, WorkerLeaving, WorkerLost, WorkerReady
from orchestrator.errors import FleetError
from orchestrator.fleet_metrics import RunMetrics
from orchestrator.fleet_worker import NammWorker
from orchestrator.rounds import (
    DispatchedFleet,
    Fleet,
    FleetStats,
    InProcessFleet,
    News,
    Scorer,
    WorkerRecipe,
    cannot_build,
    told,
)
from workers.unit import Unit

__all__ = ["Fleet", "FleetStats", "InProcessFleet", "RayFleet", "Scorer", "WorkerRecipe", "fleet_for"]

_logger = logging.getLogger(__name__)

FAILED_STARTS = 3
"""Workers that may die one after the other while they load, in the place of one worker, before the fleet gives up."""

LOOK_SECONDS = 0.5
"""How often the fleet looks for slow units, hung workers and free accelerators, and whether it was asked to drain."""

NOTICE_SECONDS = 2.0
"""How often the fleet asks which machines were given notice."""

PATIENCE_SECONDS = 60.0
"""How long nothing may happen before the log says what is waited for."""


def fleet_for(recipe: WorkerRecipe, cluster: ClusterSettings, run_name: str = "") -> Fleet:
    """The fleet that the settings ask for, not yet entered; dashboards know it by the name of its run."""
    if cluster.address == "in-process":
        return InProcessFleet(recipe, cluster.attempts_per_unit)
    return RayFleet(recipe, cluster, run_name)


@dataclass(slots=True)
class _Place:
    """One of the fleet's workers, as the driver sees it."""

    actor: Any
    num_failed_starts: int
    """Workers before it, in the same place, that died while loading, without one that loaded in between."""
    pid: int | None = None
    """Process id on its machine; None while it loads."""
    machine: str = ""
    kind: str = ""
    """Of its machine's accelerator."""
    busy_since: float = 0.0
    """When it began with what it has in work, on the monotonic clock."""
    is_overdue: bool = False
    """Killed because that took too long."""
    is_leaving: bool = False
    """Whether its machine was given notice: it finishes what it has."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What an answer will be about: a unit, or (None) a report."""

    worker: Worker
    key: str | None


class RayFleet(DispatchedFleet):
    """Workers as Ray actors, on this machine or all over a cluster; lost ones are replaced while others go on."""

    def __init__(self, recipe: WorkerRecipe, cluster: ClusterSettings, run_name: str = "") -> None:
        """Remember what to start.

        Args:
            recipe: says what a worker holds; sent to every worker.
            cluster: where, how many, and what each needs.
            run_name: label of the run on dashboards.
        """
        super().__init__(cluster.attempts_per_unit, cluster.drain_seconds)
        self._recipe = recipe
        self._cluster = cluster
        self._run_name = run_name
        self._places: dict[Worker, _Place] = {}
        self._calls: dict[Any, _Call] = {}  # by the reference of the answer; of one worker oldest first
        self._found: deque[UnitSlow | WorkerLeaving] = deque()  # by looking around, and not yet told to dispatch
        self._limits: dict[str, dict[str, int]] = {}  # by kind of accelerator, see Scorer.limits
        self._most_workers = cluster.most_workers
        self._num_started = 0
        self._num_deaths = 0
        self._owns_connection = False
        self._interrupts = fleet_cluster.HeldInterrupts()
        self._looked_at = 0.0
        self._asked_at = 0.0
        self._heard_at = 0.0

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one here, and start the workers.

        Raises:
            FleetError: no cluster answers at the address, or none of its machines has room for a worker.
        """
        self._owns_connection = fleet_cluster.join(self._cluster)
        self._interrupts.begin()
        try:
            fleet_cluster.require_room(self._cluster)
            self._metrics = RunMetrics(self._run_name)
            for _ in range(self._cluster.fewest_workers):
                self._start(num_failed_starts=0)
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the workers, and Ray if it was started here; raise a Ctrl-C that came too late to be noticed."""
        self._disconnect()
        if kind is None:
            self._interrupts.let_through()

    def stats(self) -> FleetStats:
        """As ``Fleet.stats``."""
        return FleetStats(workers=len(self.worker_pids()), deaths=self._num_deaths, retries=self._num_retries)

    def worker_pids(self) -> dict[Worker, int]:
        """Process ids of the loaded workers, each on its machine: for those who look at, or kill, processes."""
        return {worker: place.pid for worker, place in self._places.items() if place.pid is not None}

    def show(self, figures: Mapping[str, float]) -> None:
        """As ``Fleet.show``: Prometheus reads them from Ray."""
        self._metrics.show_run(figures)
        self._metrics.show_fleet(self.stats())

    def _num_workers(self) -> int:
        return len(self._places)

    def _is_cut_off(self) -> bool:
        return self._owns_connection and fleet_cluster.has_died()

    def _disconnect(self) -> None:
        import ray

        if self._owns_connection:
            ray.shutdown()
        else:
            for place in self._places.values():
                ray.kill(place.actor)
        self._places.clear()
        self._calls.clear()
        self._owns_connection = False
        self._interrupts.end()

    def _start(self, num_failed_starts: int) -> None:
        import ray

        actor_class = ray.remote(
            num_cpus=self._cluster.cpus_per_worker,
            num_gpus=self._cluster.accelerators_per_worker,
            # Ray's own restarts would feed a deadly unit to one worker after the other, for ever.
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,  # Ray's own list of calls costs more than a call; the journal has all of it
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )(NammWorker)
        worker = self._num_started
        self._num_started += 1
        actor = actor_class.remote(self._recipe)
        self._places[worker] = _Place(actor, num_failed_starts)
        self._calls[actor.report.remote(self._limits)] = _Call(worker, None)

    def _begin_round(self) -> None:
        self._heard_at = time.monotonic()
        self._found.clear()
        for worker in [worker for worker, place in self._places.items() if place.is_leaving]:
            self._dismiss(worker)
        still_at_work = {call.worker for call in self._calls.values()}
        for worker in self._places.keys() - still_at_work:
            self._places[worker].busy_since = self._heard_at
        loading = {ref: call for ref, call in self._calls.items() if self._places[call.worker].pid is None}
        # Those that are loaded report again: one that died since the last round must not be taken for a unit's victim.
        loaded = {
            place.actor.report.remote(self._limits): _Call(worker, None)
            for worker, place in self._places.items()
            if place.pid is not None
        }
        self._calls = loading | loaded

    def _next_news(self) -> News | None:
        import ray

        # A signal to all processes of a job ends Ray as well: what it would be asked then is never answered.
        if time.monotonic() > self._looked_at + LOOK_SECONDS and not self._is_drain_asked:
            self._look_around()
        if self._found:
            return self._found.popleft(), None
        answered, _ = ray.wait(list(self._calls), num_returns=1, timeout=LOOK_SECONDS)
        self._interrupts.let_through()
        if not answered:
            return None
        self._heard_at = time.monotonic()
        worker = self._calls[answered[0]].worker
        # A worker works in order: were the second call of a dead worker received first, the wrong unit got blamed.
        return self._receive(next(ref for ref, call in self._calls.items() if call.worker == worker))

    def _look_around(self) -> None:
        """What no answer tells: slow units, hung workers, free accelerators, a cluster without room."""
        import ray

        now = self._looked_at = time.monotonic()
        for call in self._oldest_calls():
            place = self._places[call.worker]
            if now > place.busy_since + self._cluster.unit_timeout_seconds and not place.is_overdue:
                place.is_overdue = True
                ray.kill(place.actor)
            elif call.key is not None and self._pace.is_slow(self._units[call.key], now - place.busy_since):
                self._found.append(UnitSlow(call.key))
        if now > self._asked_at + NOTICE_SECONDS:
            self._heed_notices()
        if self._num_staying() < self._most_workers:
            self._grow()
        self._metrics.show_fleet(self.stats())
        if not self.worker_pids() and now > self._heard_at + PATIENCE_SECONDS:
            self._heard_at = now
            _logger.warning(
                "no worker has loaded for another %g s: they load for long, or the cluster has no room for them (`ray "
                "status` tells which)",
                PATIENCE_SECONDS,
            )

    def _oldest_calls(self) -> list[_Call]:
        """What every loaded worker is busy with; a report, while it is busy with a unit of a former round."""
        oldest: dict[Worker, _Call] = {}
        for call in self._calls.values():
            if self._places[call.worker].pid is not None:
                oldest.setdefault(call.worker, call)
        return list(oldest.values())

    def _grow(self) -> None:
        """Start workers where there is room now: unlike the fewest, they do not make a cluster grow."""
        loading = len(self._places) - len(self.worker_pids())
        room = fleet_cluster.free_places(self._cluster) - loading
        for _ in range(min(room, self._most_workers - self._num_staying())):
            self._start(num_failed_starts=0)

    def _heed_notices(self) -> None:
        """Give nothing more to machines that are about to go, and replace their workers; drain if it is our own."""
        self._asked_at = time.monotonic()
        leaving = fleet_cluster.leaving_machines()
        if leaving and fleet_cluster.own_machine() in leaving and not self._is_drain_asked:
            _logger.warning("the driver's machine is about to go: the run stops in good order")
            self.drain()
        at_work = {call.worker for call in self._calls.values()}
        for worker, place in list(self._places.items()):
            if place.is_leaving and worker not in at_work:
                self._dismiss(worker)
            elif place.machine in leaving and not place.is_leaving:
                _logger.warning("the machine of worker %d is about to go: another worker takes its place", worker)
                place.is_leaving = True
                self._found.append(WorkerLeaving(worker))
        for _ in range(self._cluster.fewest_workers - self._num_staying()):
            self._start(num_failed_starts=0)

    def _num_staying(self) -> int:
        return sum(not place.is_leaving for place in self._places.values())

    def _dismiss(self, worker: Worker) -> None:
        """Stop a worker that has nothing to do any more; dispatch gives it nothing, and need not know."""
        import ray

        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        ray.kill(self._places.pop(worker).actor)

    def _send(self, worker: Worker, unit: Unit) -> None:
        place = self._places[worker]
        if all(call.worker != worker or call.key is None for call in self._calls.values()):
            place.busy_since = time.monotonic()
        # Genomes travel inside the call: through the object store it took longer.
        self._calls[place.actor.score.remote(unit)] = _Call(worker, unit.key)

    def _replace(self, worker: Worker) -> None:
        import ray

        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        place = self._places.pop(worker)
        if self._is_drain_asked and self._owns_connection:
            return  # all of Ray ends with this process, or has ended
        ray.kill(place.actor)  # one that is only out of reach would keep its accelerator
        if self._num_staying() < self._cluster.fewest_workers:
            self._start(place.num_failed_starts + 1 if place.pid is None else 0)
        elif place.pid is None:
            self._most_workers = self._num_staying()
            _logger.warning("a worker died while it loaded: the fleet stays at %d workers", self._most_workers)

    def _receive(self, ref: Any) -> News | None:
        """Turn an answer, or what came instead, into an event; None where dispatch need not know."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._raised(call, error), None
        except RayError as error:
            lost = self._lost(call, error)
            return None if lost is None else (lost, None)
        place = self._places[call.worker]
        place.busy_since = time.monotonic()  # with the next one, if it has one
        if call.key is None:
            place.pid, place.machine, place.kind = answer.pid, answer.machine, answer.kind
            return WorkerReady(call.worker), None
        scored, limits = answer
        self._limits.setdefault(place.kind, {}).update(limits)
        self._metrics.count_unit()
        return UnitScored(call.worker, call.key), scored

    def _raised(self, call: _Call, error: Any) -> UnitFailed:
        """The worker's own code raised: the unit's fault, or the recipe's."""
        if call.key is None:
            raise cannot_build(str(error.cause)) from error
        _logger.warning("unit %s failed on worker %d: %s", call.key, call.worker, error)
        return UnitFailed(call.worker, call.key, str(error.cause))

    def _lost(self, call: _Call, error: Any) -> WorkerLost | None:
        """The worker is gone, or out of reach, which comes to the same; None where it held no unit of this round."""
        _logger.info("worker %d: %s", call.worker, told(error))
        self._num_deaths += 1
        place = self._places[call.worker]
        if call.key is not None:
            if place.is_overdue:
                limit = self._cluster.unit_timeout_seconds
                reason = f"stopped after {limit:g} s (cluster.unit_timeout_seconds)"
                return WorkerLost(call.worker, reason, was_stopped=True)
            # Ray may be gone itself while it is drained, and blaming a unit makes no difference then.
            was_there = not self._is_drain_asked and fleet_cluster.is_alive(place.machine)
            return WorkerLost(call.worker, told(error), with_its_machine=not was_there)
        if getattr(error, "actor_init_failed", False):
            raise cannot_build(told(error)) from error
        if place.pid is None and place.num_failed_starts + 1 >= FAILED_STARTS:
            raise FleetError(f"workers die while they load, {FAILED_STARTS} in a row: {told(error)}") from error
        self._replace(call.worker)
        return None

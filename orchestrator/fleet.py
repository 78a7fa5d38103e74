"""Does what dispatch decides with Ray, on this machine or on many.

Ray appears in this file only, and is imported when a ``RayFleet`` is entered. Nothing that a fleet does can change a
score: it decides where and when a unit is scored, and hands over what came of it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from orchestrator.address import require_cluster
from orchestrator.config import ClusterSettings
from orchestrator.dispatch import Event, UnitFailed, UnitScored, Worker, WorkerLost, WorkerReady
from orchestrator.errors import FleetError
from orchestrator.rounds import (
    DispatchedFleet,
    Fleet,
    FleetStats,
    InProcessFleet,
    Scorer,
    WorkerRecipe,
    cannot_build,
    told,
)
from workers.unit import ScoredUnit, Unit

__all__ = ["Fleet", "FleetStats", "InProcessFleet", "RayFleet", "Scorer", "WorkerRecipe", "fleet_for"]

_logger = logging.getLogger(__name__)

FAILED_STARTS = 3
"""Workers that may die one after the other while they load, in the place of one worker, before the fleet gives up."""

PATIENCE_SECONDS = 60.0
"""How long nothing may happen before the log says what is waited for."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray started here: units travel inside the calls, so that little is needed."""


def fleet_for(recipe: WorkerRecipe, cluster: ClusterSettings) -> Fleet:
    """The fleet that the settings ask for, not yet entered."""
    if cluster.address == "in-process":
        return InProcessFleet(recipe, cluster.attempts_per_unit)
    return RayFleet(recipe, cluster)


class NammWorker:
    """The actor: one process with one scorer. ``ps`` shows it as ``ray::NammWorker``."""

    def __init__(self, recipe: WorkerRecipe) -> None:
        self._recipe = recipe
        self._scorer: Scorer | None = None

    def report(self) -> tuple[int, str]:
        """Be ready, building the scorer if there is none yet; gives the process id and the id of the machine."""
        import ray

        if self._scorer is None:
            with _plain_errors():
                self._scorer = self._recipe.build()
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def score(self, unit: Unit) -> ScoredUnit:
        """Score a unit."""
        assert self._scorer is not None, "a unit came before report() had built the scorer"
        with _plain_errors():
            return self._scorer.score(unit)


class _WorkerCodeError(Exception):
    """What the recipe or its scorer raised, in one line."""


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Exceptions leave a worker as text: some cannot be unpickled, which would pass for a lost worker."""
    try:
        yield
    except Exception as error:
        raise _WorkerCodeError(told(error)) from error


@dataclass(slots=True)
class _Place:
    """One of the fleet's workers, as the driver sees it."""

    actor: Any
    num_failed_starts: int
    """Workers before it, in the same place, that died while loading, without one that loaded in between."""
    pid: int | None = None
    """Process id on its machine; None while it loads."""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class _Call:
    """What an answer will be about: a unit, or (None) a report."""

    worker: Worker
    key: str | None


class RayFleet(DispatchedFleet):
    """Workers as Ray actors, on this machine or all over a cluster; lost ones are replaced while others go on."""

    def __init__(self, recipe: WorkerRecipe, cluster: ClusterSettings) -> None:
        """Remember what to start.

        Args:
            recipe: says what a worker holds; sent to every worker.
            cluster: where, how many, and what each needs.
        """
        super().__init__(num_workers=cluster.workers, attempts_per_unit=cluster.attempts_per_unit)
        self._recipe = recipe
        self._cluster = cluster
        self._places: dict[Worker, _Place] = {}
        self._calls: dict[Any, _Call] = {}  # by the reference of the answer; of one worker oldest first
        self._num_started = 0
        self._num_deaths = 0
        self._owns_connection = False

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one here, and start the workers.

        Raises:
            FleetError: no cluster answers at the address, or none of its machines has room for a worker.
        """
        try:
            self._connect()
            self._require_room()
            for _ in range(self._cluster.workers):
                self._start(num_failed_starts=0)
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the workers, and Ray if it was started here."""
        self._disconnect()

    def stats(self) -> FleetStats:
        """As ``Fleet.stats``."""
        return FleetStats(workers=len(self.worker_pids()), deaths=self._num_deaths, retries=self._num_retries)

    def worker_pids(self) -> dict[Worker, int]:
        """Process ids of the loaded workers, each on its machine: for those who look at, or kill, processes."""
        return {worker: place.pid for worker, place in self._places.items() if place.pid is not None}

    def _connect(self) -> None:
        import ray

        address = self._cluster.address
        if address is not None:
            require_cluster(_resolved(address))
        if ray.is_initialized():
            return  # a program that uses Ray for more than this keeps its connection, and ends it
        self._owns_connection = True
        options: dict[str, Any] = {"address": address}
        if address is None:
            num_cpus = max(1, math.ceil(self._cluster.workers * self._cluster.cpus_per_worker))
            options = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
            options["object_store_memory"] = OBJECT_STORE_BYTES
        try:
            with _keeping_sigterm():
                ray.init(**options, logging_level=logging.ERROR, log_to_driver=_logger.isEnabledFor(logging.DEBUG))
        except Exception as error:
            where = "Ray cannot be started on this machine"
            if address is not None:
                where = f"cannot join the cluster {address} (the port of a client server is written ray://host:port)"
            raise FleetError(f"{where}: {told(error)}") from error

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

    def _require_room(self) -> None:
        import ray

        needed = {"CPU": self._cluster.cpus_per_worker, "GPU": self._cluster.accelerators_per_worker}
        machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
        if any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines):
            return
        there = "; ".join(f"{machine.get('CPU', 0):g} CPU and {machine.get('GPU', 0):g} GPU" for machine in machines)
        raise FleetError(
            f"a worker needs {needed['CPU']:g} CPU and {needed['GPU']:g} GPU on one machine, but the cluster "
            f"has {there or 'no machine'}: lower cluster.cpus_per_worker or cluster.accelerators_per_worker, or add "
            "machines"
        )

    def _start(self, num_failed_starts: int) -> None:
        import ray

        actor_class = ray.remote(
            num_cpus=self._cluster.cpus_per_worker,
            num_gpus=self._cluster.accelerators_per_worker,
            # Ray's own restarts would feed a deadly unit to one worker after the other, for ever.
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )(NammWorker)
        worker = self._num_started
        self._num_started += 1
        actor = actor_class.remote(self._recipe)
        self._places[worker] = _Place(actor, num_failed_starts)
        self._calls[actor.report.remote()] = _Call(worker, None)

    def _begin_round(self) -> None:
        loading = {ref: call for ref, call in self._calls.items() if self._places[call.worker].pid is None}
        # Those that are loaded report again: one that died since the last round must not be taken for a unit's victim.
        loaded = {p.actor.report.remote(): _Call(w, None) for w, p in self._places.items() if p.pid is not None}
        self._calls = loading | loaded

    def _next_event(self) -> tuple[Event, ScoredUnit | None]:
        import ray

        while True:
            answered, _ = ray.wait(list(self._calls), num_returns=1, timeout=PATIENCE_SECONDS)
            if not answered:
                self._explain_waiting()
                continue
            worker = self._calls[answered[0]].worker
            # A worker works in order: were the second call of a dead worker received first, the wrong unit got blamed.
            oldest = next(ref for ref, call in self._calls.items() if call.worker == worker)
            if (news := self._receive(oldest)) is not None:
                return news

    def _explain_waiting(self) -> None:
        if not self.worker_pids():
            _logger.warning(
                "no worker has loaded for another %g s: they load for long, or the cluster has no room for them (`ray "
                "status` tells which)",
                PATIENCE_SECONDS,
            )

    def _send(self, worker: Worker, unit: Unit) -> None:
        # Genomes travel inside the call: through the object store it took longer.
        self._calls[self._places[worker].actor.score.remote(unit)] = _Call(worker, unit.key)

    def _replace(self, worker: Worker) -> None:
        import ray

        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        place = self._places.pop(worker)
        ray.kill(place.actor)  # one that is only out of reach would keep its accelerator
        self._start(place.num_failed_starts + 1 if place.pid is None else 0)

    def _receive(self, ref: Any) -> tuple[Event, ScoredUnit | None] | None:
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
        if call.key is not None:
            return UnitScored(call.worker, call.key), answer
        place = self._places[call.worker]
        place.pid, place.machine = answer
        return WorkerReady(call.worker), None

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
            return WorkerLost(call.worker, told(error), with_its_machine=not _is_alive(place.machine))
        if getattr(error, "actor_init_failed", False):
            raise cannot_build(told(error)) from error
        if place.pid is None and place.num_failed_starts + 1 >= FAILED_STARTS:
            raise FleetError(f"workers die while they load, {FAILED_STARTS} in a row: {told(error)}") from error
        self._replace(call.worker)
        return None


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray aborts the process at SIGTERM; a program that had a handler keeps it, and so leaves every ``with``."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(former) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, former)


def _is_alive(machine: str) -> bool:
    import ray

    return any(node["NodeID"] == machine and node["Alive"] for node in ray.nodes())


def _resolved(address: str) -> str:
    """The address itself; for ``auto`` what Ray would make of it."""
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address  # there is no public way to ask

    try:
        return os.environ.get("RAY_ADDRESS") or str(canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise FleetError(
            "cluster.address is auto, but no Ray runs on this machine and RAY_ADDRESS is not set: start one with "
            "`ray start --head`, or set cluster.address to null, which starts Ray for this run"
        ) from error

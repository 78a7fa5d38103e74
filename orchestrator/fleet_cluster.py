"""The way into a Ray cluster: join the one at an address, or start one here, and see what room it has."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.address import require_cluster
from orchestrator.config import ClusterSettings
from orchestrator.errors import FleetError
from orchestrator.rounds import told

_logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray started here: units travel inside the calls, so that little is needed."""


def join(cluster: ClusterSettings) -> bool:
    """Connect this process; False when it was connected before, by a program that uses Ray for more than this.

    Raises:
        FleetError: no cluster answers at the address, or Ray cannot be started here.
    """
    import ray

    address = cluster.address
    if address is not None:
        require_cluster(_resolved(address))
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address}
    if address is None:
        num_cpus = max(1, math.ceil(cluster.most_workers * cluster.cpus_per_worker))
        options = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    try:
        with _keeping_sigterm():
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=_logger.isEnabledFor(logging.DEBUG))
    except Exception as error:
        raise FleetError(_why_not(address, told(error))) from error
    return True


def _why_not(address: str | None, said: str) -> str:
    """What Ray said when it was to be joined or started, with the remedy."""
    if address is None:
        return f"Ray cannot be started on this machine: {said}"
    if "version mismatch" in said.lower():
        return (
            f"cannot join the cluster {address}, which runs other versions than this process: {said.strip()}; install "
            "its versions of Ray and Python here, or let the cluster run the driver (namm submit)"
        )
    return f"cannot join the cluster {address} (the port of a client server is written ray://host:port): {said}"


def has_died() -> bool:
    """Whether a process of the Ray that was started here is gone; asks the machine, not Ray, which may be silent."""
    from ray._private.worker import _global_node  # there is no public way to ask

    return _global_node is None or bool(_global_node.dead_processes())


class HeldInterrupts:
    """Ctrl-C, held back while Ray is being asked something, and raised between two questions.

    An exception in the middle of a call through a client server (``ray://``) leaves its connection locked, so that
    closing it would wait for ever and the workers would live on. A second Ctrl-C is raised at once.
    """

    def __init__(self) -> None:
        """Hold nothing back before ``begin``."""
        self._former: Any = None
        self._is_asked = False

    def begin(self) -> None:
        """From now on; in a thread other than the main one nothing arrives that could be held."""
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._hold)

    def end(self) -> None:
        """Let the former handler have them again; only the main thread may."""
        if self._former is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._former)
            self._former = None

    def let_through(self) -> None:
        """Raise what was held.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C since ``begin``.
        """
        if self._is_asked:
            raise KeyboardInterrupt

    def _hold(self, *_: object) -> None:
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True


def require_room(cluster: ClusterSettings) -> None:
    """Refuse a cluster none of whose machines has room for a worker.

    Raises:
        FleetError: says what is needed, and what there is.
    """
    needed = _needed(cluster)
    machines = [machine["Resources"] for machine in _machines()]
    if any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines):
        return
    there = "; ".join(f"{machine.get('CPU', 0):g} CPU and {machine.get('GPU', 0):g} GPU" for machine in machines)
    raise FleetError(
        f"a worker needs {needed['CPU']:g} CPU and {needed['GPU']:g} GPU on one machine, but the cluster "
        f"has {there or 'no machine'}: lower cluster.cpus_per_worker or cluster.accelerators_per_worker, or add "
        "machines"
    )


def free_places(cluster: ClusterSettings) -> int:
    """Workers for which the cluster has room now, if what is free lies together."""
    import ray

    free = ray.available_resources()
    places = [int(free.get(kind, 0) / amount + 1e-6) for kind, amount in _needed(cluster).items() if amount > 0]
    return min(places, default=cluster.most_workers)


def leaving_machines() -> set[str]:
    """Ray's ids of machines that were given notice, as spot machines are; none where Ray cannot be asked.

    Ray calls that draining: its autoscaler and ``ray drain-node`` announce it some time before a machine goes.
    """
    import ray
    from ray._private.worker import global_worker  # there is no public way to ask

    if ray.util.client.ray.is_connected():  # a client server does not say
        return set()
    try:
        return set(global_worker.gcs_client.get_draining_nodes())
    except Exception as error:  # whatever it is, a machine that goes without notice is lost in good order too
        _logger.debug("cannot ask which machines are about to go: %s", told(error))
        return set()


def own_machine() -> str:
    """Ray's id of the machine of this process."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def is_alive(machine: str) -> bool:
    """Whether a machine is still part of the cluster."""
    return any(found["NodeID"] == machine for found in _machines())


def _machines() -> list[dict[str, Any]]:
    import ray

    return [machine for machine in ray.nodes() if machine["Alive"]]


def _needed(cluster: ClusterSettings) -> dict[str, float]:
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.accelerators_per_worker}


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray aborts the process at SIGTERM; a program that had a handler keeps it, and so leaves every ``with``."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(former) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, former)


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

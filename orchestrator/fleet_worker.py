"""The actor: one process with one scorer, and what it tells the driver. Imports little, so that it starts soon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.rounds import Scorer, WorkerRecipe, told
from workers.unit import ScoredUnit, Unit


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """Where a loaded worker is."""

    pid: int
    """Process id on its machine."""
    machine: str
    """Ray's id of the machine."""
    kind: str
    """Of the machine's accelerator."""


class WorkerCodeError(Exception):
    """What the recipe or its scorer raised, in one line."""


class NammWorker:
    """One process with one scorer. ``ps`` shows it as ``ray::NammWorker``."""

    def __init__(self, recipe: WorkerRecipe) -> None:
        self._recipe = recipe
        self._scorer: Scorer | None = None
        self._place: tuple[str, str] | None = None

    def report(self, limits: Mapping[str, Mapping[str, int]]) -> WorkerReport:
        """Be ready, building the scorer if there is none yet.

        Args:
            limits: what other workers have learned, see ``Scorer.limits``, by kind of accelerator.
        """
        import ray

        if self._scorer is None:
            where = f" (on {ray.util.get_node_ip_address()}; every machine needs all that the settings name)"
            with _plain_errors(where):
                self._scorer = self._recipe.build()
        if self._place is None:  # asked once: it takes the cluster's head some milliseconds, at the start of a round
            machine = ray.get_runtime_context().get_node_id()
            self._place = machine, _kind_of(machine)
        machine, kind = self._place
        self._scorer.limits.update(limits.get(kind, {}))
        return WorkerReport(os.getpid(), machine, kind)

    def score(self, unit: Unit) -> tuple[ScoredUnit, dict[str, int]]:
        """Score a unit; gives the limits of the scorer as well."""
        assert self._scorer is not None, "a unit came before report() had built the scorer"
        with _plain_errors():
            return self._scorer.score(unit), dict(self._scorer.limits)


def _kind_of(machine: str) -> str:
    """What sort of accelerator a machine has, as Ray calls it; ``cpu`` for none."""
    import ray

    resources: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == machine), {})
    return next((name for name in sorted(resources) if name.startswith("accelerator_type:")), "cpu")


@contextmanager
def _plain_errors(where: str = "") -> Iterator[None]:
    """Exceptions leave a worker as text: some cannot be unpickled, which would pass for a lost worker."""
    try:
        yield
    except Exception as error:
        raise WorkerCodeError(told(error) + where) from error

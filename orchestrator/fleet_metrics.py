"""What Prometheus is told of a run, through Ray; ``deploy/monitoring/metrics.md`` holds the names and their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.rounds import FleetStats

GAUGES = {
    "namm_generation": "cluster/generations",
    "namm_generation_seconds": "cluster/generation_seconds",
    "namm_fitness_best": "fitness/best",
    "namm_kept_ratio_mean": "cache/kept_ratio_mean",
}
"""Gauge to the figure of a run that it shows."""


class RunMetrics:
    """The metrics of one driver; needs a process that is connected to Ray."""

    def __init__(self, run_name: str) -> None:
        """Begin counters at 0.

        Args:
            run_name: the value of the label ``run``.
        """
        from ray.util.metrics import Counter, Gauge

        def labelled(kind: Any, name: str) -> Any:
            metric = kind(name, description="see deploy/monitoring/metrics.md", tag_keys=("run",))
            metric.set_default_tags({"run": run_name})
            return metric

        self._gauges = {name: labelled(Gauge, name) for name in (*GAUGES, "namm_workers")}
        self._units = labelled(Counter, "namm_units_done_total")
        self._deaths = labelled(Counter, "namm_worker_deaths_total")
        self._retries = labelled(Counter, "namm_retries_total")
        self._told = FleetStats(workers=0, deaths=0, retries=0)

    def count_unit(self) -> None:
        """One more unit was scored."""
        self._units.inc()

    def show_run(self, figures: Mapping[str, float]) -> None:
        """Show how far the run is, by the figures that there are."""
        for name, key in GAUGES.items():
            if key in figures:
                self._gauges[name].set(figures[key])

    def show_fleet(self, stats: FleetStats) -> None:
        """Show what became of the fleet so far, which needs no generation: without workers there is none."""
        self._gauges["namm_workers"].set(stats.workers)
        for counter, now, before in (
            (self._deaths, stats.deaths, self._told.deaths),
            (self._retries, stats.retries, self._told.retries),
        ):
            if now > before:
                counter.inc(now - before)
        self._told = stats

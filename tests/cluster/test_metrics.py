"""What Prometheus would scrape from a real cluster while a fleet works."""

from __future__ import annotations

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.config import ClusterSettings
from orchestrator.fleet import RayFleet
from tests.cluster.test_ray_fleet import units
from tests.orchestrator import recipes, scored
from tests.orchestrator.recipes import FakeRecipe, SlowToBuild

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

NAMES = re.findall(r"^\| `(namm_\w+)` \|", Path("deploy/monitoring/metrics.md").read_text(), flags=re.MULTILINE)
FIGURES = {
    "cluster/generations": 7.0,
    "cluster/generation_seconds": 3.5,
    "fitness/best": 0.9,
    "cache/kept_ratio_mean": 0.25,
}


EXPECTED = {
    "namm_generation": 7.0,
    "namm_generation_seconds": 3.5,
    "namm_fitness_best": 0.9,
    "namm_kept_ratio_mean": 0.25,
    "namm_workers": 1.0,
    "namm_units_done_total": 5.0,
}


def samples(port: int) -> dict[str, float]:
    """Our metrics on a machine's page, by name without Ray's prefix; those of the run ``first``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text = page.read().decode()
    found = re.findall(r'^ray_(namm_\w+)\{[^}]*run="first"[^}]*\} (\S+)$', text, flags=re.MULTILINE)
    return {name: float(value) for name, value in found}


def shown_until(wanted: dict[str, float]) -> dict[str, float]:
    """Look at this machine's page until it shows at least these."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 300
    found: dict[str, float] = {}
    while not found.items() >= wanted.items():  # they arrive some seconds late, not all at once
        assert time.monotonic() < deadline, found
        time.sleep(1)
        with suppress(OSError):  # a busy agent answers late
            found = samples(port)
    return found


def test_a_fleet_that_waits_for_its_first_worker_shows_that_it_has_none():
    """Both gauges used to appear with the first committed generation, which never comes without workers."""
    import ray

    for module in (recipes, scored):
        ray.cloudpickle.register_pickle_by_value(module)
    with RayFleet(SlowToBuild(), ClusterSettings(workers=1), "first") as fleet, ThreadPoolExecutor() as beside:
        fleet.show({"cluster/generations": 0.0})
        seen = beside.submit(shown_until, {"namm_workers": 0.0, "namm_generation": 0.0})
        seen.add_done_callback(lambda _: fleet.drain())
        fleet.wait_for_a_worker()
    assert set(seen.result()) == {"namm_workers", "namm_generation"}


def test_every_metric_that_is_documented_is_scraped_with_its_value():
    import ray

    for module in (recipes, scored):
        ray.cloudpickle.register_pickle_by_value(module)
    assert len(NAMES) == 8
    with RayFleet(FakeRecipe(), ClusterSettings(workers=1), "first") as fleet:
        list(fleet.score(units(count=5)))
        fleet.show(FIGURES)
        found = shown_until(EXPECTED)
    assert set(found) <= set(NAMES)
    assert set(NAMES) - set(EXPECTED) == {"namm_worker_deaths_total", "namm_retries_total"}

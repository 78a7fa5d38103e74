"""What Prometheus would scrape from a real cluster while a fleet works."""

from __future__ import annotations

import re
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.config import ClusterSettings
from orchestrator.fleet import RayFleet
from tests.cluster.test_ray_fleet import units
from tests.orchestrator import recipes, scored
from tests.orchestrator.recipes import FakeRecipe

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


def test_every_metric_that_is_documented_is_scraped_with_its_value():
    import ray

    for module in (recipes, scored):
        ray.cloudpickle.register_pickle_by_value(module)
    assert len(NAMES) == 8
    with RayFleet(FakeRecipe(), ClusterSettings(workers=1), "first") as fleet:
        list(fleet.score(units(count=5)))
        fleet.show(FIGURES)
        port = ray.nodes()[0]["MetricsExportPort"]
        deadline = time.monotonic() + 300
        found: dict[str, float] = {}
        while not found.items() >= EXPECTED.items():  # they arrive some seconds late, not all at once
            assert time.monotonic() < deadline, found
            time.sleep(1)
            with suppress(OSError):  # a busy agent answers late
                found = samples(port)
    assert set(found) <= set(NAMES)
    assert set(NAMES) - set(EXPECTED) == {"namm_worker_deaths_total", "namm_retries_total"}

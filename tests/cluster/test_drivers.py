"""Drivers as processes of their own, on a cluster that no machine has left yet."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own log files
]

DRIVER = """
import os, sys, time
import numpy as np
from dataclasses import dataclass
from orchestrator.config import ClusterSettings
from orchestrator.fleet import RayFleet
from orchestrator.units import plan_units
from orchestrator.config import UnitSettings
from workers.memory.specs import RivalSpec
from workers.unit import ScoredUnit

@dataclass(frozen=True)
class Recipe:
    limits = {}
    def build(self): return self
    def score(self, unit):
        time.sleep(600 if unit.examples == (2,) else 0)
        none = np.zeros(1)
        return ScoredUnit(unit.key, 0, "m", "t", "train", none, none, none, none, none, none, none, none, none, 0.0)

units = plan_units(generation=0, memory_name="m", memory=RivalSpec(name="full"), genomes=np.zeros((1, 1)),
                   examples={"t": (0, 1, 2)}, split="train",
                   settings=UnitSettings(candidates_per_unit=1, examples_per_unit=1))
with RayFleet(Recipe(), ClusterSettings(workers=2, cpus_per_worker=0.5, address=(sys.argv[1:] or [None])[0])) as fleet:
    arriving = fleet.score(units)
    next(arriving), next(arriving)
    print(*fleet.worker_pids().values(), flush=True)
    next(arriving)
"""


def started_driver(folder, *address):
    """A driver that has workers, and their process ids.

    Ray's client gives a server half a minute to start a process for it, which a machine that does much else may not
    manage; it is asked again.
    """
    for _ in range(8):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *address],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if pids := [int(pid) for pid in driver.stdout.readline().split()]:
            return driver, pids
        _, errors = driver.communicate()
        assert "connection timed out" in errors or "Starting Ray client server failed" in errors, errors
    raise AssertionError(errors)


@pytest.mark.parametrize("joins", [False, True], ids=["starts-its-own-ray", "joins-through-the-client-server"])
def test_a_driver_may_run_anywhere_and_ctrl_c_leaves_no_worker_behind(tmp_path, cluster, joins):
    """The interrupt goes to the whole process group, as in a terminal; workers import the installed package."""
    driver, pids = started_driver(tmp_path, *([cluster.client_address] if joins else []))
    try:
        os.killpg(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=180)
    finally:
        driver.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 120
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.1)

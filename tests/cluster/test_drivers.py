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


VERSIONS = """
import sys
from collections import namedtuple
import ray, ray.util.client
from orchestrator.config import ClusterSettings
from orchestrator.errors import FleetError
from orchestrator.fleet import RayFleet
from tests.orchestrator.recipes import FakeRecipe

if sys.argv[2] == "ray":
    ray.__version__ = "2.0.0"
else:
    sys.version_info = namedtuple("Version", "major minor micro releaselevel serial")(3, 9, 1, "final", 0)
try:
    with RayFleet(FakeRecipe(), ClusterSettings(address=sys.argv[1])):
        pass
except FleetError as error:
    print(error)
"""

RAYS_OWN_LIMIT = ("connection timed out", "Starting Ray client server failed")
"""What Ray says when its client server did not start a process within half a minute, as on a busy machine."""
TRIES = 8


def started_driver(folder, *address):
    """A driver that has workers, and their process ids.

    Ray's client gives a server half a minute to start a process for it, which a machine that does much else may not
    manage; it is asked again.
    """
    for _ in range(TRIES):
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
        assert any(told in errors for told in RAYS_OWN_LIMIT), errors
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


@pytest.mark.parametrize(("library", "version"), [("ray", "2.0.0"), ("python", "3.9.1")])
@pytest.mark.parametrize("through", ["address", "client_address"])
def test_a_cluster_of_another_version_is_named_with_the_remedy(cluster, library, version, through):
    """The process says of itself that it is older; it is Ray that compares."""
    address = getattr(cluster, through)
    for _ in range(TRIES):
        done = subprocess.run(
            [sys.executable, "-c", VERSIONS, address, library], capture_output=True, text=True, check=True, timeout=200
        )
        (line,) = done.stdout.splitlines()
        if not any(told in line for told in RAYS_OWN_LIMIT):
            break
    assert line.startswith(f"cannot join the cluster {address}, which runs other versions than this process: ")
    assert version in line
    assert "install its versions of Ray and Python here" in line

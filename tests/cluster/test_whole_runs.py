"""Whole runs as users start them, on real Ray with the real small Llama: one configuration has one ending."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.history import read_journal
from orchestrator.store import Store
from tests.orchestrator.conftest import TINY
from workers.unit import FULL_CACHE_PASS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SETTINGS = (
    *TINY,
    "cluster.address=null",
    "cluster.cpus_per_worker=0.5",
    "search.generations=3",
    "units.candidates_per_unit=2",
    "units.examples_per_unit=1",
)
"""Eight units in a generation, so that four workers have something to share."""


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "evolve", "small", *SETTINGS, *words, "--run", str(folder)]


def ending(folder: Path) -> dict[str, Any]:
    """What must not depend on how a run went."""
    summary = json.loads((folder / "summary.json").read_text())
    names = ("candidates", "genomes", "evaluations", "evictions")
    return {
        **{key: summary[key] for key in ("population_hash", "genome_sha256", "table", "results")},
        **{name: Store(folder).table(name) for name in names},
    }


def run_to_its_end(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(command(folder, *words), capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return ending(folder)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory) -> dict[str, Any]:
    """The ending, without Ray."""
    return run_to_its_end(tmp_path_factory.mktemp("runs") / "in-process", "cluster.address=in-process")


def count_units(folder: Path, generation: int) -> float:
    """Units of a generation on disk; all of them when their files vanish while they are read: it was committed."""
    try:
        return len(Store(folder).units(generation))
    except StorageError:
        return math.inf


def started(folder: Path, generation: int, num_units: int, *settings: str) -> subprocess.Popen[str]:
    """A run in a session of its own, which has that many units of a generation on disk by now."""
    said = folder.with_suffix(".err")
    with said.open("w") as stderr:
        words = [*command(folder, "cluster.workers=2", *settings), "--quiet"]
        process = subprocess.Popen(words, start_new_session=True, stderr=stderr, text=True)
    deadline = time.monotonic() + 300
    while count_units(folder, generation) < num_units:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def worker_pids(session: int) -> list[int]:
    """The Ray actors that belong to a session of processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::NammWorker") and os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_run(workers, in_process, tmp_path):
    assert run_to_its_end(tmp_path / "run", f"cluster.workers={workers}") == in_process


@pytest.mark.parametrize(("workers", "kills"), [(2, 1), (8, 3)], ids=["1-of-2", "3-of-8"])
def test_workers_killed_in_mid_generation_change_nothing(workers, kills, in_process, tmp_path):
    folder = tmp_path / "run"
    process = started(folder, 0, 3, f"cluster.workers={workers}", "cluster.cpus_per_worker=0.25")
    victims = worker_pids(process.pid)[:kills]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=400) == 0, (tmp_path / "run.err").read_text()
    assert ending(folder) == in_process
    assert read_journal(folder).generations[-1].metrics["cluster/deaths"] >= 1


@pytest.mark.parametrize(("generation", "num_units"), [(FULL_CACHE_PASS, 2), (1, 5)])
def test_a_killed_driver_is_resumed_and_repeats_no_finished_unit(generation, num_units, in_process, tmp_path):
    folder = tmp_path / "run"
    process = started(folder, generation, num_units)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    durable = {unit.key: unit.seconds for unit in Store(folder).units(generation)}
    assert len(durable) >= num_units
    assert not (folder / "summary.json").exists()
    assert run_to_its_end(folder, "cluster.workers=2") == in_process
    units = Store(folder).table("units", [generation]).to_pydict()
    assert durable.items() <= dict(zip(units["unit"], units["seconds"], strict=True)).items()


def test_a_sigterm_to_all_processes_of_a_job_stops_it_in_good_order(in_process, tmp_path):
    """As batch systems and ``timeout`` send it: Ray's own processes end with the driver's, and answer nothing more."""
    folder = tmp_path / "run"
    process = started(folder, 0, 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=200) == 0, (tmp_path / "run.err").read_text()
    assert not (folder / "summary.json").exists()
    assert run_to_its_end(folder, "cluster.workers=2") == in_process

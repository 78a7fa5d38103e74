"""A whole run on several machines of a real cluster: one is lost, another joins in mid-generation; one has no model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.history import has_run, read_journal
from orchestrator.store import Store
from tests.cluster.conftest import HEAD_CPUS
from tests.cluster.test_whole_runs import ending, run_to_its_end, started
from tests.orchestrator.conftest import TINY
from workers.language_model import SMALL_LLAMA, model_folder
from workers.unit import FULL_CACHE_PASS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own log files
]

MANY_UNITS = ("units.candidates_per_unit=1", "search.generations=4")
"""16 in a generation."""


def workers_on(*machines: Any) -> list[int]:
    """Process ids of the NAMM workers that the machines' raylets have started; others may have some here too."""
    raylets = {machine.all_processes["raylet"][0].process.pid for machine in machines}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::NammWorker"):
                found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    """As long as the run is alive."""
    deadline = time.monotonic() + 400
    while not holds():
        assert process.poll() is None, folder.with_suffix(".err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_machine_lost_and_one_joined_in_mid_generation_change_nothing(cluster, tmp_path):
    """Every machine has room for one worker, and the run wants two.

    Both workers are frozen in mid-generation. Then one machine is killed and another joins: whatever is scored now, the
    new machine's worker has scored, after Ray noticed the loss and the fleet replaced the worker.
    """
    alone = run_to_its_end(tmp_path / "alone", *MANY_UNITS, "cluster.address=in-process")
    folder = tmp_path / "run"
    lost = cluster.add_node(num_cpus=HEAD_CPUS)
    on_cluster = (f"cluster.address={cluster.address}", f"cluster.cpus_per_worker={HEAD_CPUS}")
    process = started(folder, FULL_CACHE_PASS, 1, *MANY_UNITS, *on_cluster)
    frozen: list[int] = []
    try:
        wait_until(lambda: len(Store(folder).units(0)) >= 2, process, folder)
        wait_until(lambda: len(workers_on(cluster.head_node, lost)) == 2, process, folder)
        for pid in workers_on(cluster.head_node, lost):
            os.kill(pid, signal.SIGSTOP)
            frozen.append(pid)
        (survivor,) = workers_on(cluster.head_node)
        cluster.remove_node(lost, allow_graceful=False)
        joined = cluster.add_node(num_cpus=HEAD_CPUS)
        before = _standing(folder)  # by now what was on its way to the driver is stored
        wait_until(lambda: _standing(folder) > before, process, folder)
        assert workers_on(joined)
        os.kill(survivor, signal.SIGCONT)
        assert process.wait(timeout=600) == 0, folder.with_suffix(".err").read_text()
    finally:
        process.kill()
        process.wait()
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert ending(folder) == alone
    assert read_journal(folder).generations[-1].metrics["cluster/deaths"] >= 1


def _standing(folder: Path) -> tuple[int, int]:
    """The generation under way, and how many of its units are scored."""
    generation = len(read_journal(folder).generations)
    return generation, len(Store(folder).units(generation))


def test_workers_without_the_model_are_named_and_the_run_folder_stays_free(cluster, tmp_path, monkeypatch, capsys):
    """The driver finds it in its own folder, which is not the one that the cluster was started in."""
    shutil.copytree(model_folder(SMALL_LLAMA), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"cluster.address={cluster.address}", "cluster.cpus_per_worker=0.25", "model.path_or_id=./model"]
    assert main(["evolve", "small", *words, "--run", "run", "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("namm: error: ")]
    assert "no worker can be built: ModelError: model.path_or_id: no model at './model'" in line
    assert "every machine needs all that the settings name" in line
    assert not has_run(tmp_path / "run")

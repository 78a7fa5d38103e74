"""A whole run on several machines of a real cluster: one is lost, another joins in mid-generation; one has no model."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.history import has_run, read_journal
from orchestrator.store import Store
from tests.cluster.conftest import HEAD_CPUS
from tests.cluster.test_whole_runs import ending, run_to_its_end, started
from tests.orchestrator.conftest import TINY
from workers.language_model import SMALL_LLAMA, model_folder

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own log files
]

MANY_UNITS = ("units.candidates_per_unit=1", "search.generations=16")
"""16 in a generation, so that it is still under way when the machines have changed."""


def wait_for_a_generation_of_two_workers(process: subprocess.Popen[str], folder: Path) -> None:
    """Until two loaded workers are in the middle of one."""
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None, folder.with_suffix(".err").read_text()
        assert time.monotonic() < deadline
        done = read_journal(folder).generations
        if done and done[-1].metrics["cluster/workers"] == 2 and len(Store(folder).units(len(done))) >= 2:
            return
        time.sleep(0.02)


def test_a_machine_lost_and_one_joined_in_mid_generation_change_nothing(cluster, tmp_path):
    """Every machine has room for one worker; the run wants two."""
    alone = run_to_its_end(tmp_path / "alone", *MANY_UNITS, "cluster.address=in-process")
    folder = tmp_path / "run"
    lost = cluster.add_node(num_cpus=HEAD_CPUS)
    on_cluster = (f"cluster.address={cluster.address}", f"cluster.cpus_per_worker={HEAD_CPUS}")
    process = started(folder, 0, 2, *MANY_UNITS, *on_cluster)
    try:
        wait_for_a_generation_of_two_workers(process, folder)
        cluster.remove_node(lost, allow_graceful=False)
        assert len(read_journal(folder).generations) < 16, "the run was over before the machine was"
        cluster.add_node(num_cpus=HEAD_CPUS)
        assert process.wait(timeout=600) == 0, folder.with_suffix(".err").read_text()
    finally:
        process.kill()
        process.wait()
    assert ending(folder) == alone
    assert read_journal(folder).generations[-1].metrics["cluster/deaths"] >= 1


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

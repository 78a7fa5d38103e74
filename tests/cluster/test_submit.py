"""``namm submit`` on a real head with dashboard and token: the job is followed, left, stopped, and resumed."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.history import has_run
from tests.cluster.local_head import LocalHead, namm, submit_command
from tests.orchestrator.conftest import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

GENERATIONS = 400  # long enough that a log which is shown in bursts is read before the run is over
SETTINGS = (
    *(word for word in TINY if not word.startswith("cluster.address=")),
    f"search.generations={GENERATIONS}",
    "cluster.workers=1",
    "cluster.cpus_per_worker=0.5",
)
"""Long enough that a job can be stopped in the middle."""


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    with LocalHead() as started:
        yield started


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What ``namm status`` says."""
    capsys.readouterr()
    assert main(["status", str(folder), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def wait_until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def submitted(head: LocalHead, folder: Path, *words: str) -> Any:
    """The page's command, with another folder, address and settings."""
    name, command, preset, *_ = shlex.split(submit_command())
    assert (name, command) == ("namm", "submit")
    return namm(head, "submit", preset, *SETTINGS, "--run", str(folder), "--address", head.address, *words)


def test_a_job_is_followed_left_stopped_and_resumed_and_ends_as_a_run_that_was_left_alone(head, tmp_path, capsys):
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert main(["evolve", "small", *SETTINGS, "cluster.address=in-process", "--quiet", "--run", str(undisturbed)]) == 0

    first = submitted(head, folder)
    said = []
    for line in first.stderr:
        said.append(line)
        if re.match(r"generation \d+/", line):
            break
    assert shlex.split(said[0])[1:8] == [
        *("job", "submit", "--address", head.address),
        *("--runtime-env", "deploy/runtime-env.yaml", "--"),
    ], said
    first.send_signal(signal.SIGINT)
    _, farewell = first.communicate(timeout=120)
    assert first.returncode == 130
    ((job, state),) = head.jobs().items()
    assert state == "RUNNING", "Ctrl-C ends the following, not the job"
    assert f"job logs --address {head.address} --follow {job}" in farewell
    assert f"job stop --address {head.address} {job}" in farewell

    alive = status(folder, capsys)
    assert alive["state"] == "at work"
    assert 1 <= alive["generations_done"] < GENERATIONS
    assert (alive["part"], alive["units_total"]) == ("generation", 2)
    assert alive["workers"] == 1
    assert alive["seconds_left"] > 0

    head.stop(job)
    wait_until(lambda: head.jobs()[job] == "STOPPED")
    stopped = status(folder, capsys)
    assert stopped["state"] == "stopped", "the shipped environment gives a driver the time to end well"
    assert stopped["generations_done"] < GENERATIONS

    second = submitted(head, folder, "--json")
    told, _ = second.communicate(timeout=600)
    assert second.returncode == 0
    assert json.loads(told)["status"] == "succeeded"
    finished = status(folder, capsys)
    assert finished["state"] == "finished"
    assert len(finished["attempts"]) == 2
    hashes = [json.loads((one / "summary.json").read_text())["population_hash"] for one in (folder, undisturbed)]
    assert hashes[0] == hashes[1]
    assert head.token not in "".join(said) + farewell + told


def test_a_job_that_fails_says_so_with_exit_code_1(head, tmp_path):
    done = submitted(head, tmp_path / "run", "model.path_or_id=/nowhere/on/this/cluster")
    out, said = done.communicate(timeout=300)
    assert (done.returncode, out) == (1, "")
    assert "no model at '/nowhere/on/this/cluster'" in said, "the log is shown"
    assert re.search(r"namm: error: job raysubmit_\w+ failed", said.splitlines()[-1])
    assert not has_run(tmp_path / "run")


def test_a_wrong_token_is_told_in_one_line_without_the_token(head, tmp_path, monkeypatch):
    wrong = "not-the-token-of-this-cluster"
    monkeypatch.setattr(LocalHead, "environment", {**head.environment, "RAY_AUTH_TOKEN": wrong})
    done = submitted(head, tmp_path / "run", "--json")
    out, said = done.communicate(timeout=240)
    assert (done.returncode, out) == (2, "")
    assert "does not take the job" in said
    assert "Invalid authentication token" in said
    assert said.count("\n") == 1
    assert wrong not in said

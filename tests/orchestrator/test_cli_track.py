"""``namm track``: a run in MLflow from its folder alone, as its own driver would have shown it."""

import json
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.analysis.pictures import PLOTS
from orchestrator.cli import main
from orchestrator.commands import track as track_module
from orchestrator.config import load_config
from orchestrator.history import read_journal
from orchestrator.tracking_mlflow import MlflowRun
from tests.orchestrator.conftest import TINY
from tests.orchestrator.disk import last_attempt
from tests.orchestrator.test_cli_inspect import change_opening
from tests.orchestrator.test_tracking import (  # noqa: F401 - fixtures
    MlflowServer,
    Seen,
    empty_database,
    environment,
)
from tests.orchestrator.test_tracking_server import free_port

OPTIONS = ("--experiment", "tests")


@pytest.fixture
def database(empty_database, tmp_path):  # noqa: F811
    """Address of an empty MLflow database."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other.db')}"


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(finished_run.folder, tmp_path / "runs" / "tiny")


def tracked(capsys, folder, uri):
    """The JSON document of ``namm track``."""
    capsys.readouterr()
    assert main(["track", str(folder), "--uri", uri, *OPTIONS, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def content(shown):
    """All that MLflow has of a run, but for what says when and where it was put there."""
    run, name = shown.run, f"tests-{shown.run.info.run_name}"
    champion = shown.client.get_model_version_by_alias(name, "champion")
    return {
        "points": {key: shown.points(key) for key in run.data.metrics},
        "params": {key: value for key, value in run.data.params.items() if key != "tracking.uri"},
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        "datasets": sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
        "artifacts": [shown.artifacts(folder) for folder in ("", "champion")],
        "champion": (champion.tags["digest"], len(shown.versions(name))),
        "status": run.info.status,
        "name": run.info.run_name,
    }


def points_of(folder):
    """What the journal says that the curves are."""
    records = read_journal(folder).generations
    return {
        key: [(one.generation, one.metrics[key], one.timestamp_ms) for one in records] for key in records[0].metrics
    }


def test_a_run_that_was_never_tracked_is_shown_whole_and_twice_adds_nothing(run_folder, database, capsys):
    document = tracked(capsys, run_folder, database)
    shown = Seen(database)
    once = content(shown)
    assert once["points"] == points_of(run_folder)
    assert document["points"] == sum(map(len, once["points"].values()))
    assert document["run_id"] == shown.run_id
    assert once["params"]["search.population"] == "4"
    assert len(once["datasets"]) == 2
    assert once["artifacts"][0] == ["champion", "config.yaml", "environment.txt", "images", "summary.json"]
    assert (once["status"], once["name"]) == ("FINISHED", "tiny")
    assert shown.run.info.start_time == read_journal(run_folder).attempts[0].opened_ms
    assert shown.run.info.end_time == read_journal(run_folder).generations[-1].timestamp_ms

    assert tracked(capsys, run_folder, database) == document
    assert content(Seen(database)) == once
    assert not (run_folder / "tracking").exists(), "the run folder is only read"


def test_pictures_have_a_slider_and_the_run_says_what_it_is(run_folder, database, capsys):
    tracked(capsys, run_folder, database)
    shown = Seen(database)
    keys = {
        tuple(path.split("/")[-1].split("+")[:3:2])
        for path in shown.artifacts("images")
        if not path.endswith("+compressed.webp")
    }
    assert keys == {(key.replace("/", "~"), str(step)) for key in PLOTS for step in (0, 1)}
    tags = shown.run.data.tags
    assert (tags["attempt"], tags["stages"]) == ("1", "0: facts_prose-256, facts_code-256")
    note = tags["mlflow.note.content"]
    assert f"namm watch {run_folder}" in note
    for sql in re.findall(r'namm query \S+ "(.*)"', note):
        assert main(["query", str(run_folder), sql, "--json"]) == 0
    contexts = {(one.dataset.name, tag.value) for one in shown.run.inputs.dataset_inputs for tag in one.tags}
    assert contexts == {("facts_prose-256", "train and heldout"), ("facts_code-256", "train and heldout")}
    packages = shown.client.download_artifacts(shown.run_id, "environment.txt")
    assert f"torch=={version('torch')}" in Path(packages).read_text()
    config = shown.client.download_artifacts(shown.run_id, "config.yaml")
    assert load_config(config).search.population == 4
    assert 30 <= len(shown.run.data.metrics) <= 80


def test_the_run_that_the_driver_itself_shows_is_found_again(database, tmp_path, capsys):
    folder = tmp_path / "runs" / "own"
    words = [*TINY, "tracking.enabled=true", f"tracking.uri={database}", "tracking.experiment=tests"]
    assert main(["evolve", "small", *words, "--run", str(folder), "--quiet"]) == 0
    before = content(Seen(database))
    capsys.readouterr()
    assert main(["track", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "tests"
    assert content(Seen(database)) == before


def test_an_interrupted_run_is_shown_as_such_and_one_at_work_as_its_driver_shows_it(run_folder, database, capsys):
    path = last_attempt(run_folder)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    shutil.rmtree(run_folder / "champion")
    (run_folder / "summary.json").unlink()
    assert tracked(capsys, run_folder, database)["generations"] == 1
    assert Seen(database).run.info.status == "RUNNING", "its driver, this process, is alive"
    change_opening(run_folder, pid=2**22 + 1)
    tracked(capsys, run_folder, database)
    shown = Seen(database)
    assert shown.run.info.status == "KILLED"
    assert shown.artifacts() == ["config.yaml", "environment.txt", "images"]


def test_settings_that_a_later_attempt_changed_become_tags(run_folder, database, capsys):
    first = last_attempt(run_folder)
    opening = json.loads(first.read_text().splitlines()[0])
    opening["config"]["cluster"]["attempts_per_unit"] = 9
    opening |= {"attempt": 2, "after": first.name, "inherits": 2}
    first.with_name("attempt-000002-0123456789ab.jsonl").write_text(json.dumps(opening) + "\n")
    tracked(capsys, run_folder, database)
    data = Seen(database).run.data
    assert (data.params["cluster.attempts_per_unit"], data.tags["changed.cluster.attempts_per_unit"]) == ("2", "9")


def test_a_server_that_is_not_there_is_one_line(run_folder, capsys):
    assert main(["track", str(run_folder), "--uri", f"http://me:secret-word@127.0.0.1:{free_port()}"]) == 2
    error = capsys.readouterr().err
    assert "no MLflow server answers at http://***@127.0.0.1" in error
    assert error.count("\n") == 1


def test_a_server_that_goes_away_in_between_is_one_line_and_the_next_time_adds_the_rest(
    run_folder, database, monkeypatch, capsys
):
    monkeypatch.setattr(track_module.time, "sleep", lambda _: None)
    whole = MlflowRun.deliver
    answers = iter([True, True, False, False, False])

    def deliver(run, items):
        if not next(answers, True):
            raise ConnectionError("http://me:secret-word@there is away")
        return whole(run, items)

    monkeypatch.setattr(MlflowRun, "deliver", deliver)
    assert main(["track", str(run_folder), "--uri", database, *OPTIONS]) == 2
    error = capsys.readouterr().err
    assert "does not take the run (http://***@there is away): 1 of" in error
    assert error.count("\n") == 1
    tracked(capsys, run_folder, database)
    assert content(Seen(database))["points"] == points_of(run_folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_outlives_its_server_and_an_empty_one_gets_the_same_run(empty_database, tmp_path, capsys):  # noqa: F811
    """The server is killed in mid-run and comes back; the run neither waits for it nor loses or doubles a point."""
    servers = []
    for name in ("own", "empty"):
        (tmp_path / name).mkdir()
        servers.append(MlflowServer(tmp_path / name, shutil.copy(empty_database, tmp_path / name / "server.db")))
    own, empty = servers
    folder, generations = tmp_path / "runs" / "watched", 60
    words = [*TINY, "tracking.enabled=true", f"tracking.uri={own.uri}", "tracking.experiment=tests"]
    words += [f"search.generations={generations}", "--run", str(folder), "--quiet"]

    def num_generations():
        return len(read_journal(folder).generations) if (folder / "journal").exists() else 0

    def wait_for(count):
        deadline = time.monotonic() + 300
        while num_generations() < count:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    try:
        own.start()
        driver = subprocess.Popen([sys.executable, "-m", "orchestrator", "evolve", "small", *words])
        wait_for(2)
        own.kill()
        wait_for(num_generations() + 5)
        own.start()
        assert driver.wait(300) == 0
        # On a busy machine the run may end before the server is up: then the rest goes out with the next start.
        assert main(["resume", str(folder), "--quiet"]) == 0
        original = content(Seen(own.uri))
        assert original["points"] == points_of(folder)
        assert all(len(points) == generations for points in original["points"].values())
        empty.start()
        for _ in range(2):
            tracked(capsys, folder, empty.uri)
            assert content(Seen(empty.uri)) == original
    finally:
        for server in servers:
            server.kill()

"""``namm inspect``: where a run stands, from its journal alone, and what a saved memory is."""

import hashlib
import json
import os
import shutil
import socket

import pytest

from orchestrator.cli import main
from orchestrator.commands.inspect import normalisation_hash
from orchestrator.journal import read_journal
from tests.orchestrator.disk import journal_files, last_attempt
from workers.memory.specs import Normalisation


def inspected(capsys, what):
    """The JSON document about a folder."""
    assert main(["inspect", str(what), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def young_run(finished_run, tmp_path):
    """A run after its first generation: nothing but a journal, and a driver that is at work on it."""
    shutil.copytree(finished_run.folder / "journal", tmp_path / "journal")
    path = last_attempt(tmp_path)
    opening, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(opening + lines[0] + '{"kind": "gener')  # the disk was full just now
    change_opening(tmp_path, pid=os.getpid())
    return tmp_path


def change_opening(folder, **fields):
    """Let another driver have opened the run."""
    path = last_attempt(folder)
    opening, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps({**json.loads(opening), **fields}) + "\n", *lines]))


def test_a_finished_run_tells_all(finished_run, capsys):
    document = inspected(capsys, finished_run.folder)
    assert document["kind"] == "run"
    assert document["generations_done"] == document["generations"] == 2
    assert document["population_hash"] == finished_run.summary["population_hash"]
    assert document["champion"] == str(finished_run.champion)
    assert document["settings"]["search.population"] == 4
    assert len(document["curves"]["fitness/best"]) == 2
    assert 0 < document["metrics"]["cache/kept_ratio_mean"] <= 1
    assert set(document["seconds"]) == {"ask", "score", "commit"}
    assert document["driver"] is None


def test_people_see_curves_and_settings(finished_run, capsys):
    assert main(["inspect", str(finished_run.folder)]) == 0
    out = capsys.readouterr().out
    for told in (
        "2 of 2, evaluated",
        "best fitness",
        "▁",
        "kept ratio",
        "search.population",
        "none: the run was closed",
    ):
        assert told in out


def test_a_run_can_be_looked_at_while_it_is_alive(young_run, capsys):
    before = journal_files(young_run)
    document = inspected(capsys, young_run)
    assert (document["generations_done"], document["generations"]) == (1, 2)
    assert document["champion"] is None
    assert document["driver"]["state"] == "at work"
    assert journal_files(young_run) == before
    assert [path.name for path in young_run.iterdir()] == ["journal"]


@pytest.mark.parametrize(
    ("driver", "state"),
    [({"host": socket.gethostname(), "pid": 2**22 + 1}, "dead"), ({"host": "elsewhere", "pid": 1}, "out of sight")],
)
def test_what_became_of_the_driver_is_told(driver, state, young_run, capsys):
    change_opening(young_run, **driver)
    assert inspected(capsys, young_run)["driver"]["state"] == state


def test_a_run_without_generations_is_no_error(young_run, capsys):
    path = last_attempt(young_run)
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert main(["inspect", str(young_run)]) == 0
    assert "none of 2 yet" in capsys.readouterr().out


def test_credentials_of_a_tracking_server_are_not_shown(young_run, capsys):
    config = read_journal(young_run).attempts[0].config
    config["tracking"]["uri"] = "https://user:secret@mlflow.example"
    change_opening(young_run, config=config)
    assert inspected(capsys, young_run)["settings"]["tracking.uri"] == "https://***@mlflow.example"


def test_a_saved_memory_tells_what_it_is_and_where_it_came_from(finished_run, capsys):
    document = inspected(capsys, finished_run.champion)
    assert document["kind"] == "memory"
    assert document["genome_size"] == 2124
    assert document["genome_norm"] > 0
    assert document["genome_sha256"] == finished_run.summary["genome_sha256"]
    assert document["settings"]["hidden_size"] == 16
    assert document["origin"]["population_hash"] == finished_run.summary["population_hash"]
    assert len(document["normalisation_sha256"]) == 64


def test_people_see_a_memory_too(finished_run, capsys):
    assert main(["inspect", str(finished_run.champion)]) == 0
    out = capsys.readouterr().out
    for told in ("2,124 numbers, norm ", "origin: model", "hidden_size", "normalisation"):
        assert told in out


def test_the_hash_of_the_statistics_is_that_of_their_json():
    expected = hashlib.sha256(b"[[0.5, 1.0], [2.0, 3.0]]").hexdigest()
    assert normalisation_hash(Normalisation((0.5, 1.0), (2.0, 3.0))) == expected
    assert normalisation_hash(None) is None


def test_what_is_neither_run_nor_memory_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "neither a run nor a saved memory is at" in capsys.readouterr().err


def test_a_models_folder_is_no_memory(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is not a saved memory" in capsys.readouterr().err

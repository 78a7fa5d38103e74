"""``namm watch``: a run live, from its journal alone."""

import io
import json
import shutil
import threading
import time

import pytest

from orchestrator.cli import main
from orchestrator.commands.watch import CURVES, display, watch
from orchestrator.history import read_journal
from orchestrator.terminal import render
from tests.orchestrator.disk import last_attempt
from tests.orchestrator.test_cli_inspect import change_opening, young_run  # noqa: F401 - a fixture
from tests.orchestrator.test_cli_status import alive, close  # noqa: F401 - a fixture


def test_generations_are_told_as_they_end_and_watching_ends_with_the_run(alive, capsys):  # noqa: F811
    """Also for one who looks every second only: no generation is left out."""
    record = json.loads(last_attempt(alive).read_text().splitlines()[1])

    def go_on():
        time.sleep(0.3)
        with last_attempt(alive).open("a") as journal:
            journal.write(json.dumps({**record, "generation": 1}) + "\n")
        close(alive)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert main(["watch", str(alive), "--every", "1", "--json"]) == 0
    thread.join()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["generation 1/2", "generation 2/2"]
    assert "fitness best" in lines[0]
    document = json.loads(captured.out)
    assert (document["state"], document["generations_done"], document["generations"]) == ("finished", 2, 2)
    assert document["curves"]["fitness/best"] == [record["metrics"]["fitness/best"]] * 2


def test_nothing_but_the_journal_is_read(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run.folder / "journal", tmp_path / "journal")
    assert main(["watch", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for said in ("2 of 2 generations", "none: the run was closed", "generation 2/2", "units/s", *CURVES):
        assert said in out


def test_a_terminal_gets_a_live_display(alive, monkeypatch):  # noqa: F811
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    thread = threading.Thread(target=lambda: (time.sleep(0.3), close(alive)))
    thread.start()
    watch(alive, seconds=0.05, stream=stream)
    thread.join()
    assert "1 of 2 generations" in stream.getvalue()
    assert "▄" in stream.getvalue()  # one value: a line in the middle


def test_a_run_before_its_first_generation_can_be_watched(young_run):  # noqa: F811
    opening = last_attempt(young_run).read_text().splitlines(keepends=True)[0]
    last_attempt(young_run).write_text(opening)
    text = render(display("run", read_journal(young_run)), io.StringIO())
    assert "0 of 2 generations" in text
    assert "not known before the first generation has ended" in text


def test_a_folder_without_a_run_is_told_in_one_line(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("every", ["0", "soon", "-1", "86401", "99999999999999"])
def test_a_pause_is_at_least_a_second_and_at_most_a_day(every, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["watch", str(tmp_path), "--every", every])
    assert stopped.value.code == 2

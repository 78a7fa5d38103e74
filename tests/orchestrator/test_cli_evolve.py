"""``namm evolve`` and ``namm resume`` on real runs, each of a few seconds."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from orchestrator.cli import main
from orchestrator.journal import Journal, read_journal
from orchestrator.terminal import installed_command
from tests.orchestrator.conftest import TINY
from tests.orchestrator.disk import journal_files

NAMM = [sys.executable, "-m", "orchestrator"]


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A finished run to go on with; a run folder may be moved."""
    shutil.copytree(finished_run.folder, tmp_path / "copy")
    return tmp_path / "copy"


def leave_open(folder):
    """Open a run and go away without closing it."""
    last = read_journal(folder).attempts[-1]
    journal = Journal.open(folder, last.config_hash, last.config)
    journal._lock.release()


def interrupted_run(folder, number, *words):
    """Start a run, send it a signal after its first generation; returns the ended process."""
    # The table takes so long that the run cannot be over before the signal is there, however late that comes.
    long_table = ["evaluation.lengths=[256,512,1024]", "evaluation.rivals=[recent,h2o,snapkv,tova]"]
    command = [*NAMM, "evolve", "small", *TINY, *long_table, *words, "--run", str(folder)]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        said = ""
        while "generation 1/" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(number)
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(command, process.returncode, out, said + err)


def test_evolve_prints_the_table_and_says_where_everything_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evolve", *TINY, "seed=3", "tracking.enabled=true"]) == 0  # preset and folder by default
    captured = capsys.readouterr()
    folder = tmp_path / "runs" / "small-seed3"
    summary = json.loads((folder / "summary.json").read_text())
    names = [line.split()[1] for line in captured.out.splitlines() if line.startswith("256")]
    assert names[:3] == ["full", "namm", "one-head"]
    assert set(names[3:]) == {"recent-uniform", "recent-layer", "recent-head"}
    for told in (
        summary["population_hash"],
        "runs/small-seed3/champion",
        "runs/small-seed3/summary.json",
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/runs/mlflow.db",
    ):
        assert told in captured.out
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert captured.err.splitlines()[0] == "evolving in runs/small-seed3: 2 generations of 4 candidates"
    assert "generation 2/2  fitness best " in captured.err


def test_json_is_one_document_and_nothing_else(copied_run, capsys):
    assert main(["evolve", "small", *TINY, "--run", str(copied_run), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["population_hash"] == json.loads((copied_run / "summary.json").read_text())["population_hash"]
    assert document["champion"] == str(copied_run / "champion")
    assert {"table", "results", "seconds", "generations", "run_folder", "summary"} <= document.keys()
    assert captured.err == ""


def test_quiet_prints_only_the_table(copied_run, capsys):
    assert main(["resume", str(copied_run), "--quiet"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[:2] == ["tokens", "memory"]
    assert all(line.startswith("256 ") for line in lines[1:])
    assert captured.err == ""


def test_a_finished_run_can_be_extended_and_ends_like_a_longer_one(copied_run, tmp_path, capsys):
    assert main(["resume", str(copied_run), "--generations", "3", "evaluation.rivals=[]", "--json"]) == 0
    extended = json.loads(capsys.readouterr().out)
    longer = [*TINY, "search.generations=3", "evaluation.rivals=[]"]
    assert main(["evolve", "small", *longer, "--run", str(tmp_path / "longer"), "--json"]) == 0
    assert extended["population_hash"] == json.loads(capsys.readouterr().out)["population_hash"]
    assert [attempt.attempt for attempt in read_journal(copied_run).attempts] == [1, 2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search.population=6"], "search.population (was 4) changed"),
        (["--generations", "1"], "search.generations is 1, but the run in"),
        (["searhc.generations=3"], "unknown key 'searhc': did you mean 'search'?"),
    ],
)
def test_resume_refuses_what_decides_the_trajectory(words, told, copied_run, capsys):
    before = journal_files(copied_run)
    assert main(["resume", str(copied_run), *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert journal_files(copied_run) == before


def test_resume_needs_a_run(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["resume"], ["evolve", "small", *TINY, "--run"]], ids=["resume", "evolve"])
def test_a_second_driver_is_told_of_the_first_and_may_take_over(command, copied_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "another-machine")
        leave_open(copied_run)
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.run.fleet_for", None)  # nothing may be started before the refusal
        assert main([*command, str(copied_run)]) == 2
    told = capsys.readouterr().err
    assert f"(pid {os.getpid()} on another-machine, since 20" in told
    assert f"namm resume {copied_run} --takeover" in told
    assert main([*command, str(copied_run), "--takeover", "--quiet"]) == 0


def require_the_same_ending(folder, finished_run, capsys):
    assert main(["evolve", "small", *TINY, "--run", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["population_hash"] == finished_run.summary["population_hash"]
    assert summary["genome_sha256"] == finished_run.summary["genome_sha256"]


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_it_had_not_been(finished_run, tmp_path, capsys):
    folder = tmp_path / "run"
    done = interrupted_run(folder, signal.SIGINT)
    assert (done.returncode, done.stdout) == (130, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("namm: interrupted; every finished unit is safe; go on with: ")
    assert last.endswith(f"namm resume {folder}")
    assert "Traceback" not in done.stderr
    require_the_same_ending(folder, finished_run, capsys)


def test_sigterm_drains_says_how_to_go_on_and_is_no_failure(finished_run, tmp_path, capsys):
    folder = tmp_path / "run"
    done = interrupted_run(folder, signal.SIGTERM)
    assert done.returncode == 0
    assert done.stdout.startswith("stopped as asked: ")
    assert done.stdout.endswith(f"go on with: {installed_command('namm')} resume {folder}\n")
    assert not (folder / "summary.json").exists()
    require_the_same_ending(folder, finished_run, capsys)


@pytest.mark.cluster
def test_sigterm_drains_a_run_on_ray(tmp_path):
    words = ["cluster.address=null", "cluster.workers=1", "search.generations=50"]
    done = interrupted_run(tmp_path / "run", signal.SIGTERM, *words)
    assert done.returncode == 0
    assert done.stdout.endswith(f"namm resume {tmp_path / 'run'}\n")
    assert "SIGTERM received" not in done.stderr  # as Ray's own handler has it, before it aborts


def test_a_resumed_run_says_that_it_is_one(copied_run, capsys):
    assert main(["resume", str(copied_run), "search.generations=3"]) == 0
    assert capsys.readouterr().err.startswith(f"resuming the run in {copied_run}: 2 of 3 generations are done\n")


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(finished_run, tmp_path, capsys):
    def allow_small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    folder = tmp_path / "run"
    command = [*NAMM, "evolve", "small", *TINY, "--run", str(folder), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=allow_small_files_only, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("namm: error: cannot write ")
    assert done.stderr.count("\n") == 1
    assert "resume the run" in done.stderr
    assert main(["resume", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["population_hash"] == finished_run.summary["population_hash"]


def test_output_of_libraries_never_reaches_standard_output(copied_run):
    command = [*NAMM, "resume", str(copied_run), "tracking.enabled=true", "--generations", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=True)
    json.loads(done.stdout)
    assert done.stderr == ""

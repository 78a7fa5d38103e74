"""``namm submit`` up to the cluster: the command, what the job could not see, and what Ray answers."""

import http.server
import shlex
import stat
import threading
from pathlib import Path

import pytest

from orchestrator.arguments import parse
from orchestrator.cli import main
from orchestrator.commands import submit as submit_module
from orchestrator.commands.submit import job_command
from orchestrator.config import load_config
from orchestrator.errors import ConfigError
from tests.deploy.manifests import ROOT, readme_commands
from tests.orchestrator.test_tracking_server import free_port


def error_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("namm: error: ")


def words(preset="small", *overrides, run_folder="/runs/x", **options):
    command = job_command(
        preset=preset, overrides=overrides, run_folder=run_folder, address="http://127.0.0.1:8265", **options
    )
    return [Path(command[0]).name, *command[1:]]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_is_the_one_of_the_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    (page,) = (line for line in readme_commands("A cluster on a laptop") if line.startswith("ray job submit"))
    assert words(run_folder="$PWD/runs/laptop".replace("$PWD", str(ROOT))) == shlex.split(
        page.replace("$PWD", str(ROOT))
    )


def test_options_and_settings_are_passed_on(monkeypatch):
    monkeypatch.chdir(ROOT)
    said = words("llama3-8b", "evaluation.lengths=[512, 1024]", submission_id="me", takeover=True, follow=False)
    before, after = said[: said.index("--")], said[said.index("--") + 1 :]
    assert before[5:] == ["--runtime-env", "deploy/runtime-env.yaml", "--submission-id", "me", "--no-wait"]
    assert shlex.split(shlex.join(after)) == after
    arguments = parse(after[3:])
    assert (arguments.command, arguments.run_folder, arguments.takeover) == ("evolve", "/runs/x", True)
    assert load_config(arguments.words[0], arguments.words[1:]).evaluation.lengths == (512, 1024)


def test_outside_the_source_tree_only_the_folder_of_the_file_travels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.yaml").write_text("extends: base.yaml\nseed: 3\n")
    (tmp_path / "mine" / "base.yaml").write_text("extends: small\n")
    said = words("mine/run.yaml")
    assert said[said.index("--runtime-env") + 1] == str(ROOT / "deploy" / "runtime-env.yaml")
    assert said[said.index("--working-dir") + 1] == str(tmp_path / "mine")
    assert said[said.index("evolve") + 1] == "./run.yaml"
    monkeypatch.chdir(tmp_path / "mine")
    assert load_config(said[said.index("evolve") + 1]).seed == 3


def test_a_preset_travels_without_whatever_lies_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = words("small")
    assert said[said.index("--working-dir") + 1] == str(ROOT / "deploy" / "presets")


# --- what is refused before anything is sent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["search.populatin=3"]}, "did you mean 'search.population'"),
        ({"run_folder": "runs/x"}, r"--run must be an absolute path.*--run /.*/runs/x"),
        ({"overrides": ["tracking.uri=http://me:secret-word@there:5000"]}, r"http://\*\*\*@there.*user and password"),
        ({"address": "http://me:secret-word@127.0.0.1:8265"}, r"http://\*\*\*@127"),
    ],
    ids=["setting", "run-folder", "secret", "secret-in-address"],
)
def test_mistakes_are_found_before_anybody_is_asked(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"preset": "small", "overrides": [], "run_folder": "/runs/x", "address": "http://127.0.0.1:1"}
    with pytest.raises(ConfigError, match=message) as caught:
        job_command(**{**given, **arguments})
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "preset", "overrides", "message"),
    [
        ({"out/base.yaml": "extends: small", "in/run.yaml": "extends: ../out/base.yaml"}, "in/run.yaml", [], "outside"),
        ({"in/.gitignore": "/mine.yaml\n", "in/mine.yaml": "extends: small"}, "in/mine.yaml", [], "mine.yaml"),
        ({"in/a.yaml": "extends: small", "out/config.json": ""}, "in/a.yaml", ["search.initial_genome=out"], "outside"),
    ],
    ids=["extends", "ignored", "genome"],
)
def test_what_would_stay_behind_is_refused(files, preset, overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"(lies|stays behind).*{message}"):
        words(preset, *overrides)


@pytest.mark.parametrize(
    ("key", "task"),
    [
        ("data", "{kind: longbench, task: qasper, data: out}"),
        ("corpus", "{kind: text_kv, length: 512, corpus: out}"),
        ("tokenizer", "{kind: text_kv, length: 512, tokenizer: out}"),
    ],
)
def test_a_folder_of_a_task_that_would_stay_behind_is_refused(key, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "in" / "a.yaml").write_text(f"extends: small\nstages: []\ntasks: [{task}]\n")
    with pytest.raises(ConfigError, match=f"^tasks.0.{key}: out lies outside"):
        words("in/a.yaml")


def test_a_home_folder_is_not_uploaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: small")
    with pytest.raises(ConfigError, match="put it into one of its own"):
        words(str(tmp_path / "mine.yaml"))


def test_a_file_of_the_source_tree_that_is_not_uploaded_is_refused(monkeypatch):
    """Found by name alone: nothing is written into the tree."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"stays behind.*matches tests"):
        words("small", "search.initial_genome=tests/golden")


# --- the cluster's answer ---------------------------------------------------------------------------------------------


@pytest.fixture
def dashboard():
    """An address that answers like a cluster's, but takes no job; ``answer`` is (status, body)."""

    class Dashboard(http.server.HTTPServer):
        answer = (200, b'{"version": "4", "ray_version": "2.60.0"}')

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with Dashboard(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ray(tmp_path, monkeypatch):
    """Put a program in the place of ``ray``."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)

    def say(*lines, code=0):
        path = tmp_path / "ray"
        path.write_text("\n".join(["#!/bin/sh", *lines, f"exit {code}", ""]))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setattr(submit_module, "installed_command", lambda name: str(tmp_path / name))
    return say


SUBMITTED = (
    "printf \"SUCC \\033[32mJob 'raysubmit_x' submitted successfully\\033[39m\\nTailing logs until the job exits:\\n\""
)


def test_nobody_at_the_address_is_one_line(capsys):
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["submit", "small", "--run", "/runs/x", "--address", address]) == 2
    assert error_line(capsys).startswith(f"no job server answers at {address} ([Errno 111] Connection refused): ")


@pytest.mark.parametrize("answer", [(200, b"{}"), (404, b""), (200, b"[]")])
def test_something_else_at_the_address_is_one_line(answer, dashboard, capsys):
    dashboard.answer = answer
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address]) == 2
    assert "is not Ray" in error_line(capsys)


def test_the_log_is_shown_and_the_answer_says_how_to_go_on(dashboard, ray, capsys):
    ray(SUBMITTED, "printf 'generation 1/2\\033[2J\\n'", "echo \"Job 'raysubmit_x' succeeded\"")
    assert main(["submit", "small", "seed=4", "--run", "/runs/x", "--address", dashboard.address]) == 0
    captured = capsys.readouterr()
    command, *log = captured.err.splitlines()
    assert "-- python -m orchestrator evolve small cluster.address=auto seed=4 --run /runs/x" in command
    assert log[0] == "generation 1/2␛[2J", "a log cannot steer the terminal"
    assert "raysubmit_x succeeded" in captured.out
    assert "status /runs/x" in captured.out


def test_a_cluster_that_wants_a_token_is_shown_one_also_by_who_copies_the_command(dashboard, ray, capsys):
    dashboard.answer = (401, b"Unauthorized")
    ray(SUBMITTED, 'echo "mode $RAY_AUTH_MODE"', "echo \"Job 'raysubmit_x' succeeded\"")
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address]) == 0
    err = capsys.readouterr().err
    assert err.startswith("RAY_AUTH_MODE=token /")
    assert "\nmode token\n" in err


@pytest.mark.parametrize("ending", ["failed", "was stopped"])
def test_a_job_that_does_not_succeed_is_exit_code_1(ending, dashboard, ray, capsys):
    ray(SUBMITTED, f"echo \"Job 'raysubmit_x' {ending}\"", code=1)
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address, "--json"]) == 1
    assert error_line(capsys).startswith(f"job raysubmit_x {ending}; ")


def test_a_connection_that_is_lost_does_not_say_that_the_job_failed(dashboard, ray, capsys):
    ray(SUBMITTED, "echo 'ConnectionError: gone'", code=1)
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address, "--json"]) == 2
    assert "the job raysubmit_x may go on" in error_line(capsys)


def test_a_job_that_is_not_taken_is_told_by_ray_s_reason(dashboard, ray, capsys):
    ray("echo Traceback:", "echo '  ray.x.RuntimeError: within'", "echo 'RuntimeError: too large'", "echo", code=1)
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address, "--json"]) == 2
    assert error_line(capsys) == f"the cluster at {dashboard.address} does not take the job: RuntimeError: too large\n"


def test_without_following_the_answer_says_how_to(dashboard, ray, capsys):
    ray(SUBMITTED)
    assert main(["submit", "small", "--run", "/runs/x", "--address", dashboard.address, "--no-follow"]) == 0
    out = capsys.readouterr().out
    assert f"job logs --address {dashboard.address} --follow raysubmit_x" in out
    assert f"job stop --address {dashboard.address} raysubmit_x" in out

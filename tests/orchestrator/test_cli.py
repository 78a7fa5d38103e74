"""The command line: help that teaches, one line for every mistake, exit codes, signals."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.arguments import build_parser, parse
from orchestrator.cli import COMMANDS, EXPECTED_ERRORS, main
from orchestrator.errors import UnitQuarantinedError
from tests.orchestrator.conftest import TINY
from tests.orchestrator.disk import journal_files

NAMM = [sys.executable, "-m", "orchestrator"]
SHARED = {"--help", "--json", "--debug"}

OPTIONS = {
    "evolve": SHARED | {"--run", "--takeover", "--quiet"},
    "resume": SHARED | {"--generations", "--takeover", "--quiet"},
    "submit": SHARED | {"--run", "--address", "--follow", "--no-follow", "--submission-id", "--takeover"},
    "status": SHARED,
    "evaluate": SHARED
    | {"--preset", "--config", "--model", "--tasks", "--data", "--profile", "--split", "--lengths", "--examples"}
    | {"--rivals", "--score", "--kept-ratio", "--folder", "--output", "--format", "--quiet"},
    "transfer": SHARED
    | {"--to", "--preset", "--tasks", "--data", "--examples", "--rivals", "--statistics", "--other-version"}
    | {"--max-steps", "--output", "--format", "--quiet"},
    "generate": SHARED | {"--model", "--device", "--dtype", "--prompt", "--max-new-tokens", "--show"},
    "explain": SHARED | {"--text", "--model", "--device", "--dtype", "--language", "--kept-ratio", "--folder"},
    "kinds": SHARED | {"--text", "--model", "--device", "--dtype", "--language", "--examples", "--folder"},
    "report": SHARED | {"--output", "--pdf", "--trace", "--device"},
    "compare": SHARED | {"--output"},
    "query": SHARED | {"--format"},
    "store": SHARED,
    "watch": SHARED | {"--every"},
    "inspect": SHARED,
    "track": SHARED | {"--uri", "--experiment"},
    "tasks": {"--help"},
    "tasks list": SHARED | {"--data"},
    "tasks show": SHARED | {"--data", "--profile", "--split", "--index", "--length", "--model", "--full"},
    "tasks fetch": SHARED | {"--to", "--revision", "--offline"},
    "tasks generate": SHARED | {"--to", "--rows", "--length", "--seed", "--model", "--corpus", "--words"},
    "convert": SHARED | {"--to"},
    "doctor": SHARED | {"--memory"},
}
"""Every command and option; adding one is a decision, to be taken here as well."""


def parsers(parser: argparse.ArgumentParser | None = None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of each action of a command."""
    found = {}
    for commands in (parser or build_parser())._actions:
        if isinstance(commands, argparse._SubParsersAction):
            for name, child in commands.choices.items():
                found |= {above + name: child} | parsers(child, f"{above}{name} ")
    return found


def error_line(capsys) -> str:
    """The one line on standard error; nothing may be on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("namm: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- arguments and help -----------------------------------------------------------------------------------------------


def test_the_commands_and_their_options_are_frozen():
    long = {
        name: {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        for name, parser in parsers().items()
    }
    assert long == OPTIONS
    assert set(COMMANDS) == {name for name in OPTIONS if " " not in name}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_teaches_by_examples(command):
    parser = parsers()[command]
    assert parser.description
    assert f"  namm {command} " in (parser.epilog or "")
    assert all(action.help for action in parser._actions)


def test_help_lists_the_presets_that_there_are():
    presets = sorted(path.stem for path in Path("deploy/presets").glob("*.yaml"))
    assert presets
    assert [name for name in presets if f"  {name} " not in (parsers()["evolve"].epilog or "")] == []


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--help"])
    assert stopped.value.code == 0
    assert "most tokens to decode (default: 32)" in capsys.readouterr().out


def test_help_and_mistakes_import_no_heavy_library():
    program = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'mlflow', 'nevergrad', 'numpy', 'pyarrow', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["evolve", "--help"], ["evolve", "--no-such-option"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("namm ")


def test_settings_may_stand_anywhere_among_the_options():
    arguments = parse(["evolve", "small", "seed=1", "--run", "there", "search.population=4", "--quiet", "a.b=-1"])
    assert arguments.words == ["small", "seed=1", "search.population=4", "a.b=-1"]
    assert (arguments.run_folder, arguments.quiet) == ("there", True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resume", "cluster.workers=4", "nowhere"], "nowhere is no run folder"),
        (["resume", "cluster.workers=4", "--quiet", "nowhere"], "nowhere is no run folder"),
        (["resume", "cluster.workers=4"], "name a run folder, one, beside settings like key=value: got settings alone"),
        (["resume", "here", "there"], "name a run folder, one, beside settings like key=value: got here there"),
        (["transfer", "cluster.workers=4", "nowhere", "--to", "small-llama"], "nothing to evaluate at 'nowhere'"),
        (["evolve", "seed=1", "smal"], "no preset is named 'smal'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_may_stand_before_what_they_are_for(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert told in error_line(capsys)


def test_an_address_or_a_path_with_an_equals_sign_is_no_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").mkdir()  # a folder that is there
    for place in ("s3://bucket/run?scheme=http", "runs/seed=1", "seed=1"):
        assert main(["evolve", place]) == 2
        told = error_line(capsys)
        assert place.rpartition("/")[2] in told
        assert "unknown key" not in told
        assert "override" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["evolv"], "invalid choice: 'evolv'"),
        (["evolve", "--runs", "there"], "unknown argument: --runs"),
        (["evolve", "--qui"], "unknown argument: --qui"),  # not even abbreviated
        (["inspect", "a", "b"], "unknown argument: b"),
        (["evaluate"], "WHAT"),
        (["evaluate", "h2o", "--kept-ratio", "1.5"], "--kept-ratio: must be a number above 0 and at most 1: got '1.5'"),
        (["evaluate", "h2o", "--examples", "0"], "--examples: must be a whole number of at least 1: got '0'"),
        (["generate", "full", "--show", "all"], "--show: invalid choice"),
        (["evaluate", "recent", "--split", "all"], "--split: invalid choice: 'all'"),
        (["resume", "there", "--generations", "many"], "--generations: must be a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_cannot_be_understood_exit_with_2_and_one_line(arguments, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    line = error_line(capsys)
    assert told in line
    assert "--help says what there is" in line


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["smal"], "no preset is named 'smal' (did you mean 'small'?)"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["small", "search.populatoin=4"], "unknown key 'search.populatoin': did you mean 'search.population'?"),
        (["small", "search.population=many"], "search.population must be a whole number"),
        (["small", "large"], "override 'large' must look like search.population=8"),
        (["small", "model.path_or_id=./nowhere"], "no model at './nowhere'"),
        (["small", "search.optimizer=CMAA"], "'CMAA'"),
        (["small", "search.optimizer=NGOpt"], "the optimizer cannot propose generation 0"),
        (["small", "search.initial_genome=nowhere"], "no memory in nowhere"),
        (["small", "evaluation.lengths=[20]"], "num_facts is 8, too many for documents of length 20"),
        (["small", "tasks.0.length=20"], "length"),
        (["small", "cluster.address=127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["small", "tracking.enabled=true", "tracking.uri=http://127.0.0.1:1"], "no MLflow server answers at http:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_exit_2_and_leaves_no_run_folder(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [] if words[0] != "small" else TINY
    assert main(["evolve", words[0], *tiny, *words[1:], "--run", "runs/new"]) == 2
    assert told in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_genome_of_another_architecture_is_refused(finished_run, tmp_path, capsys):
    words = [*TINY, f"search.initial_genome={finished_run.champion}", "memory.hidden_size=8"]
    assert main(["evolve", "small", *words, "--run", str(tmp_path / "new")]) == 2
    assert "has a genome of 2124 numbers, this run's memory needs 1100" in error_line(capsys)
    assert not (tmp_path / "new").exists()


def test_a_run_folder_of_another_configuration_is_refused_and_left_alone(finished_run, capsys):
    before = journal_files(finished_run.folder)
    assert main(["evolve", "small", *TINY, "search.population=6", "--run", str(finished_run.folder)]) == 2
    line = error_line(capsys)
    assert "search.population (was 4) changed" in line
    assert "start a new run folder" in line
    assert journal_files(finished_run.folder) == before


def test_a_place_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["evolve", "small", *TINY, "--run", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write" in error_line(capsys)


# --- errors, signals, pipes -------------------------------------------------------------------------------------------


def fail_with(monkeypatch, error: BaseException) -> None:
    """Let ``namm inspect`` fail."""

    def fail(arguments):
        raise error

    monkeypatch.setitem(COMMANDS, "inspect", fail)


def test_an_expected_error_of_several_lines_is_one_line(monkeypatch, capsys):
    fail_with(monkeypatch, EXPECTED_ERRORS[-1]("first\nsecond"))
    assert main(["inspect", "x"]) == 2
    assert error_line(capsys) == "namm: error: first second\n"


def test_a_run_that_failed_by_itself_exits_with_1(monkeypatch, capsys):
    fail_with(monkeypatch, UnitQuarantinedError({"g000000": ["out of memory"]}))
    assert main(["inspect", "x"]) == 1
    assert "attempt 1: out of memory" in error_line(capsys)


def test_debug_shows_the_traceback_as_well(monkeypatch, capsys):
    fail_with(monkeypatch, EXPECTED_ERRORS[0]("told"))
    assert main(["inspect", "x", "--debug"]) == 2
    by_option = capsys.readouterr().err
    monkeypatch.setenv("NAMM_DEBUG", "1")
    assert main(["inspect", "x"]) == 2
    for text in (by_option, capsys.readouterr().err):
        assert "Traceback (most recent call last)" in text
        assert text.endswith("namm: error: told\n")


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("a fault of ours"))
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "x"])


def test_ctrl_c_exits_with_130_and_says_what_the_command_has_to_say(monkeypatch, capsys):
    interruption = KeyboardInterrupt()
    interruption.add_note("go on with: namm resume there")
    fail_with(monkeypatch, interruption)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "namm: interrupted; go on with: namm resume there\n"


def test_sigterm_exits_with_143_and_the_former_handler_is_put_back(monkeypatch, capsys):
    def be_terminated(arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(COMMANDS, "inspect", be_terminated)
    assert main(["inspect", "x"]) == 143
    assert capsys.readouterr().err == "namm: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_reader_that_has_seen_enough_gets_no_traceback(finished_run):
    reader, writer = os.pipe()
    os.close(reader)
    command = [*NAMM, "inspect", str(finished_run.folder)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_terminal_without_unicode_gets_the_answer_all_the_same(finished_run):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*NAMM, "inspect", str(finished_run.folder)]
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
    assert finished_run.summary["population_hash"] in done.stdout

"""``namm tasks``: list, show, fetch, generate; and one line for every mistake, before any worker starts."""

import json

import pytest

from orchestrator.cli import main
from tests.tasks import staging
from tests.tasks.hub import Hub, serving

NUM_TASKS = {"longbench": 21, "longbench_e": 13, "infinitebench": 11, "ruler": 13, "choubun": 4}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    root = tmp_path_factory.mktemp("staged")
    staging.stage_all(root)
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def document(capsys, *words):
    assert main(["tasks", *words, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def printed(capsys, *words):
    assert main(["tasks", *words]) == 0
    return capsys.readouterr().out


# --- list -------------------------------------------------------------------------------------------------------------


def test_every_task_is_listed_with_how_it_is_scored(staged, capsys):
    told = document(capsys, "list", "--data", str(staged))
    assert {suite["suite"]: len(suite["tasks"]) for suite in told["suites"]} == NUM_TASKS
    assert all(task["metric"] and task["max_new_tokens"] for suite in told["suites"] for task in suite["tasks"])
    assert {suite["suite"]: suite["staged"]["origin"] for suite in told["suites"]} == dict.fromkeys(
        NUM_TASKS, "generated"
    )
    (ruler,) = (suite for suite in told["suites"] if suite["suite"] == "ruler")
    assert ruler["tasks"][0]["lengths"] == [staging.LENGTH]


def test_what_is_not_staged_is_told_with_the_commands_that_stage_it(tmp_path, capsys):
    text = printed(capsys, "list", "longbench", "--data", str(tmp_path))
    assert "not staged; THUDM/LongBench" in text
    assert "longbench/narrativeqa" in text
    assert "namm tasks fetch longbench --to" in " ".join(text.split())


# --- show -------------------------------------------------------------------------------------------------------------


def test_an_example_is_shown_as_a_model_sees_it(staged, capsys):
    told = document(capsys, "show", "longbench/trec", "--data", str(staged), "--model", "small-llama", "--index", "2")
    assert told["prompt"].startswith("Please determine the type of the question below.")
    assert told["stop"] == ["\n"]
    assert told["tokens"]["cut"] == 0
    assert told["tokens"]["window"] == 4096
    assert 20 < told["tokens"]["prompt"] < 200
    assert (told["split"], told["index"]) == ("train", 2)


def test_the_profile_decides_prompt_and_stop(staged, capsys):
    words = ["show", "longbench/triviaqa", "--data", str(staged)]
    as_shipped, published = document(capsys, *words), document(capsys, *words, "--profile", "paper")
    assert (as_shipped["stop"], published["stop"]) == (["\n"], [])
    assert as_shipped["prompt"] != published["prompt"]


def test_what_would_be_cut_out_of_the_middle_is_told(tmp_path, capsys):
    staging.stage(tmp_path, "infinitebench")
    rows = staging.infinitebench_rows("passkey")
    for row in rows:
        row["context"] = "the river " * 3000
    staging.write_lines(tmp_path / "infinitebench/passkey.jsonl", rows)
    staging.write_source(tmp_path, staging.SUITES["infinitebench"])
    words = ["show", "infinitebench/passkey", "--data", str(tmp_path), "--model", "small-llama"]
    told = document(capsys, *words)
    assert told["tokens"]["prompt"] + told["tokens"]["cut"] > 6000
    assert 4000 < told["tokens"]["prompt"] + told["max_new_tokens"] <= 4096
    text = printed(capsys, *words)
    assert "more are cut out of the middle" in " ".join(text.split())
    assert "characters, shown by --full" in text
    assert "shown by --full" not in printed(capsys, *words, "--full")


# --- generate, fetch --------------------------------------------------------------------------------------------------


def test_the_same_arguments_make_the_same_files(tmp_path, capsys):
    told = [
        document(capsys, "generate", "choubun", "--to", str(tmp_path / name), "--rows", "3", *more)
        for name, more in (("one", []), ("two", []), ("three", ["--seed", "1"]))
    ]
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "choubun").rglob("*") if path.is_file()}
        for name in ("one", "two", "three")
    ]
    assert contents[0] == contents[1] != contents[2]
    assert (told[0]["rows"], told[0]["files"], told[0]["origin"]) == (12, 4, "generated")


def test_a_folder_of_text_may_be_written_from(tmp_path, capsys):
    for number in range(60):
        lines = [f"The {word} of number {number} is {word * 3}." for word in ("river", "stone", "lantern", "wheel")]
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.md").write_text("\n".join(lines * 30))
    words = ["--to", str(tmp_path / "out"), "--rows", "2", "--corpus", str(tmp_path / "text")]
    assert document(capsys, "generate", "choubun", *words)["id"] != ""
    assert main(["tasks", "generate", "choubun", *words[:-1], str(tmp_path / "nowhere")]) == 2
    assert "is no folder: give one with .py, .md, .rst or .txt files in it" in capsys.readouterr().err


def test_a_suite_is_fetched_from_the_hub_that_the_environment_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving(Hub("SakanaAI/ChouBun", {})) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        assert main(["tasks", "fetch", "choubun", "--to", str(tmp_path)]) == 2
    assert "has no corp_sec_qa/test-00000-of-00001.parquet: choose another --revision" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "longbanch"], "did you mean longbench?"),
        (["show", "longbench"], "'longbench' names no task: write it as SUITE/TASK, like longbench/qasper"),
        (["show", "longbench/trek"], "did you mean trec?"),
        (["show", "longbench/trec", "--index", "99"], "train examples, and none at 99"),
        (["show", "ruler/vt"], "RULER needs the context length in tokens, like length=4096"),
        (["show", "longbench/trec", "--length", "5"], "leave length out"),
        (["show", "longbench/trec", "--model", "./nowhere"], "no model at './nowhere'"),
        (["fetch", "ruler", "--to", "."], "the hub has no files of RULER: `namm tasks generate ruler"),
        (["generate", "longbanch", "--to", "."], "did you mean longbench?"),
        (["generate", "choubun", "--to", "/proc/nowhere"], "cannot write /proc/nowhere"),
        (["generate", "choubun", "--to", ".", "--length", "100"], "length is 100 tokens; ask for at least 512"),
        (["generate", "choubun", "--to", ".", "--seed", "-1"], "seed is -1; choose 0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(words, told, staged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAMM_TASKS", str(staged))
    assert main(["tasks", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("namm: error: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tasks=[{kind: longbench, task: trec, data: nowhere}]"], "longbench is not staged in nowhere: `namm tasks"),
        (["tasks=[{kind: longbench, task: trek}]"], "did you mean trec?"),
        (
            ["tasks=[{kind: longbench, task: trec}]", "examples.pool=4000"],
            "examples.pool is 4000, but task longbench-t",
        ),
        (
            ["tasks=[{kind: longbench, task: trec}]", "prompts.max_tokens=80"],
            "needs 64 more for what follows, but there is room for 80: set prompts.truncation to middle",
        ),
        (["tasks=[{kind: longbench, task: trec}]", "prompts.max_tokens=9999"], "but the model was made for 4096"),
        (["tasks=[{kind: longbench, task: trec}]", "prompts.chat_template=true"], "but the tokenizer has none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_is_refused_before_any_worker_starts(words, told, staged, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAMM_TASKS", str(staged))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.run.fleet_for", lambda *_, **__: pytest.fail("workers were started"))
    common = ["examples.pool=8", "examples.per_generation=2", "examples.heldout=2", "tracking.enabled=false"]
    assert main(["evolve", "small", *common, *words, "--run", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert not (tmp_path / "run").exists()


def test_rows_with_the_prompt_merged_in_stop_a_run(tmp_path, monkeypatch, capsys):
    staging.stage(tmp_path, "longbench")
    rows = [{**row, "answer_prefix": "Answer:"} for row in staging.longbench_rows("trec")]
    staging.write_archive(
        tmp_path / "longbench/data.zip", {f"data/{task}.jsonl": rows for task in staging.SUITES["longbench"].tasks}
    )
    staging.write_source(tmp_path, staging.SUITES["longbench"])
    words = ["--tasks", "longbench/trec", "--data", str(tmp_path), "cluster.address=in-process"]
    assert main(["evaluate", "full", *words]) == 2
    assert "this is a derived data set with the prompt merged into the context" in capsys.readouterr().err

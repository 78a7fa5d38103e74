"""``namm evaluate`` on published suites: any memories and rivals, resumable, in every form, with intervals."""

import csv
import io
import json
import shutil

import pyarrow.parquet as pq
import pytest

from orchestrator.cli import main
from orchestrator.commands.tasks_named import tasks_named
from orchestrator.errors import InputError
from tasks.suites import SUITES
from tests.tasks import staging
from tests.tasks.staging import ALL_TASKS
from workers.language_model import model_folder

HERE = ("cluster.address=in-process", "tracking.enabled=false", "memory.update_every=16")
LONGBENCH = "longbench/trec,longbench/dureader"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    root = tmp_path_factory.mktemp("staged")
    staging.stage_all(root)
    return root


def evaluated(capsys, *words):
    assert main(["evaluate", *words, *HERE, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def without_time(table):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def test_each_task_stands_for_itself_and_then_their_mean(staged, capsys):
    document = evaluated(
        capsys, "h2o", "--tasks", LONGBENCH, "--data", str(staged), "--examples", "3", "--score", "graded"
    )
    assert [(row["task"], row["name"]) for row in document["table"]] == [
        (task, name) for task in ("longbench-trec", "longbench-dureader", "mean") for name in ("full", "h2o")
    ]
    rows = {(row["task"], row["name"]): row for row in document["table"]}
    assert rows["mean", "h2o"]["graded"] == pytest.approx(
        (rows["longbench-trec", "h2o"]["graded"] + rows["longbench-dureader", "h2o"]["graded"]) / 2
    )
    assert rows["mean", "h2o"]["num_examples"] == 6
    assert rows["longbench-trec", "h2o"]["exact"] is None  # only one of the scores is measured


def test_the_task_s_own_score_is_measured_when_asked_for(staged, capsys):
    words = ["full", "--tasks", "longbench/lcc", "--data", str(staged), "--examples", "2", "--score", "exact"]
    (row,) = evaluated(capsys, *words)["table"]
    assert row["graded"] is None
    assert 0.0 <= row["exact"] <= 1.0
    assert row["exact_low"] <= row["exact"] <= row["exact_high"]


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(staged, tmp_path, capsys, monkeypatch):
    words = ["recent", "--tasks", LONGBENCH, "--data", str(staged), "--examples", "3", "--score", "graded"]
    words += ["--folder", str(tmp_path / "kept"), "evaluation.examples_per_unit=1"]
    scored = []
    from workers.evaluator import Evaluator

    whole = Evaluator.score

    def interrupted(self, unit):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append(unit.key)
        return whole(self, unit)

    monkeypatch.setattr(Evaluator, "score", interrupted)
    assert main(["evaluate", *words, *HERE, "--quiet"]) == 130
    capsys.readouterr()
    monkeypatch.setattr(Evaluator, "score", lambda self, unit: scored.append(unit.key) or whole(self, unit))
    resumed = evaluated(capsys, *words)
    assert len(scored) == len(set(scored)) == 12
    assert evaluated(capsys, *words) == resumed  # nothing left to do
    assert len(scored) == 12
    fresh = evaluated(capsys, *[word for word in words if word not in ("--folder", str(tmp_path / "kept"))])
    assert without_time(fresh["table"]) == without_time(resumed["table"])


def test_a_folder_gets_the_table_in_every_form(staged, tmp_path, capsys):
    folder = tmp_path / "kept"
    words = ["recent", "--tasks", LONGBENCH, "--data", str(staged), "--examples", "2", "--score", "graded"]
    document = evaluated(capsys, *words, "--folder", str(folder))
    assert json.loads((folder / "evaluation.json").read_text()) == document
    table = document["table"]
    parquet = pq.read_table(folder / "table.parquet").to_pylist()
    assert [(row["task"], row["name"], row["kept_ratio"]) for row in parquet] == [
        (row["task"], row["name"], row["kept_ratio"]) for row in table
    ]
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [float(row["graded"]) for row in rows] == [row["graded"] for row in table]
    assert all(row["exact"] == "nan" or row["exact"] == "" for row in rows)
    markdown = (folder / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(table)
    assert markdown[0].startswith("| task | tokens | memory | exact | graded | of full | 95 % |")
    assert {line.count("|") for line in markdown} == {markdown[0].count("|")}


def test_scores_are_also_kept_as_lm_eval_has_them(staged, tmp_path, capsys):
    from lm_eval.utils import make_table

    words = ["recent", "--tasks", "longbench/lcc,longbench/repobench-p", "--data", str(staged), "--examples", "2"]
    document = evaluated(capsys, *words, "--score", "exact", "--folder", str(tmp_path / "kept"))
    for name in ("full", "recent"):
        results = json.loads((tmp_path / "kept" / f"lm_eval-{name}.json").read_text())
        ours = {row["task"]: row["exact"] for row in document["table"] if row["name"] == name and row["task"] != "mean"}
        assert {task: values["score,none"] for task, values in results["results"].items()} == ours
        assert results["n-samples"]["longbench-lcc"] == {"effective": 2}
        assert "|longbench-lcc" in make_table(results)


@pytest.mark.parametrize(("name", "begins"), [("t.md", "| task |"), ("t.csv", "task,name,"), ("t.parquet", "PAR1")])
def test_a_file_is_written_in_the_form_that_its_name_says(name, begins, staged, tmp_path, capsys):
    words = ["full", "--tasks", "choubun/wiki_qa", "--data", str(staged), "--examples", "1", "--score", "graded"]
    evaluated(capsys, *words, "--output", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(begins.encode())


@pytest.mark.parametrize(("form", "begins"), [("markdown", "| task |"), ("csv", "task,name,"), ("table", "task ")])
def test_the_printed_form_can_be_chosen(form, begins, staged, capsys):
    words = ["full", "--tasks", "choubun/wiki_qa", "--data", str(staged), "--examples", "1", "--score", "graded"]
    assert main(["evaluate", *words, *HERE, "--format", form, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(begins)


def test_several_memories_stand_side_by_side(finished_run, staged, tmp_path, capsys):
    shutil.copytree(finished_run.champion, tmp_path / "other")
    words = [str(finished_run.folder), str(tmp_path / "other"), "full", "--preset", "small", "--rivals", "recent"]
    more = ["--tasks", "infinitebench/passkey", "--data", str(staged), "--examples", "2", "--score", "graded"]
    assert main(["evaluate", *words, *more, "cluster.address=in-process", "--json", "--quiet"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["table"]]
    assert {"full", "tiny", "other", "recent-uniform-at-tiny", "recent-uniform-at-other"} <= set(names)
    assert len(names) == len(set(names))


def test_an_evaluation_is_shown_in_mlflow(staged, tmp_path, capsys):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["recent", "--tasks", LONGBENCH, "--data", str(staged), "--examples", "1", "--score", "graded"]
    here = ["cluster.address=in-process", f"tracking.uri={uri}", "memory.update_every=16"]
    assert main(["evaluate", *words, *here, "--folder", str(tmp_path / "kept"), "--quiet"]) == 0
    capsys.readouterr()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("namm").experiment_id])
    assert run.data.tags["kind"] == "evaluation"
    assert run.data.metrics["longbench-trec/recent/kept_ratio"] < 1.0
    assert run.data.metrics["mean/full/kept_ratio"] == 1.0


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "longbanch"], "--tasks: there is no 'longbanch', did you mean longbench?"),
        (["--tasks", "longbench/trek"], "did you mean trec?"),
        (["--tasks", "ruler/vt"], "needs the context length in tokens"),
        (["--tasks", "longbench/trec", "--data", "nowhere"], "longbench is not staged in nowhere"),
        (["--tasks", "longbench/trec", "prompts.truncation=refuse", "prompts.max_tokens=70"], "there is room for 70"),
        (["--tasks", "longbench/trec", "--output", "table.xls"], "must end in one of .json, .md, .csv, .parquet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_any_worker_starts(words, told, staged, monkeypatch, capsys):
    monkeypatch.setenv("NAMM_TASKS", str(staged))
    monkeypatch.setattr("orchestrator.commands.evaluate.fleet_for", lambda *_: pytest.fail("workers were started"))
    assert main(["evaluate", "full", *words, *HERE]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert told in captured.err


def test_a_folder_of_another_evaluation_is_refused(staged, tmp_path, capsys):
    words = ["full", "--data", str(staged), "--examples", "1", "--score", "graded", "--folder", str(tmp_path / "kept")]
    evaluated(capsys, *words, "--tasks", "choubun/wiki_qa")
    assert main(["evaluate", *words, "--tasks", "choubun/edinet_qa", *HERE]) == 2
    assert "holds an evaluation with other tasks, data: choose another folder" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    words[-1] = str(tmp_path / "full")
    assert main(["evaluate", *words, "--tasks", "choubun/wiki_qa", *HERE]) == 2
    assert "holds something else: choose an empty or a new folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """An evaluation in a folder, beside the model and the suite that it was made with; and its words."""
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(model_folder("small-llama"), root / "model")
    staging.stage(root / "staged", "choubun")
    words = ["recent", "--tasks", "choubun/wiki_qa", "--data", str(root / "staged"), "--model", str(root / "model")]
    words += ["--examples", "1", "--score", "graded", "--folder", str(root / "kept"), *HERE, "--quiet"]
    assert main(["evaluate", *words]) == 0
    return root, words


def other_questions(root):
    path = root / "staged" / "choubun" / SUITES["choubun"].file_name("wiki_qa")
    staging.write_parquet(path, [row | {"input": "other"} for row in pq.read_table(path).to_pylist()])
    staging.write_source(root / "staged", SUITES["choubun"])


def other_weights(root):
    path = root / "model" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        (None, ["memory.update_every=32"], "update_every"),
        (other_questions, [], "data"),
        (other_weights, [], "weights"),
    ],
    ids=["update_every", "data", "weights"],
)
def test_scores_are_not_taken_for_those_of_other_evictions_data_or_weights(change, more, told, kept, tmp_path, capsys):
    """They decide the scores, and were not noted: the folder's old numbers were returned as new ones."""
    root, words = kept
    saved = tmp_path / "before"
    shutil.copytree(root, saved)
    if change is not None:
        change(root)
    code = main(["evaluate", *words, *more])
    shutil.rmtree(root)
    shutil.copytree(saved, root)
    assert (code, capsys.readouterr().err) == (
        2,
        f"namm: error: --folder {root}/kept holds an evaluation with other {told}: choose another folder\n",
    )


def test_scores_of_other_code_are_not_taken_either(kept, monkeypatch, capsys):
    root, words = kept
    monkeypatch.setattr("orchestrator.full_cache.code_hash", lambda: "of another version")
    assert main(["evaluate", *words]) == 2
    assert f"{root}/kept holds an evaluation with other code: choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"tasks": []}', "holds an evaluation of another version of this program"),
        ("", "its evaluation-settings.json cannot be read"),
        ("[]", "its evaluation-settings.json cannot be read (it holds no settings)"),
        (None, "is a file: name a folder"),
    ],
    ids=["earlier version", "empty", "list", "file"],
)
def test_a_folder_that_cannot_be_understood_is_refused_in_one_line(content, told, staged, tmp_path, capsys):
    folder = tmp_path / "kept"
    if content is None:
        folder.write_text("")
    else:
        folder.mkdir()
        (folder / "evaluation-settings.json").write_text(content)
    words = ["full", "--tasks", "choubun/wiki_qa", "--data", str(staged), "--examples", "1", "--folder", str(folder)]
    assert main(["evaluate", *words, *HERE]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert f"--folder {folder}" in captured.err
    assert told in captured.err


def test_names_of_tasks_on_the_command_line():
    assert [task.name for task in tasks_named("longbench/qasper", data=None, profile="paper")] == ["longbench-qasper"]
    assert len(tasks_named("longbench", data=None, profile="lm_eval")) == 21
    assert [task.name for task in tasks_named("ruler-4096/vt", data=None, profile="lm_eval")] == ["ruler-vt-4096"]
    assert [task.name for task in tasks_named("facts_code-512", data=None, profile="lm_eval")] == ["facts_code-512"]
    with pytest.raises(InputError, match="a task of a suite is written SUITE/TASK"):
        tasks_named("qasper", data=None, profile="lm_eval")


# --- everything, end to end -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """All suites, as ``namm tasks generate`` makes them."""
    root = tmp_path_factory.mktemp("generated")
    for kind in ("longbench", "infinitebench", "ruler", "choubun"):
        words = ["generate", kind, "--to", str(root), "--rows", "8", "--length", "512", "--model", "small-llama"]
        assert main(["tasks", *words]) == 0
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("profile", ["lm_eval", "paper"])
def test_all_tasks_run_end_to_end_on_generated_files(profile, generated, finished_run, capsys):
    suites = "longbench,longbench_e,infinitebench,ruler-512,choubun"
    words = ["--tasks", suites, "--data", str(generated), "--profile", profile, "--split", "train", "--examples", "1"]
    words += [str(finished_run.folder), "--preset", "small", "--rivals", "none", "--score", "exact"]
    words += ["examples.pool=1", "examples.per_generation=1", "cluster.address=in-process"]
    capsys.readouterr()
    assert main(["evaluate", *words, "--json", "--quiet"]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert {row["task"] for row in table} == {"mean"} | {
        f"{kind}-{task}{'-512' if kind == 'ruler' else ''}" for kind, task in ALL_TASKS
    }
    assert len({row["task"] for row in table}) == 63
    assert {row["name"] for row in table} == {"full", "namm", "one-head"}
    assert all(0.0 <= row["exact"] <= 1.0 and 0.0 < row["kept_ratio"] <= 1.0 for row in table)
    assert all(row["kept_ratio"] == 1.0 for row in table if row["name"] == "full")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_small_preset_of_the_stages_evolves_a_memory_that_forgets(tmp_path, monkeypatch, capsys):
    words = ["longbench", "--to", str(tmp_path), "--words", "--model", "small-llama", "--rows", "64", "--seed", "1"]
    assert main(["tasks", "generate", *words]) == 0
    capsys.readouterr()
    monkeypatch.setenv("NAMM_TASKS", str(tmp_path))
    run = ["--run", str(tmp_path / "run"), "cluster.address=in-process", "tracking.enabled=false"]
    assert main(["evolve", "small-stages", *run, "evaluation.rivals=[recent]", "--json"]) == 0
    capsys.readouterr()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = {(row["task"], row["name"]): row for row in summary["table"]}
    tasks = ("longbench-trec", "longbench-triviaqa", "longbench-samsum")
    assert {task for task, _ in rows} == {"mean", *tasks}
    namm, recent = rows["mean", "namm"], rows["mean", "recent-head"]
    assert namm["kept_ratio"] < 0.6
    assert namm["graded_ratio"] > recent["graded_ratio"] + 0.1

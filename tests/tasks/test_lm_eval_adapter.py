"""Every task of every suite through the real loaders, the library's prompts and the library's metrics."""

import json

import pytest

from tasks.errors import TaskError
from tasks.lm_eval_adapter import library_config, metric_name
from tasks.profiles import FEW_SHOT_TASKS
from tasks.registry import SuiteTaskSettings
from tasks.suites import SUITES
from tests.tasks import staging
from tests.tasks.staging import ALL_TASKS

NONSENSE = "☃☃☃☃"
"""Shares no word with a gold answer, and not even a letter."""
COUNTS = {"longbench": 21, "longbench_e": 13, "infinitebench": 11, "ruler": 13, "choubun": 4}

ids = [f"{kind}-{task}" for kind, task in ALL_TASKS]


def gold_completion(task, example):
    """What a model says that answers right: one of the answers, or all needles of RULER."""
    return " ".join(example.answers) if task.suite.kind == "ruler" else example.answers[0]


def test_the_suites_have_all_their_tasks():
    assert {kind: len(suite.tasks) for kind, suite in SUITES.items()} == COUNTS


@pytest.mark.parametrize("profile", ["lm_eval", "paper"])
@pytest.mark.parametrize(("kind", "name"), ALL_TASKS, ids=ids)
def test_gold_scores_one_and_nonsense_nothing(kind, name, profile, task_of):
    task = task_of(kind, name, profile)
    for split in ("train", "heldout"):
        example = task.example(split, 0)
        assert task.score(example, gold_completion(task, example)) == pytest.approx(1.0, abs=1e-6)
        assert task.score(example, NONSENSE) == 0.0
        assert task.score(example, "") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["lm_eval", "paper"])
@pytest.mark.parametrize(("kind", "name"), ALL_TASKS, ids=ids)
def test_gold_scores_one_and_nonsense_nothing_on_generated_files(kind, name, profile, task_of, generated):
    task = task_of(kind, name, profile, root=generated, length=512)
    scored = 0
    for split in ("train", "heldout"):
        for index in range(len(task._splits[split])):
            example = task.example(split, index)
            assert task.score(example, gold_completion(task, example)) == pytest.approx(1.0, abs=1e-6)
            assert task.score(example, NONSENSE) == 0.0
            scored += 1
    assert scored == 4


@pytest.mark.parametrize(("kind", "name"), ALL_TASKS, ids=ids)
def test_a_prompt_holds_the_row_as_it_is(kind, name, task_of):
    task = task_of(kind, name)
    row, prompt = task.row("train", 0), task.example("train", 0).prompt
    text = row["input"] if kind == "ruler" else row["context"]
    assert prompt.count(text) == 1  # braces and all: no template looks inside a row
    assert (task.num_examples("train"), task.num_examples("heldout")) == tuple(map(len, task._splits.values()))


@pytest.mark.parametrize(("kind", "name"), ALL_TASKS, ids=ids)
def test_limits_and_stops_are_the_librarys(kind, name, task_of):
    theirs = library_config(SUITES[kind], name)["generation_kwargs"]
    as_shipped, published = task_of(kind, name).example("train", 0), task_of(kind, name, "paper").example("train", 0)
    assert as_shipped.max_new_tokens == published.max_new_tokens == theirs["max_gen_toks"] > 0
    assert as_shipped.stop == tuple(theirs["until"])
    assert published.stop == (("\n",) if name == "samsum" else ())
    assert as_shipped.is_chat == (name not in (*FEW_SHOT_TASKS, "lcc", "repobench-p"))


def test_published_limits():
    """Written down once more from the suites' papers: the library must not drift away unseen."""
    limits = {
        ("longbench", "narrativeqa"): 128,
        ("longbench", "dureader"): 128,
        ("longbench", "passage_retrieval_en"): 32,
        ("longbench", "gov_report"): 512,
        ("longbench_e", "trec"): 64,
        ("infinitebench", "passkey"): 6,
        ("infinitebench", "longbook_sum_eng"): 1200,
        ("infinitebench", "math_find"): 3,
        ("ruler", "niah_single_1"): 128,
        ("ruler", "cwe"): 120,
        ("ruler", "qa_hotpot"): 32,
        ("choubun", "wiki_qa"): 64,
        ("choubun", "corp_sec_sum"): 128,
    }
    found = {key: library_config(SUITES[key[0]], key[1])["generation_kwargs"]["max_gen_toks"] for key in limits}
    assert found == limits


def test_every_task_has_a_metric_with_a_name():
    names = {metric_name(library_config(SUITES[kind], task)) for kind, task in ALL_TASKS}
    assert {"qa_f1", "rouge", "classification", "retrieval", "count", "code_sim"} <= names
    assert "" not in names


def test_an_example_beyond_the_last_is_refused(task_of):
    task = task_of("longbench", "trec")
    with pytest.raises(TaskError, match=r"longbench-trec has \d+ train examples, and none at 400"):
        task.example("train", 400)


def test_a_split_without_rows_says_what_to_do(tmp_path, task_of):
    staging.stage(tmp_path, "infinitebench")
    one = staging.infinitebench_rows("passkey")[:1]
    staging.write_lines(tmp_path / "infinitebench/passkey.jsonl", one)
    staging.write_source(tmp_path, SUITES["infinitebench"])
    task = task_of("infinitebench", "passkey", root=tmp_path)
    empty = "train" if task._splits["heldout"] else "heldout"
    with pytest.raises(TaskError, match=rf"has 1 rows, of which none falls into the {empty} split"):
        task.num_examples(empty)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_suite_that_is_not_staged_is_told_how(tmp_path, task_of):
    with pytest.raises(TaskError, match=r"longbench is not staged in .*`namm tasks fetch longbench --to") as raised:
        task_of("longbench", "trec", root=tmp_path)
    assert f"`namm tasks generate longbench --to {tmp_path}`" in str(raised.value)


def test_a_length_that_is_not_staged_is_told_with_those_that_are(staged, task_of):
    with pytest.raises(TaskError, match=r"without vt-512.jsonl; there are vt-256.jsonl: .*--length 512"):
        task_of("ruler", "vt", length=512)


@pytest.mark.parametrize("profile", ["lm_eval", "paper"])
def test_rows_with_the_prompt_merged_in_are_refused(tmp_path, task_of, profile):
    """As kvpress's derived data set of LongBench has them, which lm-eval names by default."""
    staging.stage(tmp_path, "longbench")
    rows = staging.longbench_rows("narrativeqa")
    for row in rows:
        row["context"] = f"You are given a story, which can be either a novel or a movie script.\n{row['context']}"
    members = {f"data/{task}.jsonl": staging.longbench_rows(task) for task in SUITES["longbench"].tasks}
    staging.write_archive(tmp_path / "longbench/data.zip", members | {"data/narrativeqa.jsonl": rows})
    staging.write_source(tmp_path, SUITES["longbench"])
    with pytest.raises(TaskError, match=r"begins with the prompt itself .* stage THUDM/LongBench itself"):
        task_of("longbench", "narrativeqa", profile, root=tmp_path)


def test_rows_of_a_derived_data_set_are_refused(tmp_path, task_of):
    staging.stage(tmp_path, "longbench")
    rows = [{**row, "answer_prefix": "Answer:"} for row in staging.longbench_rows("trec")]
    members = {f"data/{task}.jsonl": rows for task in SUITES["longbench"].tasks}
    staging.write_archive(tmp_path / "longbench/data.zip", members)
    staging.write_source(tmp_path, SUITES["longbench"])
    with pytest.raises(TaskError, match="has a column 'answer_prefix': this is a derived data set"):
        task_of("longbench", "trec", root=tmp_path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "longbench", "task": "trek"}, "did you mean trec?"),
        ({"kind": "longbench_e", "task": "musique"}, "known tasks of longbench_e are"),
        ({"kind": "longbench", "task": "trec", "profile": "mine"}, "known profiles are lm_eval, paper"),
        ({"kind": "longbench", "task": "trec", "length": 512}, "leave length out"),
        ({"kind": "ruler", "task": "vt"}, "needs the context length in tokens, like length=4096"),
        ({"kind": "longbanch", "task": "trec"}, "did you mean longbench?"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_settings_that_name_nothing_are_refused(values, told):
    with pytest.raises(TaskError, match=r"is '|is None|is 512") as raised:
        SuiteTaskSettings(**values)
    assert told in str(raised.value)

"""The two profiles: as the library has a task, and as the published runs have it."""

import dataclasses
import json
from pathlib import Path

import pytest

from tasks.errors import TaskError
from tasks.lm_eval_adapter import library_config
from tasks.profiles import apply_profile
from tasks.suites import SUITES
from tasks.task import CompletionExample

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/substeps/metrics.json").read_text(encoding="utf-8"))

ITEMS = [(task, number) for task, cases in GOLDEN.items() for number in range(len(cases["items"]))]
ENDINGS = {
    "triviaqa": "\n\n{question}",
    "samsum": "\n\n{question}",
    "passage_count": "The final answer is: ",
    "passage_retrieval_en": "The answer is: ",
    "lcc": "Next line of code:\n",
    "repobench-p": "Next line of code:\n",
}
"""How prompts end in the published runs where the library's end otherwise."""


def published_score(task, prediction, answers, all_classes):
    config = apply_profile(library_config(SUITES["longbench"], task), "paper", "longbench", task)
    row = {"answers": answers, "all_classes": all_classes}
    return config["process_results"](row, [prediction])["score"]


@pytest.mark.parametrize(("task", "number"), ITEMS, ids=[f"{task}-{number}" for task, number in ITEMS])
def test_the_published_scores_are_reached_to_the_bit(task, number):
    cases = GOLDEN[task]
    item = cases["items"][number]
    assert published_score(task, item["prediction"], item["answers"], cases["all_classes"]) == cases["per_item"][number]


@pytest.mark.parametrize("task", GOLDEN)
def test_the_mean_is_the_published_task_score(task):
    cases = GOLDEN[task]
    scores = [
        published_score(task, item["prediction"], item["answers"], cases["all_classes"]) for item in cases["items"]
    ]
    assert 100 * sum(scores) / len(scores) == pytest.approx(cases["score"], rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "task"), [(kind, task) for kind in ("longbench", "longbench_e") for task in SUITES[kind].tasks]
)
def test_prompts_differ_in_their_endings_alone(kind, task, task_of):
    as_shipped, published = task_of(kind, task), task_of(kind, task, "paper")
    row = as_shipped.row("train", 0)
    ours, theirs = (built.example("train", 0).prompt for built in (published, as_shipped))
    if task in ENDINGS:
        ending = ENDINGS[task].format(question=row["question"])
        assert ours.endswith(ending)
        assert not theirs.endswith(ending)
        assert "".join(ours.split()) == "".join(theirs.split())
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("task", "completion", "expected"),
    [
        ("trec", "\nEntity\nQuestion: next", {"lm_eval": 1.0, "paper": 1.0}),
        ("triviaqa", "\n\nThe answer\nmore text", {"lm_eval": 0.5, "paper": 1.0}),
        ("lcc", "  \nreturn 1", {"lm_eval": 1.0, "paper": 0.2}),
    ],
)
def test_what_a_completion_is_cut_to_before_it_is_scored(task, completion, expected):
    row = {"answers": ["return 1"] if task == "lcc" else ["Entity" if task == "trec" else "answer"]}
    row["all_classes"] = ["Entity", "Number"]
    config = library_config(SUITES["longbench"], task)
    for profile, score in expected.items():
        scorer = apply_profile(config, profile, "longbench", task)["process_results"]
        assert scorer(row, [completion])["score"] == pytest.approx(score, abs=0.01)


def test_other_suites_keep_prompt_and_score_and_lose_their_stops(task_of):
    for kind, task in (("infinitebench", "passkey"), ("ruler", "vt"), ("choubun", "wiki_qa")):
        as_shipped, published = (
            task_of(kind, task).example("train", 0),
            task_of(kind, task, "paper").example("train", 0),
        )
        assert isinstance(published, CompletionExample)
        assert published == dataclasses.replace(as_shipped, stop=())


def test_a_library_with_other_prompts_is_refused():
    config = {**library_config(SUITES["longbench"], "lcc"), "doc_to_text": "{{context}} Go on:"}
    with pytest.raises(TaskError, match=r"prompt of lcc does not end in .* install the lm_eval of constraints.txt"):
        apply_profile(config, "paper", "longbench", "lcc")

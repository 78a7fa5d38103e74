"""Profiles: an lm-eval configuration as the library has it, or as the published runs of the paper have it.

What the ``paper`` profile changes, all of it found by comparing the two on the same strings:

* six prompts end differently: a blank line before the question of triviaqa and samsum, a space after the last words of
  passage_count and passage_retrieval_en, a line break after those of lcc and repobench-p;
* only the end-of-sequence token stops a completion; of samsum's, the text before the first line break counts;
* of the four few-shot tasks the first line that is not empty is scored;
* rouge does not strip the completion, and code similarity takes a line of blanks for a line.

The metrics themselves are the library's in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal

from tasks.errors import TaskError
from tasks.suites import SuiteKind

Profile = Literal["lm_eval", "paper"]

Config = Mapping[str, Any]
"""A task's configuration, as lm-eval's YAML has it, with functions in place of their names."""

ProcessResults = Callable[[Mapping[str, Any], list[str]], Mapping[str, float]]
"""lm-eval's ``process_results``: a row and [completion] in, scores by name out."""

FEW_SHOT_TASKS = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Tasks whose prompts end in an unfinished example, and whose answers are one line."""

CODE_TASKS = frozenset({"lcc", "repobench-p"})

_PAPER_ENDINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "triviaqa": ("\n{{question}}", "\n\n{{question}}"),
        "samsum": ("\n{{question}}", "\n\n{{question}}"),
        "passage_count": ("The final answer is:", "The final answer is: "),
        "passage_retrieval_en": ("The answer is:", "The answer is: "),
        "lcc": ("Next line of code:", "Next line of code:\n"),
        "repobench-p": ("Next line of code:", "Next line of code:\n"),
    }
)
"""How a template ends: in lm-eval, in the published runs."""


def apply_profile(config: Config, profile: Profile, kind: SuiteKind, task: str) -> Config:
    """A task's configuration under a profile.

    Args:
        config: as lm-eval has it.
        profile: the profile.
        kind: the task's suite.
        task: its name there.

    Raises:
        TaskError: the library's template is not the one that the profile knows the ending of.
    """
    if profile == "lm_eval":
        return config
    stop = ["\n"] if task == "samsum" else []
    config = {**config, "generation_kwargs": {**config["generation_kwargs"], "until": stop}}
    if kind not in ("longbench", "longbench_e"):
        return config
    score = _paper_score(config["process_results"], task)
    return {**config, "doc_to_text": _paper_template(config["doc_to_text"], task), "process_results": score}


def _paper_template(template: str, task: str) -> str:
    theirs, published = _PAPER_ENDINGS.get(task, ("", ""))
    if not template.endswith(theirs):
        raise TaskError(
            f"lm-eval's prompt of {task} does not end in {theirs!r}, so that profile=paper does not know what to "
            "change: install the lm_eval of constraints.txt, or set profile=lm_eval"
        )
    return template.removesuffix(theirs) + published


def _paper_score(process_results: ProcessResults, task: str) -> ProcessResults:
    """lm-eval's ``process_results`` with what the published scorer does to a completion before the metric sees it."""
    from lm_eval.tasks.longbench import metrics

    @wraps(process_results)
    def scored(row: Mapping[str, Any], results: list[str]) -> Mapping[str, float]:
        completion = results[0]
        if task in FEW_SHOT_TASKS:
            completion = completion.lstrip("\n").split("\n")[0]
        if process_results.__name__ == "get_rouge_with_score":  # strips; the metric itself does not
            return {"score": max(metrics.rouge_score(completion, answer) for answer in row["answers"])}
        if task in CODE_TASKS:  # skips lines of blanks
            line = _first_line_of_code(completion)
            return {"score": max(metrics.fuzz.ratio(line, answer) / 100 for answer in row["answers"])}
        return process_results(row, [completion])

    return scored


def _first_line_of_code(completion: str) -> str:
    """The first line that is no comment and no fence, which may be one of blanks; empty if there is none."""
    lines = completion.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")

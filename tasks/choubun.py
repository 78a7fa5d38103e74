"""ChouBun's four tasks, long Japanese documents, which lm-eval does not have: prompts, limits and metrics of our own.

The metrics are LongBench's (token F1, ROUGE-L), over the words that MeCab cuts a text into. The limits are the
published ones. The prompts are in our own words, so scores compare with each other, not with published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from tasks.profiles import Config

_ANSWER = (
    "次の文書を読み、質問に答えてください。答えだけをできるだけ短く書き、説明は加えないでください。\n\n"
    "文書：\n{{context}}\n\n"
    "上の文書に基づいて質問に答えてください。答えだけをできるだけ短く書き、説明は加えないでください。\n\n"
    "質問：{{input}}\n答え："
)

_SUMMARISE = (
    "次の文書を読み、その内容を要約してください。\n\n"
    "文書：\n{{context}}\n\n"
    "上の文書の要約を一段落で書いてください。\n\n"
    "要約："
)


def config(task: str) -> Config:
    """The configuration of a ChouBun task, in the form that lm-eval's own tasks have.

    Args:
        task: ``wiki_qa``, ``edinet_qa``, ``corp_sec_qa`` or ``corp_sec_sum``.
    """
    is_summary = task == "corp_sec_sum"
    return {
        "task": f"choubun_{task}",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": _SUMMARISE if is_summary else _ANSWER,
        "doc_to_target": "{{answers}}",
        "process_results": _rouge if is_summary else _f1,
        "generation_kwargs": {"max_gen_toks": 128 if is_summary else 64, "do_sample": False, "until": []},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _f1(row: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Token F1 over words, the best of all answers."""
    from lm_eval.tasks.longbench.metrics import f1_score

    return {"score": max(float(f1_score(words(results[0]), words(answer))) for answer in row["answers"])}


def _rouge(row: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE-L over words, the best of all answers."""
    from lm_eval.tasks.longbench.metrics import rouge_score

    completion = " ".join(words(results[0]))
    return {"score": max(float(rouge_score(completion, " ".join(words(answer)))) for answer in row["answers"])}


def words(text: str) -> list[str]:
    """The words of a Japanese text, as MeCab with UniDic cuts it."""
    return _tagger()(text).split()


@lru_cache
def _tagger() -> Callable[[str], str]:
    from fugashi import Tagger

    return Tagger("-Owakati").parse  # type: ignore[no-any-return]  # fugashi is untyped

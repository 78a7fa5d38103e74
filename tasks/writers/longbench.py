"""LongBench and LongBench-E: ``data.zip`` with one JSON file a task, written from text that every machine has.

| task | what stands for it |
|---|---|
| narrativeqa | facts in sentences, between lines of code and prose |
| qasper | ``attribute of the thing: value`` records between lines of prose |
| multifieldqa_en | settings in comments of code |
| multifieldqa_zh, dureader | facts in Chinese sentences (dureader: in numbered articles) |
| hotpotqa, 2wikimqa | two facts an answer (a thing's owner, the owner's attribute) in numbered passages |
| musique | values behind chains of assignments, in numbered passages |
| gov_report | a module; the answer is the first paragraph of its docstring, which stands in it |
| qmsum | functions; the answer is the first line of the docstring of the one asked for |
| multi_news | functions; the answer is the first line of each docstring |
| vcsum | Chinese sentences of speakers; the answer repeats the three decisions among them |
| trec | lines of code and the type of their statement |
| triviaqa | short passages with a fact, question, answer |
| samsum | short dialogues in which a fact is told, and a sentence that says so |
| lsht | Chinese sentences and their class |
| passage_count | pieces of files, some more than once |
| passage_retrieval_en, passage_retrieval_zh | which function has this docstring; which paragraph has this sentence |
| lcc, repobench-p | the next line of a file (repobench-p: with code of other files before it) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tasks.passages import draft_passage_count
from tasks.text_facts import draft_fact_code, draft_fact_prose, draft_records, draft_two_hop, draft_variable
from tasks.writers import cjk, rows, words
from tasks.writers.material import Material, SuiteFile, jsonl, zipped
from tasks.writers.rows import Row, RowMaker, asking

LongBenchLanguage = Literal["en", "zh", "python"]

_SPEAKERS = ("张伟", "李娜", "王芳", "刘洋")
_LENGTHS_OF_E = (1.0, 0.75, 0.5)
"""LongBench-E is about scores by length, so its rows differ in length."""


@dataclass(frozen=True, slots=True)
class _Task:
    maker: RowMaker
    language: LongBenchLanguage = "en"
    in_e: bool = False
    """Whether LongBench-E has the task too."""


TASKS: Mapping[str, _Task] = MappingProxyType(
    {
        "narrativeqa": _Task(asking(draft_fact_prose)),
        "qasper": _Task(asking(draft_records), in_e=True),
        "multifieldqa_en": _Task(asking(draft_fact_code), in_e=True),
        "multifieldqa_zh": _Task(cjk.facts(cjk.CHINESE), "zh"),
        "hotpotqa": _Task(asking(draft_two_hop, rows.in_passages), in_e=True),
        "2wikimqa": _Task(asking(draft_two_hop, rows.in_passages), in_e=True),
        "musique": _Task(asking(draft_variable, rows.in_passages)),
        "dureader": _Task(cjk.facts(cjk.CHINESE, "文章{number}\n{text}\n\n"), "zh"),
        "gov_report": _Task(rows.module_summary, in_e=True),
        "qmsum": _Task(rows.function_query),
        "multi_news": _Task(rows.function_summaries, in_e=True),
        "vcsum": _Task(cjk.summary(cjk.CHINESE, _SPEAKERS), "zh"),
        "trec": _Task(rows.line_types, in_e=True),
        "triviaqa": _Task(rows.fact_shots, in_e=True),
        "samsum": _Task(rows.dialogue_summaries, in_e=True),
        "lsht": _Task(cjk.news_classes, "zh"),
        "passage_count": _Task(rows.without_question(draft_passage_count), in_e=True),
        "passage_retrieval_en": _Task(rows.passage_retrieval, in_e=True),
        "passage_retrieval_zh": _Task(cjk.retrieval(cjk.CHINESE, "段落{number}：{text}\n", "段落{number}"), "zh"),
        "lcc": _Task(rows.next_line_of_code, "python", in_e=True),
        "repobench-p": _Task(rows.next_line_in_repository, "python", in_e=True),
    }
)


def write(material: Material) -> list[SuiteFile]:
    """``data.zip`` with all 34 members: both suites are one file on the hub, too."""
    members = {f"data/{name}.jsonl": _member(material, name, name, (1.0,)) for name in TASKS}
    members |= {
        f"data/{name}_e.jsonl": _member(material, name, f"{name}_e", _LENGTHS_OF_E)
        for name, task in TASKS.items()
        if task.in_e
    }
    return [SuiteFile("data.zip", zipped(members), len(members) * material.num_rows)]


def columns(row: Row, *, dataset: str, language: LongBenchLanguage, row_id: str) -> dict[str, Any]:
    """A row in LongBench's columns; ``length`` counts words, or characters in Chinese and Japanese."""
    return {
        "input": row.input,
        "context": row.context,
        "answers": list(row.answers),
        "length": len(row.context) if language == "zh" else len(row.context.split()),
        "dataset": dataset,
        "language": language,
        "all_classes": list(row.classes) if row.classes else None,
        "_id": row_id,
    }


def _member(material: Material, name: str, member: str, lengths: tuple[float, ...]) -> bytes:
    task = TASKS[name]
    maker = words.TASKS.get(name, task.maker) if material.in_words else task.maker
    found = material.rows("longbench", member, maker, lengths)
    return jsonl(
        columns(row, dataset=name, language=task.language, row_id=material.row_id("longbench", member, i))
        for i, row in enumerate(found)
    )

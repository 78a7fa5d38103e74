"""The catalogue of published suites: their tasks, where the hub has them, and what their files must look like.

A staged suite is a folder under one root, with the files exactly as the hub has them::

    longbench/data.zip                       members data/{task}.jsonl and, for LongBench-E, data/{task}_e.jsonl
    infinitebench/{task}.jsonl
    choubun/{task}/test-00000-of-00001.parquet
    ruler/{task}-{length}.jsonl              the hub has none: made by ``namm tasks generate``

and ``SOURCE.json`` beside them (``tasks.sources``). Prompts, metrics and limits are no part of the catalogue: they are
lm-eval's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal, get_args

from tasks.errors import TaskError

SuiteKind = Literal["longbench", "longbench_e", "infinitebench", "ruler", "choubun"]

ColumnType = Literal["text", "texts", "integer"]
"""A column's type; ``texts`` is a list, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One published suite."""

    kind: SuiteKind
    title: str
    """What people call it."""
    folder: str
    """Its folder under the root; LongBench and LongBench-E are in one archive."""
    hub_id: str | None
    """Data set on the Hugging Face hub; None where there is none."""
    licence: str
    columns: Mapping[str, ColumnType]
    """Columns that are read, by name; files may have more."""
    answers: str
    """The column of gold answers."""
    id_column: str | None
    """The column that names a row for ever; None where rows have only their place."""
    num_rows: Mapping[str, int | None]
    """Rows on the hub by task, in the order that the suite's authors list them; None where as many as one likes."""
    choice_tasks: frozenset[str] = frozenset()
    """Tasks that ask for the letter of an option; their rows have the option's text."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.num_rows)

    @property
    def needs_length(self) -> bool:
        """Whether a task exists once for every context length."""
        return self.kind == "ruler"

    def file_name(self, task: str, length: int | None = None) -> str:
        """The file that holds the rows of ``task``, relative to the suite's folder, as the hub names it."""
        match self.kind:
            case "longbench" | "longbench_e":
                return "data.zip"
            case "infinitebench":
                return f"{task}.jsonl"
            case "choubun":
                return f"{task}/test-00000-of-00001.parquet"
            case "ruler":
                return f"{task}-{length}.jsonl"

    def member_name(self, task: str) -> str | None:
        """The member that holds the rows in the archive; None for a file that is none."""
        match self.kind:
            case "longbench":
                return f"data/{task}.jsonl"
            case "longbench_e":
                return f"data/{task}_e.jsonl"
        return None


_LONGBENCH_COLUMNS: Mapping[str, ColumnType] = MappingProxyType(
    {
        "input": "text",
        "context": "text",
        "answers": "texts",
        "length": "integer",
        "dataset": "text",
        "language": "text",
        "all_classes": "texts",
        "_id": "text",
    }
)

_LONGBENCH_ROWS: Mapping[str, tuple[int, int | None]] = MappingProxyType(
    {
        "narrativeqa": (200, None),
        "qasper": (200, 224),
        "multifieldqa_en": (150, 150),
        "multifieldqa_zh": (200, None),
        "hotpotqa": (200, 300),
        "2wikimqa": (200, 300),
        "musique": (200, None),
        "dureader": (200, None),
        "gov_report": (200, 300),
        "qmsum": (200, None),
        "multi_news": (200, 294),
        "vcsum": (200, None),
        "trec": (200, 300),
        "triviaqa": (200, 300),
        "samsum": (200, 300),
        "lsht": (200, None),
        "passage_count": (200, 300),
        "passage_retrieval_en": (200, 300),
        "passage_retrieval_zh": (200, None),
        "lcc": (500, 300),
        "repobench-p": (500, 300),
    }
)
"""Rows of LongBench and of LongBench-E, which has 13 of the tasks."""

_LONGBENCH_LICENCE = "MIT for the code; the data are of 17 and more sources with terms of their own"

SUITES: Mapping[SuiteKind, Suite] = MappingProxyType(
    {
        "longbench": Suite(
            kind="longbench",
            title="LongBench",
            folder="longbench",
            hub_id="THUDM/LongBench",
            licence=_LONGBENCH_LICENCE,
            columns=_LONGBENCH_COLUMNS,
            answers="answers",
            id_column="_id",
            num_rows=MappingProxyType({task: rows for task, (rows, _) in _LONGBENCH_ROWS.items()}),
        ),
        "longbench_e": Suite(
            kind="longbench_e",
            title="LongBench-E",
            folder="longbench",
            hub_id="THUDM/LongBench",
            licence=_LONGBENCH_LICENCE,
            columns=_LONGBENCH_COLUMNS,
            answers="answers",
            id_column="_id",
            num_rows=MappingProxyType({task: rows for task, (_, rows) in _LONGBENCH_ROWS.items() if rows}),
        ),
        "infinitebench": Suite(
            kind="infinitebench",
            title="InfiniteBench",
            folder="infinitebench",
            hub_id="xinrongzhang2022/InfiniteBench",
            licence="none stated on the data set's card",
            columns=MappingProxyType(
                {"id": "integer", "context": "text", "input": "text", "answer": "texts", "options": "texts"}
            ),
            answers="answer",
            id_column="id",
            # The hub has math_calc as well, for which lm-eval has no task.
            num_rows=MappingProxyType(
                {
                    "passkey": 590,
                    "number_string": 590,
                    "kv_retrieval": 500,
                    "longbook_sum_eng": 103,
                    "longbook_choice_eng": 229,
                    "longbook_qa_eng": 351,
                    "longbook_qa_chn": 189,
                    "longdialogue_qa_eng": 200,
                    "math_find": 350,
                    "code_run": 400,
                    "code_debug": 394,
                }
            ),
            choice_tasks=frozenset({"longbook_choice_eng", "code_debug"}),
        ),
        "ruler": Suite(
            kind="ruler",
            title="RULER",
            folder="ruler",
            hub_id=None,
            licence="Apache-2.0 for the code",
            columns=MappingProxyType(
                {
                    "index": "integer",
                    "input": "text",
                    "outputs": "texts",
                    "length": "integer",
                    "max_length": "integer",
                    "gen_prefix": "text",
                }
            ),
            answers="outputs",
            id_column=None,
            num_rows=MappingProxyType(
                dict.fromkeys(
                    (
                        *("niah_single_1", "niah_single_2", "niah_single_3"),
                        *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
                        *("niah_multivalue", "niah_multiquery"),
                        *("vt", "cwe", "fwe", "qa_squad", "qa_hotpot"),
                    )
                )
            ),
        ),
        "choubun": Suite(
            kind="choubun",
            title="ChouBun",
            folder="choubun",
            hub_id="SakanaAI/ChouBun",
            licence="Apache-2.0",
            columns=_LONGBENCH_COLUMNS,
            answers="answers",
            id_column="_id",
            num_rows=MappingProxyType({"wiki_qa": 200, "edinet_qa": 390, "corp_sec_qa": 150, "corp_sec_sum": 30}),
        ),
    }
)
"""All suites by kind."""


def suite_named(name: str) -> Suite:
    """The suite called ``name``.

    Raises:
        TaskError: there is none; the message has the known ones.
    """
    for kind, suite in SUITES.items():
        if kind == name:
            return suite
    raise TaskError(f"suite is {name!r}; {_known('suites', name, get_args(SuiteKind))}")


def check_task(suite: Suite, task: str, length: int | None) -> None:
    """Refuses a task that the suite does not have, and a length where none or some is needed.

    Args:
        suite: the suite.
        task: name of a task.
        length: context length in tokens, or None.

    Raises:
        TaskError: names the key, what came, what is allowed.
    """
    if task not in suite.num_rows:
        raise TaskError(f"task is {task!r}; {_known(f'tasks of {suite.kind}', task, suite.tasks)}")
    if suite.needs_length and (length is None or length < 1):
        raise TaskError(f"length is {length}; {suite.title} needs the context length in tokens, like length=4096")
    if not suite.needs_length and length is not None:
        raise TaskError(f"length is {length}, but the rows of {suite.title} have their own; leave length out")


def _known(what: str, name: str, names: Iterable[str]) -> str:
    """The known names, and the one that was probably meant."""
    known = tuple(names)
    closest = get_close_matches(name, known, n=1)
    meant = f"did you mean {closest[0]}? " if closest else ""
    return f"{meant}known {what} are {', '.join(known)}"

"""Made-up rows of every suite, staged as the hub's are: few, short, and with braces in every text."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.sources import FileFacts, Manifest, file_sha256, write_manifest
from tasks.suites import SUITES, Suite

NUM_ROWS = 24
LENGTH = 256
"""RULER's context length."""

ALL_TASKS = [(kind, task) for kind, suite in SUITES.items() for task in suite.tasks]

CLASSES = {"trec": ["Entity", "Other entity", "Number of something"], "lsht": ["农业", "军事", "体育"]}

GOLD = {
    "passage_count": "{n}",
    "passage_retrieval_en": "Paragraph {n}",
    "passage_retrieval_zh": "段落{n}",
    "lcc": "    return x_{n} + 1",
    "repobench-p": "self.values = sorted(self.values, key={n})",
    "multifieldqa_zh": "第{n}章的答案是北京",
    "dureader": "第{n}章的答案是北京",
    "vcsum": "会议讨论了第{n}个问题",
    "longbook_qa_chn": "第{n}位是张三",
    "passkey": "9{n}71",
    "number_string": "55{n}44",
    "kv_retrieval": "b3-{n}-9f",
    "math_find": "{n}",
    "code_run": "-{n}",
    "wiki_qa": "第{n}代の首相は伊藤博文です",
    "edinet_qa": "売上高は{n}億円",
    "corp_sec_qa": "取締役は{n}名",
    "corp_sec_sum": "会社は{n}件の議案を可決した",
}
"""Gold answers of tasks whose metric needs a certain form."""


def longbench_rows(task: str) -> list[dict[str, Any]]:
    return [
        {
            "input": f"What is {{{{ item }}}} number {number}?",
            "context": f"{{# {task} #}} Passage {number}: {{a: {{b}}}} {{% raw %}}.",
            "answers": [gold(task, number), "another one 999"] if task == "narrativeqa" else [gold(task, number)],
            "length": 9 + number,
            "dataset": task,
            "language": "en",
            "all_classes": CLASSES.get(task),
            "_id": f"{task}{number:04x}",
        }
        for number in range(1, NUM_ROWS + 1)
    ]


def gold(task: str, number: int) -> str:
    if task in CLASSES:
        return CLASSES[task][number % 3]
    return GOLD.get(task, "The quick brown {n} jumps over one lazy dog").replace("{n}", str(number))


def infinitebench_rows(task: str) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "context": f"{{# {task} #}} def func_{number}(x): return {{'a': {{}}}}",
            "input": f"The smallest number of func_{number}(-3) {{{{ it }}}}?",
            # The hub has numbers in some files and text in others.
            "answer": [number] if task == "math_find" else [gold(task, number)],
            "options": ["no {1}", gold(task, number), "no {2}", "no {3}"] if has_options(task) else [],
        }
        for number in range(1, NUM_ROWS + 1)
    ]


def has_options(task: str) -> bool:
    return task in ("code_debug", "longbook_choice_eng")


def ruler_rows(task: str) -> list[dict[str, Any]]:
    return [
        {
            "index": number,
            "input": f"{{# {task} #}} One of the {{{{ magic }}}} numbers is {number}.",
            "outputs": [f"word{number}", f"other{number}"],
            "length": 200,
            "max_length": LENGTH,
            "gen_prefix": "The answer is",
        }
        for number in range(NUM_ROWS)
    ]


def stage_all(root: Path) -> None:
    """Stages every suite."""
    for kind in ("longbench", "infinitebench", "ruler", "choubun"):
        stage(root, kind)


def stage(root: Path, kind: str) -> None:
    """Stages one suite, for LongBench both of its parts."""
    suite = SUITES[kind]
    folder = root / suite.folder
    folder.mkdir(parents=True)
    match kind:
        case "longbench":
            members = {f"data/{task}.jsonl": longbench_rows(task) for task in suite.tasks}
            members |= {f"data/{task}_e.jsonl": longbench_rows(task) for task in SUITES["longbench_e"].tasks}
            write_archive(folder / "data.zip", members)
        case "infinitebench":
            for task in suite.tasks:
                write_lines(folder / suite.file_name(task), infinitebench_rows(task))
        case "ruler":
            for task in suite.tasks:
                write_lines(folder / suite.file_name(task, LENGTH), ruler_rows(task))
        case "choubun":
            for task in suite.tasks:
                write_parquet(folder / suite.file_name(task), longbench_rows(task))
    write_source(root, suite)


def write_source(root: Path, suite: Suite, origin: str = "generated") -> None:
    """Writes the manifest for the files that are there."""
    folder = root / suite.folder
    files = {
        path.relative_to(folder).as_posix(): FileFacts(file_sha256(path), path.stat().st_size, NUM_ROWS)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SOURCE.json"
    }
    write_manifest(folder, Manifest(suite.folder, origin, "made up", "0", files))


def write_archive(path: Path, members: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, rows in members.items():
            archive.writestr(name, lines(rows))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)

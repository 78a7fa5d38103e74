"""ChouBun: one Parquet file a task, in Japanese sentences made from a small fixed vocabulary.

| task | what stands for it |
|---|---|
| wiki_qa | facts in paragraphs |
| edinet_qa | facts in numbered sections |
| corp_sec_qa | facts, one paragraph a line, under the headings of a report |
| corp_sec_sum | sentences with three decisions among them; the answer repeats the decisions |
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tasks.errors import TaskError
from tasks.writers import cjk
from tasks.writers.material import Material, SuiteFile
from tasks.writers.rows import RowMaker

TASKS: Mapping[str, RowMaker] = MappingProxyType(
    {
        "wiki_qa": cjk.facts(cjk.JAPANESE),
        "edinet_qa": cjk.facts(cjk.JAPANESE, "【第{number}】{text}\n"),
        "corp_sec_qa": cjk.facts(cjk.JAPANESE, "（{number}）有価証券報告書\n{text}\n"),
        "corp_sec_sum": cjk.summary(cjk.JAPANESE),
    }
)


def write(material: Material) -> list[SuiteFile]:
    """The four files; the rows have LongBench's columns, ``all_classes`` always null."""
    return [
        SuiteFile(f"{name}/test-00000-of-00001.parquet", _parquet(material, name), material.num_rows) for name in TASKS
    ]


def _parquet(material: Material, name: str) -> bytes:
    rows: list[dict[str, Any]] = [
        {
            "input": row.input,
            "context": row.context,
            "answers": list(row.answers),
            "length": len(row.context),
            "dataset": name,
            "language": "ja",
            "all_classes": None,
            "_id": material.row_id("choubun", name, i),
        }
        for i, row in enumerate(material.rows("choubun", name, TASKS[name]))
    ]
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TaskError("choubun: the package 'pyarrow' is missing: pip install 'namm-orchestrator[tasks]'") from error
    text = pa.string()
    schema = pa.schema(
        {
            "input": text,
            "context": text,
            "answers": pa.list_(text),
            "length": pa.int64(),
            "dataset": text,
            "language": text,
            "all_classes": pa.null(),
            "_id": text,
        }
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()

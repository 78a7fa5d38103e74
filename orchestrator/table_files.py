"""The table of an evaluation as files: JSON for programs, Markdown for pages, CSV for sheets, Parquet for queries."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from orchestrator import schemas
from orchestrator.files import json_bytes
from orchestrator.report import MEAN, TableRow, headings, lines


def markdown(rows: Sequence[TableRow]) -> str:
    """The printed table in GitHub's Markdown."""
    titles = headings(rows)
    words = 1 + titles.index("memory")  # all columns up to it are words
    rules = ["---"] * words + ["---:"] * (len(titles) - words)
    body = [cells for cells in lines(rows) if cells]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rules, *body))


def comma_separated(rows: Sequence[TableRow]) -> str:
    """All columns in full precision; what was not measured is empty."""
    names = [field.name for field in fields(TableRow)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.document() | {"seconds": row.seconds} for row in rows)
    return text.getvalue()


def parquet(rows: Sequence[TableRow]) -> bytes:
    """All columns; what was not measured is NaN."""
    return bytes(schemas.encode(pa.Table.from_pylist([asdict(row) for row in rows])))


def lm_eval_results(rows: Sequence[TableRow], model: str) -> dict[str, dict[str, Any]]:
    """By memory, the tasks' scores as lm-eval's results have them, for whatever reads those.

    Only rows of suites' tasks whose own score was measured; the mean over tasks is left to the reader.

    Args:
        rows: the table.
        model: name, folder or hub id of the frozen model.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row.task or row.task == MEAN or math.isnan(row.exact):
            continue
        results = found.setdefault(
            row.name,
            {
                "results": {},
                "versions": {},
                "n-shot": {},
                "higher_is_better": {},
                "n-samples": {},
                "config": {"model": "namm", "model_args": f"pretrained={model},memory={row.name}"},
            },
        )
        results["results"][row.task] = {"alias": row.task, "score,none": row.exact}
        results["n-shot"][row.task] = 0
        results["higher_is_better"][row.task] = {"score": True}
        results["n-samples"][row.task] = {"effective": row.num_examples}
    return found


WRITERS: Mapping[str, Callable[[Mapping[str, Any], Sequence[TableRow]], bytes]] = MappingProxyType(
    {
        ".json": lambda document, _rows: json_bytes(document),
        ".md": lambda _document, rows: markdown(rows).encode(),
        ".csv": lambda _document, rows: comma_separated(rows).encode(),
        ".parquet": lambda _document, rows: parquet(rows),
    }
)
"""By the ending of a file's name."""


def encoded(path: Path, document: Mapping[str, Any], rows: Sequence[TableRow]) -> bytes:
    """What belongs into a file of that name; its ending must be one of ``WRITERS``."""
    return WRITERS[path.suffix](document, rows)

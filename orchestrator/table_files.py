"""The table of an evaluation as files: JSON for programs, Markdown for pages, CSV for sheets, Parquet for queries."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from orchestrator import schemas
from orchestrator.files import json_bytes
from orchestrator.report import TableRow, headings, lines


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

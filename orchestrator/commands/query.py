"""What ``namm query`` does: answer a question in SQL over a run's tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from orchestrator import schemas
from orchestrator.analysis.queries import Rows, database
from orchestrator.analysis.views import VIEWS
from orchestrator.files import finite
from orchestrator.storage import Place
from orchestrator.terminal import Answer, grid

Form = Literal["table", "csv"]
MOST_ROWS = 200
"""Rows that a person is shown; ``--format csv`` and ``--json`` give all."""


def query(place: Place, sql: str | None, form: Form) -> Answer:
    """Ask a run's tables.

    Args:
        place: path or address of the run folder.
        sql: the question; None lists tables and views.
        form: of what is printed.

    Raises:
        InputError: DuckDB is not installed, or does not understand the question.
        RunFolderError: there is no run, or its tables were written by another version.
    """
    with database(place) as tables:
        found = tables.ask(sql) if sql is not None else Rows(("name", "what it has"), tuple(_listed(tables.names())))
    document = {"columns": list(found.columns), "rows": [[_plain(value) for value in row] for row in found.rows]}
    return Answer(document, _csv(found) if form == "csv" else _table(found))


def _listed(names: Sequence[str]) -> list[tuple[str, str]]:
    """Tables with their columns and units, then views with what they answer."""
    rows = []
    for name in (name for name in names if name not in VIEWS):
        fields = schemas.empty(name).schema if _is_known(name) else ()
        rows.append((name, ", ".join(field.name for field in fields)))
    return rows + [(name, f"view, by {VIEWS[name].meaning}") for name in names if name in VIEWS]


def _is_known(name: str) -> bool:
    return name in schemas.ONCE or name in schemas.PARTITIONED


def _table(found: Rows) -> list[RenderableType]:
    numeric = [all(_is_number(row[place]) for row in found.rows) for place in range(len(found.columns))]
    left = next((place for place, is_number in enumerate(numeric) if is_number), len(numeric))
    rows = [[_shown(value) for value in row] for row in found.rows[:MOST_ROWS]]
    more = len(found.rows) - MOST_ROWS
    note = [f"and {more:,} more rows: --format csv or --json gives all"] if more > 0 else []
    return [grid(found.columns, rows, left=left), *note]


def _csv(found: Rows) -> list[RenderableType]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([found.columns, *([_plain(value) for value in row] for row in found.rows)])
    return [Text(text.getvalue().removesuffix("\n"))]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    value = finite(value)
    if isinstance(value, str | int | float | bool | None):
        return value
    return json.loads(json.dumps(value, default=str))

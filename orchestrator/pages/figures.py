"""A figure of a page: a question in SQL, its answer as a table with units, and where it helps as a chart.

What is printed beside the numbers is the very query that they came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from markupsafe import Markup

from orchestrator.analysis.queries import Database, Rows
from orchestrator.pages.charts import Row, Spec

Draw = Callable[[Sequence[Row]], Spec]
MOST_SHOWN = 24
"""Rows of a table that is open from the start; longer ones wait behind a click."""


@dataclass(frozen=True, slots=True)
class Column:
    """How a column of an answer is shown."""

    title: str
    unit: str = ""
    """As ``%``, ``KB``, ``tokens``; empty for words and plain counts."""
    form: str = ""
    """Python's format of the value after ``scale``; empty for words."""
    scale: float = 1.0
    """What a value is multiplied by."""


def percent(title: str) -> Column:
    """A ratio, shown in percent."""
    return Column(title, "%", ".1f", 100.0)


def kilobytes(title: str) -> Column:
    """Bytes, shown in units of 1,024."""
    return Column(title, "KB", ",.0f", 1 / 1024)


def whole(title: str, unit: str = "") -> Column:
    """A count."""
    return Column(title, unit, ",.0f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What to ask, and how to show the answer."""

    key: str
    """Name on the page: letters, digits and hyphens."""
    title: str
    caption: str
    """What it is, and what to see in it."""
    sql: str
    columns: Mapping[str, Column]
    """By the names of the query's columns; all of them."""
    draw: Draw | None = None
    highlights: tuple[str, ...] = ()
    """Values of the first word that make a row ours."""
    empty: str = "Nothing was measured."
    """What is said where the query finds nothing."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as the query gave it, and as it is shown."""

    value: str
    """Full precision; empty for none."""
    shown: str
    is_word: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A figure with its answer, ready for a template."""

    figure: Figure
    rows: Sequence[Sequence[Cell]] = field(default_factory=tuple)
    is_ours: Sequence[bool] = field(default_factory=tuple)
    spec: Spec | None = None

    @property
    def headings(self) -> list[tuple[str, str, bool]]:
        """Title, unit and whether it is a column of words."""
        return [(column.title, column.unit, not column.form) for column in self.figure.columns.values()]

    @property
    def names(self) -> list[str]:
        """Columns as the query names them."""
        return list(self.figure.columns)

    @property
    def is_long(self) -> bool:
        """Whether the table waits behind a click."""
        return len(self.rows) > MOST_SHOWN or (self.spec is not None and len(self.rows) > 8)


def answer(figure: Figure, tables: Database) -> Answered:
    """Ask a figure's question.

    Raises:
        InputError: the query is wrong, which is a fault of ours.
    """
    return answered(figure, tables.ask(figure.sql))


def answered(figure: Figure, found: Rows) -> Answered:
    """A figure with an answer that is there already."""
    assert list(found.columns) == list(figure.columns), (figure.key, found.columns)
    if not found.rows:
        return Answered(figure)
    columns = list(figure.columns.values())
    rows = [[_cell(value, column) for value, column in zip(row, columns, strict=True)] for row in found.rows]
    ours = [any(cell.is_word and cell.value in figure.highlights for cell in row) for row in rows]
    return Answered(figure, rows, ours, figure.draw(found.records()) if figure.draw else None)


def _cell(value: Any, column: Column) -> Cell:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("", "–", is_word=not column.form)
    if not column.form:
        return Cell(str(value), str(value), is_word=True)
    return Cell(repr(value), format(value * column.scale, column.form), is_word=False)


@cache
def vega() -> Markup:
    """Vega-Lite with all it needs, to stand in a page: about 900 KB, the same for every page."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def now() -> str:
    """When a page was made."""
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds")

"""What a command says: colour on a terminal, plain text elsewhere, and nothing that could take the terminal over."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 10_000
"""Columns: a hash or a path must not be cut to the width of a screen, so wrapping is left to the terminal."""

SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command, for programs and for people."""

    document: Mapping[str, Any]
    """What ``--json`` prints."""
    parts: Sequence[RenderableType]
    """What a person reads, top to bottom."""


def render(parts: Sequence[RenderableType], stream: TextIO) -> str:
    """Text for ``stream``: with colours if it is a terminal, plain otherwise."""
    is_terminal = stream.isatty()
    console = Console(
        file=StringIO(),
        force_terminal=is_terminal,
        color_system="auto" if is_terminal else None,
        width=WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part, soft_wrap=True)
    # Rich fills cells up to the edge; blanks at the end of a line mean nothing.
    return "\n".join(line.rstrip() for line in capture.get().split("\n"))


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table without lines: the first ``left`` columns are words, the others figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(visible, row))
    return table


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Names and what is to be said of them, a line each."""
    return grid(("", ""), pairs, left=2)


def visible(text: str) -> str:
    """``text`` with every character that could steer a terminal replaced by a picture of it; line feed and tab stay."""
    return "".join(map(_visible, text))


def spark_line(values: Sequence[float], columns: int = 60) -> str:
    """A curve of at most ``columns`` characters, scaled from the lowest value to the highest."""
    if not values:
        return ""
    count = min(columns, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    lowest, spread = min(means), max(means) - min(means)
    top = len(SPARKS) - 1
    return "".join(SPARKS[round((mean - lowest) / spread * top) if spread else top // 2] for mean in means)


def installed_command(name: str) -> str:
    """How to call a command that was installed beside this Python: by name if the shell finds it, by path if not."""
    found, path = shutil.which(name), Path(sys.executable).with_name(name)
    # Another installation may come first on the PATH, with another version of the command.
    if found and (not path.exists() or path.samefile(found)):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ␛ for escape
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"

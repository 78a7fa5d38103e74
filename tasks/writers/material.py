"""What all suites' writers are given, and the files that they hand back."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.corpus import Corpus, CorpusSplit
from tasks.documents import CountTokens, TextPool
from tasks.errors import TaskError
from tasks.writers.rows import Row, RowMaker, fit_row

TEXT_SPLIT: CorpusSplit = "heldout"
"""Suites are made of held-out files: a model trained, or a memory evolved, on the corpus has not seen them."""

FAILURES_IN_A_ROW = 8
"""Draws that may be of no use one after the other, before the length itself is to blame."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_FROM_UNIX = 3


@dataclass(frozen=True, slots=True)
class Material:
    """Corpus, seed and sizes: all that decides what is written."""

    corpus: Corpus
    seed: int
    num_rows: int
    """Rows of a task."""
    target_tokens: int
    """Longest context and input together."""
    count_tokens: CountTokens
    in_words: bool = False
    """Whether tasks that can be are written in the small Llama's words."""

    def rng(self, *place: str | int) -> np.random.Generator:
        """Random numbers for one row, whatever else is written."""
        digest = hashlib.sha256(json.dumps(["namm", *place]).encode()).digest()
        return np.random.default_rng([self.seed, *np.frombuffer(digest[:16], "<u4").tolist()])

    def rows(self, suite: str, task: str, maker: RowMaker, lengths: Sequence[float] = (1.0,)) -> list[Row]:
        """The rows of a task; their lengths, in parts of the target, take turns. No two rows are equal.

        Raises:
            TaskError: the corpus has not enough text for so many rows, or for rows so long.
        """
        rows: dict[Row, None] = {}
        num_failed = 0
        for attempt in range(4 * self.num_rows + 16):
            length = lengths[len(rows) % len(lengths)]
            pool = TextPool(self.corpus, TEXT_SPLIT, int(length * self.target_tokens))
            try:
                rows[fit_row(maker, self.rng(suite, task, attempt), pool, self.count_tokens)] = None
            except TaskError:  # what was drawn is too long for a short row, or too short for a long one
                num_failed += 1
                if num_failed > FAILURES_IN_A_ROW:
                    raise
                continue
            num_failed = 0
            if len(rows) == self.num_rows:
                return list(rows)
        raise TaskError(
            f"num_rows is {self.num_rows}; corpus {self.corpus.name!r} has text for {len(rows)} different rows of "
            f"{task}: ask for fewer, or give a folder with more text"
        )

    def row_id(self, *place: str | int) -> str:
        """An identifier like LongBench's: 48 hexadecimal digits."""
        known = [self.corpus.sha256, self.seed, self.target_tokens, *place]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:48]


@dataclass(frozen=True, slots=True)
class SuiteFile:
    """One file of a suite, still in memory."""

    name: str
    """Path in the suite's folder, ``/`` between its parts."""
    data: bytes
    num_rows: int


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line, as UTF-8."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip file whose bytes depend on its members alone: fixed dates and rights, no word on the machine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _LONG_AGO)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = _FROM_UNIX
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()

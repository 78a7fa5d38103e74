"""Rows of staged files: read one by one, checked, and kept as an Arrow file that all workers of a machine share.

Whatever a file is (JSON lines, plain or in an archive, or Parquet), its rows come out with the same columns of the same
types: one explicit ``datasets.Features`` a suite. Nothing here uses the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks.errors import TaskError
from tasks.sources import StagedTask, file_sha256
from tasks.suites import ColumnType, Suite

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Row = Mapping[str, Any]

MERGED_COLUMN = "answer_prefix"
"""A column of derived data sets (kvpress's, lm-eval's default), whose contexts have the prompt merged in already."""

ROWS_A_BATCH = 16
"""Rows held at a time while a file is read: a row may be megabytes."""

WHOLE = re.compile(r"-?[0-9]{1,19}")
"""A whole number, as it may stand in a column of integers."""

CACHE_VARIABLE = "NAMM_CACHE"
"""Environment variable: the folder for what can be made again at any time."""


def cache_root() -> Path:
    """The folder for what can be made again: ``$NAMM_CACHE``, or ``~/.cache/namm``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/namm").expanduser()


def load_rows(staged: StagedTask) -> datasets.Dataset:
    """All rows of a task, mapped from an Arrow file that the first reader on a machine makes.

    Args:
        staged: where they are.

    Returns:
        the rows in the order of the file; columns and types are those of the suite.

    Raises:
        TaskError: a row is not what the suite's rows are, the file is not what was staged, or datasets is missing.
    """
    from datasets import Dataset

    path = cache_root() / "rows" / f"{_fingerprint(staged)}.arrow"
    if not path.exists():
        _check_content(staged.path, staged.path.stat().st_mtime_ns, staged.facts.sha256)
        try:
            _write_arrow(staged, path)
        except OSError:  # a full disk, or a home that is read-only: every worker then holds the rows itself
            import pyarrow as pa

            return Dataset(pa.Table.from_batches(_batches(staged), schema=features(staged.suite).arrow_schema))
    return Dataset.from_file(str(path))


def first_row(staged: StagedTask) -> Row:
    """The first row, without reading the others.

    Raises:
        TaskError: there is none, or it is not what the suite's rows are.
    """
    for row in rows(staged):
        return row
    raise TaskError(f"{staged.place} has no rows: stage the suite again")


def rows(staged: StagedTask) -> Iterator[Row]:
    """The rows of a task, in the order of the file, with the suite's columns alone.

    Raises:
        TaskError: the file cannot be read, or a row lacks a column, has another type in it, or has the prompt already.
    """
    number = 0
    try:
        for number, values in enumerate(_raw_rows(staged), start=1):
            place = f"row {number} of {staged.place}"
            row = checked_row(staged.suite, values, place)
            if staged.task in staged.suite.choice_tasks and not row["options"]:
                raise TaskError(f"{place}: options must be a list of the choices: got {row['options']}")
            yield row
    except TaskError:
        raise
    except Exception as error:  # a damaged archive or number makes its reader raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TaskError(
            f"{staged.place} cannot be read (row {number + 1}: {reason[:300]}): delete the file and stage the suite "
            "again"
        ) from error


def checked_row(suite: Suite, values: Row, place: str) -> Row:
    """A row with the suite's columns and their types.

    Args:
        suite: the suite whose row it is.
        values: what the file has.
        place: what messages call the row.

    Raises:
        TaskError: names the row, the column and what was expected.
    """
    if MERGED_COLUMN in values:
        raise TaskError(
            f"{place} has a column {MERGED_COLUMN!r}: this is a derived data set with the prompt merged into the "
            f"context, which would then stand there twice; stage {suite.hub_id or suite.title} itself"
        )
    missing = [name for name in suite.columns if name not in values]
    if missing:
        raise TaskError(
            f"{place} has no column {missing[0]!r}; {suite.title} has {', '.join(suite.columns)}, this file has "
            f"{', '.join(map(str, values))}"
        )
    row = {name: _value(values[name], kind, f"{place}: {name}") for name, kind in suite.columns.items()}
    if not row[suite.answers]:
        raise TaskError(f"{place}: {suite.answers} must hold an answer to score by: got {row[suite.answers]}")
    return row


def features(suite: Suite) -> datasets.Features:
    """Columns and types of a suite's rows.

    Without them a column that is empty in one task has another type there than elsewhere.
    """
    from datasets import Features, List, Value

    types = {"text": Value("string"), "texts": List(Value("string")), "integer": Value("int64")}
    return Features({name: types[kind] for name, kind in suite.columns.items()})


def _value(value: Any, kind: ColumnType, place: str) -> Any:
    """``value`` as a column of ``kind`` holds it; numbers in lists become text, as InfiniteBench needs."""
    match kind, value:
        case "text", str() | None if _is_unicode(value or ""):
            return value or ""  # a question that the context asks already is empty, or not there at all
        case "integer", int() | str() if WHOLE.fullmatch(str(value)) and -(2**63) <= int(value) < 2**63:
            return int(value)
        case "texts", None:
            return None
        case "texts", list() if all(isinstance(item, str | int | float) and _is_unicode(str(item)) for item in value):
            return [str(item) for item in value]
    wanted = {"text": "a text", "texts": "a list of texts", "integer": "a whole number of 64 bits"}[kind]
    raise TaskError(f"{place} must be {wanted}: got {str(value)[:40]!r} ({type(value).__name__})")


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may hold half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- files ------------------------------------------------------------------------------------------------------------


def _raw_rows(staged: StagedTask) -> Iterator[Row]:
    if staged.path.suffix == ".parquet":
        yield from _parquet_rows(staged.path)
        return
    with _opened(staged) as lines:
        for line in lines:
            if line.strip():
                yield _object(line)


@contextlib.contextmanager
def _opened(staged: StagedTask) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        if staged.member is None:
            yield stack.enter_context(staged.path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(staged.path))
            yield stack.enter_context(archive.open(staged.member))  # type: ignore[misc]  # ZipExtFile reads like any


def _object(line: bytes) -> Row:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise json.JSONDecodeError("a line is no object", line.decode("utf-8", "replace")[:40], 0)
    return values


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_A_BATCH):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise OSError(f"not a Parquet file: {error}") from error


# --- the Arrow file ---------------------------------------------------------------------------------------------------


def _fingerprint(staged: StagedTask) -> str:
    """Names the rows by the content of their file; a file that was touched since is read, and checked, again."""
    modified = staged.path.stat().st_mtime_ns
    columns = json.dumps(dict(staged.suite.columns))
    return hashlib.sha256(f"{staged.facts.sha256}/{modified}/{staged.member}/{columns}".encode()).hexdigest()[:32]


@lru_cache
def _check_content(path: Path, modified: int, sha256: str) -> None:  # noqa: ARG001 (a key of the cache)
    """Refuses a file whose content is not what was staged; an archive of many tasks is hashed once a process."""
    if file_sha256(path) != sha256:
        raise TaskError(f"{path} is not what was staged (its sha256 differs): delete it and stage the suite again")


def _batches(staged: StagedTask) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = features(staged.suite).arrow_schema
    read = rows(staged)
    while batch := list(islice(read, ROWS_A_BATCH)):
        yield pa.RecordBatch.from_pylist(batch, schema=schema)


def _write_arrow(staged: StagedTask, path: Path) -> None:
    """Writes the rows to ``path``, all of them or nothing, also if several workers do it at once."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            with pa.ipc.new_stream(file, features(staged.suite).arrow_schema) as writer:
                for batch in _batches(staged):
                    writer.write_batch(batch)
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)

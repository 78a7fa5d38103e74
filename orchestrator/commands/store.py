"""What ``namm store`` does: say what a run's tables hold, and make few large files of many small ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import schemas
from orchestrator.driver_lock import require_no_driver
from orchestrator.errors import RunFolderError
from orchestrator.history import read_journal
from orchestrator.storage import Folder, Place, folder_at
from orchestrator.store import TABLES, Store, damaged
from orchestrator.terminal import Answer, facts, grid

GENERATIONS_PER_FILE = 50
"""At paper scale a file then takes about 190 MB, and as much memory while it is written."""


def describe(place: Place) -> Answer:
    """Rows, files and bytes of every table.

    Raises:
        RunFolderError: there is no run, or its tables were written by another version.
    """
    folder = folder_at(place)
    read_journal(folder)
    tables = {name: _described(folder, files) for name, files in _files(folder).items() if files}
    rows = [
        [name, f"{told['rows']:,}", str(told["files"]), f"{told['bytes'] / 1e6:,.2f}"] for name, told in tables.items()
    ]
    document = {"folder": str(folder), "schema_version": schemas.SCHEMA_VERSION, "tables": tables}
    return Answer(document, [grid(("table", "rows", "files", "MB"), rows)])


def compact(place: Place) -> Answer:
    """One file for every ``GENERATIONS_PER_FILE`` finished generations in place of one each.

    Raises:
        RunFolderError: there is no run, or a driver is at work on it.
        StorageError: the storage is full or may not be written; no row is lost.
    """
    folder = folder_at(place)
    contents = read_journal(folder)
    require_no_driver(folder)
    store = Store(folder)
    for generation in store.staged_generations():
        if generation < len(contents.generations):
            store.commit_units(generation)
    before = sum(len(files) for files in _files(folder).values())
    written: list[str] = []
    for name in schemas.PARTITIONED:
        covered = set(store.files(name))
        folder.delete([file for file in folder.names(f"{TABLES}/{name}") if file not in covered])
        single = [file for file in store.files(name) if "/generation=" in file]
        generations = {int(file.rpartition("=")[2].removesuffix(".parquet")) for file in single}
        for some in _runs(
            generation for generation in sorted(generations) if 0 <= generation < len(contents.generations)
        ):
            written.append(store.compact(name, some))
    after = sum(len(files) for files in _files(folder).values())
    document = {"folder": str(folder), "files_before": before, "files_after": after, "written": written}
    return Answer(document, [facts([("tables", f"{before} files before, {after} now"), ("run", str(folder))])])


def _runs(generations: Iterable[int]) -> list[list[int]]:
    """Neighbours of one file, two at least: a file of its own is as good as a compacted one of one generation."""
    numbered = enumerate(generations)
    blocks = [
        [generation for _, generation in group]
        for _, group in groupby(numbered, key=lambda pair: (pair[1] // GENERATIONS_PER_FILE, pair[1] - pair[0]))
    ]
    return [block for block in blocks if len(block) > 1]


def _files(folder: Folder) -> dict[str, list[str]]:
    store = Store(folder)
    named = {name: store.files(name) for name in schemas.PARTITIONED}
    others = [name for name in folder.names(TABLES) if name.endswith(".parquet")]
    return named | {name.rpartition("/")[2].removesuffix(".parquet"): [name] for name in others}


def _described(folder: Folder, files: list[str]) -> dict[str, Any]:
    rows = size = 0
    for file in files:
        try:
            content = pq.ParquetFile(folder.open(file)).metadata
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(folder.place(file), error) from error
        version = schemas.version_of(content.metadata)
        if version != str(schemas.SCHEMA_VERSION):
            raise RunFolderError(
                f"{folder.place(file)} has schema version {version}, this program reads {schemas.SCHEMA_VERSION}: "
                "describe it with the program that wrote it"
            )
        rows += content.num_rows
        groups = [content.row_group(group) for group in range(content.num_row_groups)]
        size += sum(group.column(place).total_compressed_size for group in groups for place in range(group.num_columns))
    return {"rows": rows, "files": len(files), "bytes": size}

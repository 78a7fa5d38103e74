"""What a run has measured, on shared storage: nothing finished is lost, nothing is counted twice.

A scored unit is durable as soon as ``put_unit`` returns: it is one file under ``units/``. When a generation is complete
its files are compacted into the tables of ``schemas.py``. Compaction may be interrupted anywhere and repeated: the
``units`` table is written after the tables that it vouches for, and unit files go only after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import schemas, tables
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.files import storage_errors, sweep_temporaries, write_atomic
from orchestrator.fitness import GenerationFitness
from workers.unit import ScoredUnit


class Store:
    """The units and tables of one run folder; opening one writes nothing, so analysts may hold one at any time."""

    def __init__(self, folder: Path) -> None:
        """Look at a run folder.

        Args:
            folder: the run folder; created by the first write.
        """
        self._units_folder = folder / "units"
        self._tables_folder = folder / "tables"
        self._last_read: tuple[int, dict[str, ScoredUnit]] | None = None

    def put_unit(self, unit: ScoredUnit) -> None:
        """Make a scored unit durable.

        Raises:
            StorageError: the disk is full or may not be written; the unit is not there.
        """
        write_atomic(self._unit_path(unit.key), schemas.encode(tables.unit_table(unit)))

    def get_unit(self, key: str) -> ScoredUnit | None:
        """The unit as it was put, bit for bit, whether its generation is compacted or not; None when not there.

        Raises:
            StorageError: its file was damaged.
        """
        path = self._unit_path(key)
        if path.exists():
            return tables.unit_from_table(_read(path))
        return self._compacted(_generation_of(key)).get(key)

    def units(self, generation: int) -> list[ScoredUnit]:
        """All units of a generation, in order of their keys."""
        staged = [tables.unit_from_table(_read(path)) for path in self._staged(generation)]
        return _by_key([*staged, *self._compacted(generation).values()])

    def commit_generation(self, generation: int, genomes: npt.NDArray[np.float32], fitness: GenerationFitness) -> None:
        """Write a complete generation's tables and remove its unit files; may be repeated after a crash.

        Args:
            generation: round of evolution.
            genomes: float32 [population, genome] as proposed.
            fitness: what the search is told of each candidate.

        Raises:
            StorageError: the disk is full or may not be written; no unit is lost.
        """
        self._write("genomes", generation, tables.genomes_table(generation, genomes))
        self._write("candidates", generation, tables.candidates_table(generation, fitness))
        self.commit_units(generation)

    def commit_units(self, generation: int) -> None:
        """Compact the units of a generation into tables; for units without genomes, like the full-cache pass.

        Units that were compacted before stay. May be repeated after a crash.

        Raises:
            StorageError: the disk is full or may not be written; no unit is lost.
        """
        staged = self._staged(generation)
        compacted = self._compacted(generation)
        fresh = [tables.unit_from_table(_read(path)) for path in staged if path.stem not in compacted]
        self._sweep(generation)
        if fresh:
            units = _by_key([*compacted.values(), *fresh])
            self._write("evictions", generation, tables.evictions_table(units))
            self._write("evaluations", generation, tables.evaluations_table(units))
            # Last, because it vouches for the others: rows of units that it does not list are not counted.
            self._write("units", generation, tables.units_table(units))
            self._last_read = None
        for path in staged:
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write, or replace, a table that belongs to no generation, like ``heldout``.

        Raises:
            ValueError: ``name`` is not a plain word or is one of the tables by generation.
            StorageError: the disk is full or may not be written; a former table is as it was.
        """
        if name in schemas.PARTITIONED or not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ValueError(f"a table's name is a lower-case word other than {', '.join(schemas.PARTITIONED)}: {name}")
        write_atomic(self._tables_folder / f"{name}.parquet", schemas.encode(table))

    def table(self, name: str, generations: Iterable[int] | None = None) -> pa.Table:
        """Read a table.

        Args:
            name: one of ``schemas.PARTITIONED``, or what was given to ``write_table``.
            generations: which ones to read, in this order; None reads all there are, ascending.

        Raises:
            RunFolderError: there is no such table or generation, or it was written by another version.
            StorageError: a file was damaged.
        """
        if name not in schemas.PARTITIONED:
            return _read(self._existing(self._tables_folder / f"{name}.parquet", "table"))
        if generations is None:
            generations = self.generations(name)
        paths = [self._existing(self._path(name, generation), "generation") for generation in generations]
        return pa.concat_tables([_read(path) for path in paths]) if paths else schemas.empty(name)

    def generations(self, name: str = "candidates") -> list[int]:
        """Generations that a table holds, ascending."""
        found = (re.fullmatch(r"generation=(-?\d+)\.parquet", path.name) for path in self._folder(name).glob("*"))
        return sorted(int(match[1]) for match in found if match)

    def _compacted(self, generation: int) -> dict[str, ScoredUnit]:
        """Units in the tables, by key; the last generation asked for is kept, because units are asked one by one."""
        if self._last_read is None or self._last_read[0] != generation:
            if not self._path("units", generation).exists():
                return {}
            units = _read(self._path("units", generation))
            evaluations = _read(self._path("evaluations", generation), dictionary=["unit"])
            evictions = _read(self._path("evictions", generation), ["unit", "held_tokens"], dictionary=["unit"])
            self._last_read = generation, tables.units_from_tables(units, evaluations, evictions)
        return self._last_read[1]

    def _staged(self, generation: int) -> list[Path]:
        return sorted(self._units_folder.glob(f"{_prefix(generation)}*.parquet"))

    def _sweep(self, generation: int) -> None:
        sweep_temporaries(self._units_folder, _prefix(generation))
        for name in schemas.PARTITIONED:
            sweep_temporaries(self._folder(name), self._path(name, generation).name)

    def _write(self, name: str, generation: int, table: pa.Table) -> None:
        write_atomic(self._path(name, generation), schemas.encode(table))

    def _unit_path(self, key: str) -> Path:
        return self._units_folder / f"{key}.parquet"

    def _folder(self, name: str) -> Path:
        return self._tables_folder / name

    def _path(self, name: str, generation: int) -> Path:
        return self._folder(name) / f"generation={generation:06d}.parquet"

    def _existing(self, path: Path, what: str) -> Path:
        if not path.exists():
            there = sorted(entry.stem for entry in path.parent.glob("[!.]*"))
            raise RunFolderError(f"no such {what}: {path}; there are: {', '.join(there) or 'none yet'}")
        return path


def _prefix(generation: int) -> str:
    return f"g{generation:06d}_"


def _generation_of(key: str) -> int:
    return int(key.removeprefix("g").split("_", 1)[0])


def _by_key(units: Iterable[ScoredUnit]) -> list[ScoredUnit]:
    """One unit per key, in order of keys."""
    unique = {unit.key: unit for unit in units}
    return [unique[key] for key in sorted(unique)]


def _read(path: Path, columns: list[str] | None = None, dictionary: Sequence[str] = ()) -> pa.Table:
    """Read a file; ``dictionary`` names columns of text to leave as codes, which is smaller and faster."""
    try:
        with pq.ParquetFile(path, read_dictionary=list(dictionary)) as file:
            table = file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "delete it to have it scored again" if path.parent.name == "units" else "restore it from a copy"
        raise StorageError(f"cannot read {path}: {error}; it was damaged after it was written, {remedy}") from error
    version = schemas.version_of(table.schema.metadata)
    if version != str(schemas.SCHEMA_VERSION):
        raise RunFolderError(
            f"{path} has schema version {version}, this program reads {schemas.SCHEMA_VERSION}: "
            "read it with the program that wrote it"
        )
    return table

"""What a run has measured, on shared storage: nothing finished is lost, nothing is counted twice.

A scored unit is one file under ``units/``, durable as soon as ``put_unit`` returns. On an object store the driver would
wait longer for that than workers do for units, so up to 16 uploads are under way there, and durable at the latest when
the generation is: a driver that is killed may have to have those scored again. When a generation is complete
its files are compacted into the tables of ``schemas.py``. Compaction may be interrupted anywhere and repeated: the
``units`` table is written after the tables that it vouches for, and unit files go only after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator import schemas, tables
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.fitness import GenerationFitness
from orchestrator.storage import Place, folder_at
from workers.unit import ScoredUnit

_UNITS, TABLES = "units", "tables"
"""The folder of the tables in a run folder."""


class Store:
    """The units and tables of one run folder; opening one writes nothing, so analysts may hold one at any time."""

    def __init__(self, place: Place) -> None:
        """Look at a run folder.

        Args:
            place: path or address of the run folder; created by the first write. A driver gives the journal's
                ``folder``, so that it writes nothing once it is replaced.
        """
        self._folder = folder_at(place)
        self._last_read: tuple[int, dict[str, ScoredUnit]] | None = None
        self._own: dict[str, ScoredUnit] = {}
        """What was put through this object and is not compacted yet: to compact it need not be read again."""

    def put_unit(self, unit: ScoredUnit) -> None:
        """Make a scored unit durable.

        Raises:
            StorageError: the storage is full or may not be written; the unit, or one before it, is not there.
        """
        self._folder.write_soon(_unit_name(unit.key), schemas.encode(tables.unit_table(unit)))
        self._own[unit.key] = unit

    def get_unit(self, key: str) -> ScoredUnit | None:
        """The unit as it was put, bit for bit, whether its generation is compacted or not; None when not there.

        Raises:
            StorageError: its file was damaged.
        """
        return self.get_units([key]).get(key)

    def get_units(self, keys: Sequence[str]) -> dict[str, ScoredUnit]:
        """Those of the units that are there, by key; asks the storage once for each generation.

        Raises:
            StorageError: a file was damaged.
        """
        found: dict[str, ScoredUnit] = {}
        for generation in sorted({_generation_of(key) for key in keys}):
            staged = set(self._staged(generation))
            names = [_unit_name(key) for key in keys if _unit_name(key) in staged]
            there = {**self._compacted(generation), **{unit.key: unit for unit in self._read_units(names)}}
            found |= {key: there[key] for key in keys if key in there}
        return found

    def units(self, generation: int) -> list[ScoredUnit]:
        """All units of a generation, in order of their keys."""
        return _by_key([*self._read_units(self._staged(generation)), *self._compacted(generation).values()])

    def commit_generation(self, generation: int, genomes: npt.NDArray[np.float32], fitness: GenerationFitness) -> None:
        """Write what was proposed and what came of it; may be repeated after a crash. ``commit_units`` has the rest.

        Args:
            generation: round of evolution.
            genomes: float32 [population, genome] as proposed.
            fitness: what the search is told of each candidate.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        self._write("genomes", generation, tables.genomes_table(generation, genomes))
        self._write("candidates", generation, tables.candidates_table(generation, fitness))

    def commit_units(self, generation: int) -> None:
        """Compact the units of a generation into tables, and remove their files.

        Units that were compacted before stay. May be repeated after a crash.

        Raises:
            StorageError: the disk is full or may not be written; no unit is lost.
        """
        staged = self._staged(generation)
        compacted = self._compacted(generation)
        missing = [name for name in staged if _key_of(name) not in compacted]
        fresh = [self._own[_key_of(name)] for name in missing if _key_of(name) in self._own]
        fresh += self._read_units([name for name in missing if _key_of(name) not in self._own])
        self._sweep(generation)
        if fresh:
            units = _by_key([*compacted.values(), *fresh])
            self._write("evictions", generation, tables.evictions_table(units))
            self._write("evaluations", generation, tables.evaluations_table(units))
            # Last, because it vouches for the others: rows of units that it does not list are not counted.
            self._write("units", generation, tables.units_table(units))
            self._last_read = None
        self._folder.delete(staged)
        for name in staged:
            self._own.pop(_key_of(name), None)

    def staged_generations(self) -> list[int]:
        """Generations with units that are not compacted yet, ascending."""
        self._folder.settle()
        keys = (_key_of(name) for name in self._folder.names(_UNITS) if name.endswith(".parquet"))
        return sorted({_generation_of(key) for key in keys if re.match(r"g-?\d+_", key)})  # others are not ours

    def compact(self, name: str, generations: Sequence[int]) -> str:
        """Write one file with the rows of several generations, then delete theirs; may be repeated after a crash.

        Args:
            name: one of ``schemas.PARTITIONED``.
            generations: that follow one another, each with a file of its own.

        Raises:
            StorageError: a file was damaged, or the storage is full or may not be written; no row is lost.
        """
        text = [field.name for field in schemas.empty(name).schema if field.type == pa.large_string()]
        files = [_table_name(name, generation) for generation in generations]
        target = f"{TABLES}/{name}/generations={generations[0]:06d}-{generations[-1]:06d}.parquet"
        self._folder.write(target, schemas.encode_all(self._read(file, dictionary=text) for file in files))
        self._folder.delete(files)
        return target

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write, or replace, a table that belongs to no generation, like ``heldout``.

        Raises:
            ValueError: ``name`` is not a plain word or is one of the tables by generation.
            StorageError: the disk is full or may not be written; a former table is as it was.
        """
        if name in schemas.PARTITIONED or not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ValueError(f"a table's name is a lower-case word other than {', '.join(schemas.PARTITIONED)}: {name}")
        self._folder.write(f"{TABLES}/{name}.parquet", schemas.encode(table))

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
            return self._read(self._existing(f"{TABLES}/{name}.parquet", "table"))
        if generations is None:
            generations = self.generations(name)
        files = [self._file_of(name, generation) for generation in generations]
        parts = self._folder.each(lambda file: self._rows_of(*file), files)
        return pa.concat_tables(parts) if parts else schemas.empty(name)

    def generations(self, name: str = "candidates") -> list[int]:
        """Generations that a table holds, ascending."""
        return sorted({generation for file in self.files(name) for generation in generations_in(file)})

    def files(self, name: str) -> list[str]:
        """Files of a table by generation, in the run folder; those that a compacted file stands for are left out."""
        return without_covered(self._folder.names(f"{TABLES}/{name}", prefix="generation"))

    def _file_of(self, name: str, generation: int) -> tuple[str, int]:
        """The file that has a generation's rows."""
        own = _table_name(name, generation)
        if self._folder.exists(own):
            return own, generation
        for file in self.files(name):
            if generation in generations_in(file):
                return file, generation
        return self._existing(own, "generation"), generation

    def _rows_of(
        self, file: str, generation: int, columns: list[str] | None = None, dictionary: Sequence[str] = ()
    ) -> pa.Table:
        """A generation's rows of a file that may have more of them."""
        if len(generations_in(file)) == 1:
            return self._read(file, columns, dictionary)
        table = self._read(file, None if columns is None else [*columns, "generation"], dictionary)
        table = table.filter(pc.equal(table.column("generation"), generation))
        return table if columns is None else table.select(columns)

    def _compacted(self, generation: int) -> dict[str, ScoredUnit]:
        """Units in the tables, by key; the last generation asked for is kept, because units are asked one by one."""
        if self._last_read is None or self._last_read[0] != generation:
            if generation not in self.generations("units"):
                return {}
            units, evaluations, evictions = (
                self._rows_of(*self._file_of(name, generation), columns, dictionary)
                for name, columns, dictionary in (
                    ("units", None, ()),
                    ("evaluations", None, ("unit",)),
                    ("evictions", ["unit", "held_tokens"], ("unit",)),
                )
            )
            self._last_read = generation, tables.units_from_tables(units, evaluations, evictions)
        return self._last_read[1]

    def _staged(self, generation: int) -> list[str]:
        self._folder.settle()
        return [name for name in self._folder.names(_UNITS, _prefix(generation)) if name.endswith(".parquet")]

    def _read_units(self, names: Sequence[str]) -> list[ScoredUnit]:
        return self._folder.each(lambda name: tables.unit_from_table(self._read(name)), names)

    def _sweep(self, generation: int) -> None:
        self._folder.sweep(_UNITS, _prefix(generation))
        for name in schemas.PARTITIONED:
            self._folder.sweep(f"{TABLES}/{name}", PurePosixPath(_table_name(name, generation)).name)

    def _write(self, name: str, generation: int, table: pa.Table) -> None:
        self._folder.write(_table_name(name, generation), schemas.encode(table))

    def _existing(self, name: str, what: str) -> str:
        if not self._folder.exists(name):
            under = str(PurePosixPath(name).parent)
            there = [PurePosixPath(file).stem for file in self._folder.names(under) if file.endswith(".parquet")]
            if under == TABLES:
                there += [table for table in schemas.PARTITIONED if self.generations(table)]
            told = ", ".join(sorted(there)) or "none yet"
            raise RunFolderError(f"no such {what}: {self._folder.place(name)}; there are: {told}")
        return name

    def _read(self, name: str, columns: list[str] | None = None, dictionary: Sequence[str] = ()) -> pa.Table:
        """Read a file; ``dictionary`` names columns of text to leave as codes, which is smaller and faster."""
        place = self._folder.place(name)
        try:
            with pq.ParquetFile(self._folder.open(name), read_dictionary=list(dictionary)) as file:
                table = file.read(columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(place, error, is_unit=name.startswith(_UNITS)) from error
        version = schemas.version_of(table.schema.metadata)
        if version != str(schemas.SCHEMA_VERSION):
            raise RunFolderError(
                f"{place} has schema version {version}, this program reads {schemas.SCHEMA_VERSION}: "
                "read it with the program that wrote it"
            )
        return table


def damaged(place: str, error: Exception, *, is_unit: bool = False) -> StorageError:
    """What is said of a Parquet file that cannot be read."""
    remedy = "delete it to have it scored again" if is_unit else "restore it from a copy"
    return StorageError(f"cannot read {place}: {error}; it was damaged after it was written, {remedy}")


def generations_in(file: str) -> range:
    """Generations of a file by its name: one, or those from the first to the last of a compacted file; else none."""
    if match := re.search(r"/generation=(-?\d+)\.parquet$", file):
        return range(int(match[1]), int(match[1]) + 1)
    match = re.search(r"/generations=(\d+)-(\d+)\.parquet$", file)
    return range(int(match[1]), int(match[2]) + 1) if match else range(0)


def without_covered(files: Iterable[str]) -> list[str]:
    """Files less those whose generations a larger one has, which a compaction that was interrupted did not delete."""
    covered: set[int] = set()
    kept = []
    for file in sorted(files, key=lambda file: (-len(generations_in(file)), file)):
        generations = set(generations_in(file))
        if generations and not generations <= covered:
            kept.append(file)
            covered |= generations
    return sorted(kept)


def _prefix(generation: int) -> str:
    return f"g{generation:06d}_"


def _unit_name(key: str) -> str:
    return f"{_UNITS}/{key}.parquet"


def _key_of(unit_name: str) -> str:
    return PurePosixPath(unit_name).stem


def _table_name(name: str, generation: int) -> str:
    return f"{TABLES}/{name}/generation={generation:06d}.parquet"


def _generation_of(key: str) -> int:
    return int(key.removeprefix("g").split("_", 1)[0])


def _by_key(units: Iterable[ScoredUnit]) -> list[ScoredUnit]:
    """One unit per key, in order of keys."""
    unique = {unit.key: unit for unit in units}
    return [unique[key] for key in sorted(unique)]

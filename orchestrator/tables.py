"""Scored units as Arrow tables, and back: bit for bit, without a Python object per number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator import schemas
from orchestrator.fitness import GenerationFitness
from workers.unit import FeatureStatistics, ScoredUnit

_UNIT_KEY = b"namm.unit"
"""Where a unit file's metadata keep what is said once per unit."""

_EVALUATION_NAMES = tuple(field.name for field in schemas.EVALUATION_COLUMNS)

_Number = TypeVar("_Number", bound=np.generic)


def unit_table(unit: ScoredUnit) -> pa.Table:
    """One unit as a table with a row per (candidate, example)."""
    rows, *shape = unit.held_tokens.shape
    held = pa.FixedSizeListArray.from_arrays(pa.array(unit.held_tokens.reshape(-1)), int(np.prod(shape)))
    columns = {name: pa.array(getattr(unit, name)) for name in _EVALUATION_NAMES} | {"held_tokens": held}
    statistics = unit.statistics and {
        "count": int(unit.statistics.count),
        "mean": unit.statistics.mean.tolist(),
        "variance": unit.statistics.variance.tolist(),
    }
    said_once = {
        "key": unit.key,
        "generation": unit.generation,
        "memory_name": unit.memory_name,
        "task": unit.task,
        "split": unit.split,
        "seconds": float(unit.seconds),
        "is_declared": unit.is_declared,
        "shape": [rows, *shape],
        "statistics": statistics,
    }
    return pa.table(columns, metadata={_UNIT_KEY: json.dumps(said_once).encode()})


def unit_from_table(table: pa.Table) -> ScoredUnit:
    """The unit that ``unit_table`` made the table from."""
    said_once: dict[str, Any] = json.loads(table.schema.metadata[_UNIT_KEY])
    shape = said_once.pop("shape")
    statistics = said_once.pop("statistics")
    held = table.column("held_tokens").combine_chunks().flatten().to_numpy()
    return ScoredUnit(
        **said_once,
        **{name: table.column(name).to_numpy() for name in _EVALUATION_NAMES},
        held_tokens=held.reshape(shape),
        statistics=statistics and _statistics(**statistics),
    )


def _statistics(count: int, mean: list[float], variance: list[float]) -> FeatureStatistics:
    return FeatureStatistics(count, np.array(mean, np.float64), np.array(variance, np.float64))


def candidates_table(generation: int, fitness: GenerationFitness) -> pa.Table:
    """What the search is told, a row per candidate."""
    population = len(fitness.loss)
    identity = [np.full(population, generation, np.int32), np.arange(population, dtype=np.int32)]
    columns = [getattr(fitness, name) for name in schemas.CANDIDATES.names[2:]]
    return pa.table([*identity, *columns], schema=schemas.CANDIDATES)


def genomes_table(generation: int, genomes: npt.NDArray[np.float32]) -> pa.Table:
    """What the search had proposed, float32 [population, genome], a row per candidate."""
    population, size = genomes.shape
    identity = [np.full(population, generation, np.int32), np.arange(population, dtype=np.int32)]
    schema = schemas.genomes_schema(size)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(genomes.reshape(-1)), type=schema.field("genome").type)
    return pa.table([*identity, lists], schema=schema)


def evaluations_table(units: Sequence[ScoredUnit]) -> pa.Table:
    """A row per (unit, candidate, example)."""
    identity = _identity_columns(units, [len(unit.candidate) for unit in units])
    columns = [_concatenated(getattr(unit, name) for unit in units) for name in _EVALUATION_NAMES]
    return _table([*identity, *columns], schemas.EVALUATIONS)


def evictions_table(units: Sequence[ScoredUnit]) -> pa.Table:
    """A row per (unit, candidate, example, layer, kv_head)."""
    columns = {
        "candidate": (_per_head(unit, unit.candidate) for unit in units),
        "example": (_per_head(unit, unit.example) for unit in units),
        "layer": (_positions(unit, axis=1) for unit in units),
        "kv_head": (_positions(unit, axis=2) for unit in units),
        "seen_tokens": (_per_head(unit, unit.seen_tokens) for unit in units),
        "held_tokens": (unit.held_tokens.reshape(-1) for unit in units),
    }
    identity = _identity_columns(units, [unit.held_tokens.size for unit in units])
    return _table([*identity, *map(_concatenated, columns.values())], schemas.EVICTIONS)


def units_table(units: Sequence[ScoredUnit]) -> pa.Table:
    """A row per unit."""
    statistics = [unit.statistics for unit in units]
    columns = [
        [unit.seconds for unit in units],
        [unit.is_declared for unit in units],
        [unit.held_tokens.shape[1] for unit in units],
        [unit.held_tokens.shape[2] for unit in units],
        [found and int(found.count) for found in statistics],
        [found and found.mean for found in statistics],
        [found and found.variance for found in statistics],
    ]
    return _table([*_identity_columns(units, [1] * len(units)), *columns], schemas.UNITS)


def _identity_columns(
    units: Sequence[ScoredUnit], rows: Sequence[int]
) -> list[pa.DictionaryArray | npt.NDArray[np.int32]]:
    """The columns that say which unit a row belongs to, each unit repeated for its rows."""
    return [
        _repeated([unit.key for unit in units], rows),
        np.repeat(np.array([unit.generation for unit in units], np.int32), rows),
        _repeated([unit.memory_name for unit in units], rows),
        _repeated([unit.task for unit in units], rows),
        _repeated([unit.split for unit in units], rows),
    ]


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.DictionaryArray:
    """Each text as often as its count; a text is held once."""
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    codes = np.repeat(encoded.indices.to_numpy(), np.array(counts, np.int64))
    return pa.DictionaryArray.from_arrays(pa.array(codes), encoded.dictionary)


def _table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """A table of a schema, whose text columns may come with a dictionary; in the file they are plain text."""
    arrays = [
        column if isinstance(column, pa.DictionaryArray) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    fields = [field.with_type(array.type) for field, array in zip(schema, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _concatenated(arrays: Iterable[npt.NDArray[_Number]]) -> npt.NDArray[_Number]:
    return np.concatenate(list(arrays))


def _per_head(unit: ScoredUnit, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """[rows] -> [rows * layers * kv_heads]."""
    return np.repeat(values, unit.held_tokens[0].size)


def _positions(unit: ScoredUnit, axis: int) -> npt.NDArray[np.int32]:
    """Position along an axis of ``held_tokens`` -> [rows * layers * kv_heads]."""
    along_axis = [-1 if other == axis else 1 for other in range(3)]
    positions = np.arange(unit.held_tokens.shape[axis], dtype=np.int32).reshape(along_axis)
    return np.broadcast_to(positions, unit.held_tokens.shape).reshape(-1)


def units_from_tables(units: pa.Table, evaluations: pa.Table, evictions: pa.Table) -> dict[str, ScoredUnit]:
    """The units that the ``units`` table lists, by key.

    The other two may hold more: rows of a compaction that was interrupted before the ``units`` table was written. They
    are read with ``unit`` as a dictionary.
    """
    evaluation_rows = _rows_by_unit(evaluations)
    eviction_rows = _rows_by_unit(evictions)
    arrays = {name: evaluations.column(name).to_numpy() for name in _EVALUATION_NAMES}
    held_tokens = evictions.column("held_tokens").to_numpy()
    found: dict[str, ScoredUnit] = {}
    for row in units.to_pylist():
        key = row["unit"]
        shape = (-1, row["num_layers"], row["num_kv_heads"])
        has_statistics = row["statistics_count"] is not None
        found[key] = ScoredUnit(
            key=key,
            **{name: row[name] for name in ("generation", "memory_name", "task", "split", "seconds", "is_declared")},
            **{name: array[evaluation_rows[key]] for name, array in arrays.items()},
            held_tokens=held_tokens[eviction_rows[key]].reshape(shape),
            statistics=_statistics(*(row[name] for name in schemas.UNITS.names[-3:])) if has_statistics else None,
        )
    return found


def _rows_by_unit(table: pa.Table) -> dict[str, slice]:
    """Where each unit's rows are: they stand together."""
    keys = table.column("unit").unify_dictionaries().combine_chunks()
    codes = keys.indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    return {keys.dictionary[int(codes[start])].as_py(): slice(start, stop) for start, stop in pairwise(starts)}

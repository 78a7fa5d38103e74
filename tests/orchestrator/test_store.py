from __future__ import annotations

import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator import schemas
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.store import Store
from workers.unit import FULL_CACHE_PASS, FeatureStatistics, ScoredUnit

FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def scored_unit(
    generation: int = 0,
    task: str = "facts",
    examples: tuple[int, ...] = (3, 5),
    candidates: tuple[int, ...] = (0, 1),
    memory_name: str = "namm",
    shape: tuple[int, int] = (3, 2),
    with_statistics: bool = False,
) -> ScoredUnit:
    rng = np.random.default_rng([generation + 1, *examples, *candidates, *task.encode()])
    rows = len(candidates) * len(examples)
    return ScoredUnit(
        key=f"g{generation:06d}_{memory_name}_{task}_train_e{examples[0]:06d}-{examples[-1]:06d}x{len(examples)}"
        f"_c{candidates[0]:04d}-{candidates[-1]:04d}",
        generation=generation,
        memory_name=memory_name,
        task=task,
        split="train",
        candidate=np.repeat(np.array(candidates, np.int32), len(examples)),
        example=np.tile(np.array(examples, np.int32), len(candidates)),
        exact=rng.random(rows),
        graded=rng.random(rows),
        seen_tokens=rng.integers(0, 4096, rows, dtype=np.int32),
        held_tokens=rng.integers(0, 4096, (rows, *shape), dtype=np.int32),
        mean_bytes=rng.random(rows) * 1e9,
        peak_bytes=rng.integers(0, 2**60, rows),
        state_bytes=rng.integers(0, 2**60, rows),
        seconds=float(rng.random()),
        statistics=FeatureStatistics(2**40 + 1, rng.random(25), rng.random(25)) if with_statistics else None,
    )


def candidate_columns(population: int = 4) -> SimpleNamespace:
    rng = np.random.default_rng(7)
    return SimpleNamespace(**{name: rng.random(population) for name in schemas.CANDIDATES.names[2:]})


def bits(value: object) -> object:
    """Equal exactly when two values have the same type, shape and bits."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float):
        return value.hex()
    if dataclasses.is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def visible_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Round trips


def test_a_unit_comes_back_as_it_was_put_before_and_after_its_generation_is_compacted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain, measured = scored_unit(), scored_unit(examples=(7, 8, 9), with_statistics=True)
    for unit in (plain, measured):
        store.put_unit(unit)
    assert bits(store.get_unit(plain.key)) == bits(plain)
    assert bits(store.get_unit(measured.key)) == bits(measured)

    store.commit_generation(0, np.zeros((4, 5), np.float32), candidate_columns())

    assert list((tmp_path / "units").iterdir()) == []
    for reader in (store, Store(tmp_path)):
        assert bits(reader.get_unit(plain.key)) == bits(plain)
        assert bits(reader.get_unit(measured.key)) == bits(measured)
        assert [unit.key for unit in reader.units(0)] == sorted([plain.key, measured.key])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_score_and_any_statistic_keeps_its_bits(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    unit = scored_unit(with_statistics=True)
    vector = hnp.arrays(np.float64, 4, elements=FLOATS)
    statistics = FeatureStatistics(3, data.draw(vector), data.draw(vector))
    unit = dataclasses.replace(
        unit, exact=data.draw(vector), graded=data.draw(vector), mean_bytes=data.draw(vector), statistics=statistics
    )
    store = Store(tmp_path_factory.mktemp("run"))
    store.put_unit(unit)
    staged = bits(store.get_unit(unit.key))
    store.commit_units(0)
    assert nan_blind(staged) == nan_blind(bits(unit))
    assert bits(store.get_unit(unit.key)) == staged or nan_blind(bits(store.get_unit(unit.key))) == nan_blind(staged)


def nan_blind(told: object) -> object:
    return told


@settings(max_examples=40, deadline=None)
@given(genomes=hnp.arrays(np.uint32, (3, 11)))
def test_any_genome_keeps_its_bits(genomes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(tmp_path_factory.mktemp("run"))
    store.commit_generation(5, genomes.view(np.float32), candidate_columns(3))
    column = store.table("genomes").column("genome").combine_chunks()
    assert column.type == pa.list_(pa.float32(), 11)
    assert column.flatten().to_numpy().tobytes() == genomes.tobytes()


def test_an_unknown_unit_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get_unit(scored_unit().key) is None
    store.put_unit(scored_unit())
    store.commit_units(0)
    assert store.get_unit(scored_unit(examples=(99,)).key) is None
    assert store.units(1) == []

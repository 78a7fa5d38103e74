from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator import schemas
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.fitness import GenerationFitness
from orchestrator.store import Store
from workers.unit import FULL_CACHE_PASS, FeatureStatistics, ScoredUnit


def commit(store: Store, generation: int, genomes: np.ndarray, fitness: GenerationFitness) -> None:
    """All tables of a generation."""
    store.commit_generation(generation, genomes, fitness)
    store.commit_units(generation)


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


def generation_fitness(population: int = 4) -> GenerationFitness:
    rng = np.random.default_rng(7)
    return GenerationFitness(**{name: rng.random(population) for name in schemas.CANDIDATES.names[2:]}, by_task={})


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

    commit(store, 0, np.zeros((4, 5), np.float32), generation_fitness())

    assert list((tmp_path / "units").iterdir()) == []
    for reader in (store, Store(tmp_path)):
        assert bits(reader.get_unit(plain.key)) == bits(plain)
        assert bits(reader.get_unit(measured.key)) == bits(measured)
        assert [unit.key for unit in reader.units(0)] == sorted([plain.key, measured.key])


@settings(max_examples=40, deadline=None)
@given(
    scores=hnp.arrays(np.uint64, (3, 4)),
    moments=hnp.arrays(np.float64, (2, 4), elements=st.floats(allow_nan=False)),
    seconds=st.floats(allow_nan=False),
)
def test_any_score_and_any_statistic_keeps_its_bits(
    scores: np.ndarray, moments: np.ndarray, seconds: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    exact, graded, mean_bytes = scores.view(np.float64)
    unit = dataclasses.replace(
        scored_unit(),
        exact=exact,
        graded=graded,
        mean_bytes=mean_bytes,
        seconds=seconds,
        statistics=FeatureStatistics(3, moments[0], moments[1]),
    )
    store = Store(tmp_path_factory.mktemp("run"))
    store.put_unit(unit)
    assert bits(store.get_unit(unit.key)) == bits(unit)
    store.commit_units(0)
    assert bits(store.get_unit(unit.key)) == bits(unit)


@settings(max_examples=40, deadline=None)
@given(genomes=hnp.arrays(np.uint32, (3, 11)))
def test_any_genome_keeps_its_bits(genomes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(tmp_path_factory.mktemp("run"))
    commit(store, 5, genomes.view(np.float32), generation_fitness(3))
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


# Tables


def test_tables_hold_every_number_of_every_unit_once_and_in_order_of_keys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    units = [scored_unit(task=task, candidates=block) for task in ("prose", "code") for block in ((2, 3), (0, 1))]
    for unit in units:
        store.put_unit(unit)
    genomes = np.arange(20, dtype=np.float32).reshape(4, 5)
    fitness = generation_fitness()
    commit(store, 0, genomes, fitness)

    units.sort(key=lambda unit: unit.key)
    evaluations, evictions = store.table("evaluations"), store.table("evictions")
    assert evaluations.column("unit").to_pylist() == [unit.key for unit in units for _ in range(4)]
    for name in ("candidate", "example", "exact", "graded", "seen_tokens", "mean_bytes", "peak_bytes", "state_bytes"):
        assert evaluations.column(name).to_pylist() == [x for unit in units for x in getattr(unit, name).tolist()]
    assert evictions.num_rows == 4 * 4 * 3 * 2
    row = evictions.slice(24 + 6 * 1 + 2 * 2 + 1, 1).to_pylist()[0]  # unit 1, row 1, layer 2, kv_head 1
    assert row == {
        "unit": units[1].key,
        "generation": 0,
        "memory_name": "namm",
        "task": units[1].task,
        "split": "train",
        "candidate": units[1].candidate[1],
        "example": units[1].example[1],
        "layer": 2,
        "kv_head": 1,
        "seen_tokens": units[1].seen_tokens[1],
        "held_tokens": units[1].held_tokens[1, 2, 1],
    }
    assert store.table("candidates").column("loss").to_pylist() == fitness.loss.tolist()
    assert store.table("genomes").column("genome").to_pylist() == genomes.tolist()
    assert store.table("units").column("seconds").to_pylist() == [unit.seconds for unit in units]


def test_tables_of_several_generations_group_and_join_as_they_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for generation, task in ((0, "prose"), (1, "code")):
        store.put_unit(scored_unit(generation, task=task))
        store.commit_units(generation)
    evaluations = pq.read_table(tmp_path / "tables" / "evaluations")
    grouped = evaluations.group_by("task").aggregate([("graded", "count")]).sort_by("task")
    assert grouped.to_pylist() == [{"task": "code", "graded_count": 4}, {"task": "prose", "graded_count": 4}]
    joined = evaluations.join(store.table("units").select(["unit", "seconds"]), keys="unit")
    assert joined.num_rows == 8


def test_a_later_evaluation_joins_the_units_that_were_compacted_before(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = scored_unit(4), scored_unit(4, memory_name="h2o-layer", shape=(3, 2))
    for unit in (first, second):
        store.put_unit(unit)
        store.commit_units(4)
    assert [bits(unit) for unit in store.units(4)] == [bits(second), bits(first)]
    assert store.table("evaluations").num_rows == 8
    assert store.table("evictions", [4]).num_rows == 48


def test_generations_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for generation in (FULL_CACHE_PASS, 0, 11):
        store.put_unit(scored_unit(generation))
        store.commit_units(generation)
    assert store.generations("units") == [-1, 0, 11]
    assert store.table("units").column("generation").to_pylist() == [-1, 0, 11]
    assert store.table("units", [11, -1]).column("generation").to_pylist() == [11, -1]


@pytest.mark.parametrize("name", schemas.PARTITIONED)
def test_before_the_first_generation_a_table_is_empty_but_has_its_columns(name: str, tmp_path: Path) -> None:
    table = Store(tmp_path).table(name)
    assert table.num_rows == 0
    assert "generation" in table.column_names
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", schemas.PARTITIONED)
def test_every_column_says_what_it_means_and_every_file_its_version(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_unit(scored_unit())
    commit(store, 0, np.zeros((4, 5), np.float32), generation_fitness())
    schema = pq.read_table(tmp_path / "tables" / name).schema
    assert schema.metadata[schemas.VERSION_KEY] == b"1"
    for field in schema:
        assert field.metadata[b"meaning"], field.name
        assert b"unit" in field.metadata, field.name


def test_a_table_of_no_generation_is_written_replaced_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    schema = pa.schema([pa.field("score", pa.float64(), metadata={"unit": "0 to 1"}), ("memory", pa.string())])
    for score in (0.1, 0.2):
        store.write_table("heldout", pa.table([[score], ["full"]], schema=schema))
    table = store.table("heldout")
    assert table.to_pylist() == [{"score": 0.2, "memory": "full"}]
    assert table.schema.field("score").metadata == {b"unit": b"0 to 1"}
    assert visible_files(tmp_path) == ["tables/heldout.parquet"]


@pytest.mark.parametrize("name", ["genomes", "../escape", "Held Out", ""])
def test_a_table_needs_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a table's name is"):
        Store(tmp_path).write_table(name, pa.table({"x": [1]}))


def test_a_missing_table_or_generation_is_told_with_what_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_unit(scored_unit())
    store.commit_units(0)
    with pytest.raises(RunFolderError, match=r"no such table: .*helout.parquet; there are: evaluations, evictions, un"):
        store.table("helout")
    with pytest.raises(RunFolderError, match=r"no such generation: .*there are: generation=000000"):
        store.table("units", [3])


def test_a_file_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "units" / "generation=000000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(schemas.empty("units").replace_schema_metadata({schemas.VERSION_KEY: b"2"}), path)
    with pytest.raises(RunFolderError, match="has schema version 2, this program reads 1: read it with the program"):
        Store(tmp_path).table("units")
    with pytest.raises(RunFolderError, match="has schema version 2"):
        Store(tmp_path).put_unit(scored_unit()) or Store(tmp_path).commit_units(0)


def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    store, unit = Store(tmp_path), scored_unit()
    store.put_unit(unit)
    path = tmp_path / "units" / f"{unit.key}.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StorageError, match=r"cannot read .*_c0000-0001.parquet: .*delete it to have it scored again"):
        store.get_unit(unit.key)


# Refusals


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    store, unit = Store(tmp_path), scored_unit()
    with largest_file(100), pytest.raises(StorageError) as caught:
        store.put_unit(unit)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/units/{unit.key}.parquet: File too large; nothing was half-written, "
        "so raise the limit on file sizes and resume the run"
    )
    assert visible_files(tmp_path) == []
    store.put_unit(unit)
    assert bits(store.get_unit(unit.key)) == bits(unit)


def test_a_full_disk_during_compaction_keeps_the_units(tmp_path: Path) -> None:
    store, unit = Store(tmp_path), scored_unit(shape=(32, 8))
    store.put_unit(unit)
    with largest_file(1000), pytest.raises(StorageError, match=r"cannot write .*evictions/generation=000000.parquet"):
        store.commit_units(0)
    assert visible_files(tmp_path) == [f"units/{unit.key}.parquet"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere, so step down from it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only folder", "closed folder"])
def test_a_folder_without_permission_is_named_with_its_remedy(mode: int, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    run_folder.chmod(mode)
    with (
        unprivileged(),
        pytest.raises(StorageError, match=r"run.*: Permission denied; .*allow this user to write") as e,
    ):
        Store(run_folder).put_unit(scored_unit())
    assert "\n" not in str(e.value)
    run_folder.chmod(0o755)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot write .*run: File exists"):
        Store(tmp_path / "run").put_unit(scored_unit())


def test_a_file_that_is_no_unit_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "units").mkdir(exist_ok=True)
    for name in ("foo.parquet", "gx_1.parquet"):
        (tmp_path / "units" / name).touch()
    assert store.staged_generations() == []

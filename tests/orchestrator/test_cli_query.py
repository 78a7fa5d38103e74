"""``namm query`` and ``namm store``: questions in SQL, what the tables say of themselves, and compaction."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import schemas
from orchestrator.analysis.store_readme import MEANINGS, store_readme
from orchestrator.analysis.views import VIEWS
from orchestrator.cli import main
from orchestrator.history import read_journal
from orchestrator.storage import folder_at
from orchestrator.store import Store, without_covered
from tests.orchestrator.s3 import s3_server


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of a run, to be changed."""
    return shutil.copytree(finished_run.folder, tmp_path / "run")


def rows(capsys, folder, sql):
    assert main(["query", str(folder), sql, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("namm: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- questions --------------------------------------------------------------------------------------------------------


def test_tables_and_views_are_listed(finished_run, capsys):
    assert main(["query", str(finished_run.folder)]) == 0
    out = capsys.readouterr().out
    for name in (*schemas.PARTITIONED, *schemas.ONCE, *VIEWS):
        assert f"\n{name} " in out


def test_a_view_answers_what_pyarrow_computes(finished_run, capsys):
    table = Store(finished_run.folder).table("evictions").to_pandas()
    table["kept"] = table.held_tokens / table.seen_tokens
    expected = table.groupby(["generation", "memory_name", "split", "layer"]).kept.mean()
    found = rows(
        capsys, finished_run.folder, "SELECT generation, memory_name, split, layer, kept_ratio FROM kept_by_layer"
    )
    assert len(found) == len(expected) > 4
    for *key, kept in found:
        assert kept == pytest.approx(expected[tuple(key)])


def test_fitness_is_minus_the_loss(finished_run, capsys):
    records = read_journal(finished_run.folder).generations
    found = rows(capsys, finished_run.folder, "SELECT best, median, worst, q90 FROM fitness ORDER BY generation")
    for record, (best, median, worst, q90) in zip(records, found, strict=True):
        fitness = -np.array(record.losses)
        assert (best, worst) == (fitness.max(), fitness.min())
        assert median == pytest.approx(np.median(fitness))
        assert q90 == pytest.approx(np.quantile(fitness, 0.9))


def test_the_journal_can_be_asked_too(finished_run, capsys):
    (record, _) = read_journal(finished_run.folder).generations
    sql = "SELECT value FROM metrics WHERE generation = 0 AND key = 'cache/kept_ratio_mean'"
    assert rows(capsys, finished_run.folder, sql) == [[record.metrics["cache/kept_ratio_mean"]]]
    assert rows(capsys, finished_run.folder, "SELECT value FROM settings WHERE key = 'search.population'") == [["4"]]


def test_deaths_of_all_drivers_are_added_up(run_folder, capsys):
    """Each attempt counts from 0."""
    (first,) = (run_folder / "journal").iterdir()
    opening, one, two, *_ = (json.loads(line) for line in first.read_text().splitlines())
    one["metrics"]["cluster/deaths"], two["metrics"]["cluster/deaths"] = 2.0, 1.0
    first.write_text("".join(json.dumps(line) + "\n" for line in (opening, one)))
    opened = {**opening, "attempt": 2, "after": first.name, "inherits": 1}
    second = first.with_name("attempt-000002-0123456789ab.jsonl")
    second.write_text("".join(json.dumps(line) + "\n" for line in (opened, two)))
    assert rows(capsys, run_folder, "SELECT number FROM losses_of_workers WHERE name = 'deaths'") == [[3]]


def test_answers_can_be_had_as_csv(finished_run, capsys):
    sql = "SELECT generation, candidate FROM candidates WHERE generation = 1 ORDER BY candidate"
    assert main(["query", str(finished_run.folder), sql, "--format", "csv"]) == 0
    assert capsys.readouterr().out == "generation,candidate\n1,0\n1,1\n1,2\n1,3\n"


def test_a_question_can_neither_read_nor_write_other_files(run_folder, tmp_path, capsys):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')",
        f"COPY candidates TO '{tmp_path / 'out.csv'}'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ):
        assert main(["query", str(run_folder), sql]) == 2
        assert "the query cannot be answered" in error_line(capsys)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing FROM fitness", "", "-- what?", " ;"])
def test_a_question_that_makes_no_sense_is_told_in_one_line(sql, finished_run, capsys):
    code = main(["query", str(finished_run.folder), sql])
    assert code == 2
    assert "the query cannot be answered" in error_line(capsys)


def test_numbers_that_json_does_not_know_are_nulls_however_deep(finished_run, capsys):
    found = rows(capsys, finished_run.folder, "SELECT [1.0, 'nan'::double], {'a': 'inf'::double}")
    assert found == [[[1.0, None], {"a": None}]]


def test_a_file_of_somebody_elses_may_bear_any_name(run_folder, capsys):
    tables = run_folder / "tables"
    shutil.copy(tables / "candidates" / "generation=000000.parquet", tables / 'my "table-1.parquet')
    assert rows(capsys, run_folder, 'SELECT count(*) > 0 FROM "my ""table-1"') == [[True]]


def test_a_report_elsewhere_needs_no_permission_to_write_into_the_run(run_folder, tmp_path, capsys):
    (run_folder / "tables" / "metrics.parquet").unlink(missing_ok=True)
    (run_folder / "tables" / "metrics.parquet").mkdir()  # nobody can write a file of that name, not even root
    assert main(["report", str(run_folder), "--trace", "never", "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.parametrize("command", ["query", "report", "store"])
def test_a_damaged_table_is_named_with_its_remedy(command, run_folder, capsys):
    path = run_folder / "tables" / "candidates" / "generation=000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert main([command, *(["describe"] if command == "store" else []), str(run_folder)]) == 2
    assert f"cannot read {path}" in (told := error_line(capsys))
    assert "restore it from a copy" in told


@pytest.mark.parametrize("command", ["query", "report", "store"])
def test_a_store_of_an_older_version_is_refused_in_one_line(command, run_folder, capsys):
    path = run_folder / "tables" / "candidates" / "generation=000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({schemas.VERSION_KEY: b"0"}), path)
    assert main([command, *(["describe"] if command == "store" else []), str(run_folder)]) == 2
    assert "has schema version 0, this program reads 1" in error_line(capsys)


def test_without_duckdb_the_extra_is_named(finished_run, capsys, monkeypatch):
    monkeypatch.setattr("orchestrator.analysis.queries.is_installed", lambda: False)
    assert main(["query", str(finished_run.folder)]) == 2
    assert "pip install 'namm-orchestrator[analysis]'" in error_line(capsys)


# --- what the tables say of themselves --------------------------------------------------------------------------------


def test_every_table_column_and_view_is_documented(finished_run):
    text = (finished_run.folder / "tables" / "README.md").read_text()
    assert text == store_readme()
    assert set(MEANINGS) == {*schemas.PARTITIONED, *schemas.ONCE}
    for name in MEANINGS:
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in schemas.empty(name).schema:
            assert f"| `{field.name}` |" in section
            assert field.metadata[b"meaning"]
    assert all(f"### {name}\n" in text for name in VIEWS)


# --- compaction -------------------------------------------------------------------------------------------------------


def test_compaction_keeps_every_row_and_leaves_few_files(run_folder, finished_run, capsys):
    before = {name: Store(finished_run.folder).table(name) for name in schemas.PARTITIONED}
    assert main(["store", "compact", str(run_folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files_after"] < document["files_before"]
    names = sorted(path.name for path in (run_folder / "tables" / "evictions").iterdir())
    assert names == ["generation=-00001.parquet", "generation=000002.parquet", "generations=000000-000001.parquet"]
    store = Store(run_folder)
    for name, table in before.items():
        assert store.generations(name) == Store(finished_run.folder).generations(name)
        assert store.table(name).equals(table)
        assert store.table(name, [1]).equals(Store(finished_run.folder).table(name, [1]))
        assert pq.read_schema(run_folder / store.files(name)[-1]).field(-1).metadata[b"meaning"]
    theirs = Store(finished_run.folder).units(1)
    assert [unit.key for unit in store.units(1)] == [unit.key for unit in theirs]
    assert all((a.held_tokens == b.held_tokens).all() for a, b in zip(store.units(1), theirs, strict=True))
    assert main(["store", "compact", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == []


def test_a_compacted_run_goes_on_and_is_reported(run_folder, capsys):
    assert main(["store", "compact", str(run_folder)]) == 0
    assert main(["resume", str(run_folder), "--generations", "3", "--json"]) == 0
    capsys.readouterr()
    assert rows(capsys, run_folder, "SELECT DISTINCT generation FROM candidates ORDER BY 1") == [[0], [1], [2]]


def test_a_compaction_that_was_killed_counts_no_row_twice(run_folder, finished_run, capsys):
    """The large file is there, and the small ones were not deleted yet."""
    small = run_folder / "tables" / "evictions" / "generation=000001.parquet"
    saved = small.read_bytes()
    assert main(["store", "compact", str(run_folder)]) == 0
    small.write_bytes(saved)
    capsys.readouterr()
    sql = "SELECT count(*), sum(held_tokens) FROM evictions"
    assert rows(capsys, run_folder, sql) == rows(capsys, finished_run.folder, sql)
    assert Store(run_folder).table("evictions").num_rows == Store(finished_run.folder).table("evictions").num_rows
    assert main(["store", "compact", str(run_folder)]) == 0
    assert not small.exists()


def test_a_run_at_work_is_not_compacted(run_folder, capsys):
    (attempt,) = (run_folder / "journal").iterdir()
    lines = attempt.read_text().splitlines(keepends=True)
    attempt.write_text("".join(lines[:-1]).replace('"host":"', '"host":"elsewhere-'))
    assert main(["store", "compact", str(run_folder)]) == 2
    assert "elsewhere-" in error_line(capsys)
    assert (run_folder / "tables" / "evictions" / "generation=000000.parquet").exists()


def test_files_that_a_larger_one_covers_are_left_out():
    files = ["t/generation=-00001.parquet", "t/generation=000001.parquet", "t/generations=000000-000003.parquet"]
    assert without_covered([*files, "t/generation=000004.parquet", "t/notes.txt"]) == [
        "t/generation=-00001.parquet",
        "t/generation=000004.parquet",
        "t/generations=000000-000003.parquet",
    ]


def test_the_store_is_described(finished_run, capsys):
    assert main(["store", "describe", str(finished_run.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == schemas.SCHEMA_VERSION
    assert document["tables"]["candidates"] == {
        "rows": 8,
        "files": 2,
        "bytes": document["tables"]["candidates"]["bytes"],
    }
    assert isinstance(Store(finished_run.folder).table("candidates"), pa.Table)


def test_a_run_on_an_object_store_is_asked_and_compacted_alike(finished_run, capsys):
    sql = "SELECT count(*), sum(held_tokens), max(generation) FROM evictions"
    expected = rows(capsys, finished_run.folder, sql)
    with s3_server() as server:
        address = server.address(f"{server.new_bucket()}/runs/tiny")
        folder = folder_at(address)
        for path in finished_run.folder.rglob("*"):
            if path.is_file():
                folder.write(str(path.relative_to(finished_run.folder)), path.read_bytes())
        assert rows(capsys, address, sql) == expected
        assert main(["store", "compact", address]) == 0
        capsys.readouterr()
        assert rows(capsys, address, sql) == expected
        assert "tables/evictions/generations=000000-000001.parquet" in folder.names("tables/evictions")

"""Rows: one schema a suite whatever the file, checked one by one, mapped from one Arrow file a machine."""

import dataclasses
import json
import random
import subprocess
import sys

import pytest

from tasks.errors import TaskError
from tasks.rows import checked_row, features, first_row, load_rows, rows
from tasks.sources import data_root, locate, read_manifest
from tasks.suites import SUITES
from tests.tasks import staging
from tests.tasks.staging import ALL_TASKS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "rows"


def found(root, kind, task):
    suite = SUITES[kind]
    return locate(suite, task, staging.LENGTH if suite.needs_length else None, root)


@pytest.mark.parametrize(("kind", "task"), ALL_TASKS)
def test_every_task_of_a_suite_has_one_schema(kind, task, staged):
    dataset = load_rows(found(staged, kind, task))
    assert dataset.features == features(SUITES[kind])
    assert len(dataset) == staging.NUM_ROWS
    assert dataset[0] == first_row(found(staged, kind, task))


def test_the_arrow_file_is_made_once_and_shared(staged, cache):
    task = found(staged, "longbench", "trec")
    first = load_rows(task)
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    assert load_rows(task)[:] == first[:]
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made]


def test_several_processes_may_make_the_arrow_file_at_once(staged, cache):
    program = (
        "import sys; from pathlib import Path\n"
        "from tasks.rows import load_rows; from tasks.sources import locate; from tasks.suites import SUITES\n"
        "print(len(load_rows(locate(SUITES['choubun'], 'wiki_qa', None, Path(sys.argv[1])))))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(staged)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == [str(staging.NUM_ROWS)] * 3
    assert [file.suffix for file in cache.iterdir()] == [".arrow"]


def test_a_cache_that_cannot_be_written_costs_memory_and_no_more(staged, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "file"))
    assert len(load_rows(found(staged, "longbench", "trec"))) == staging.NUM_ROWS


def test_numbers_become_text_where_infinitebench_has_both(staged):
    answers = [row["answer"] for row in rows(found(staged, "infinitebench", "math_find"))]
    assert answers[:3] == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"context": 3}, "row 7: context must be a text: got '3' (int)"),
        ({"answers": "Entity"}, "row 7: answers must be a list of texts: got 'Entity' (str)"),
        ({"answers": [["a"]]}, "answers must be a list of texts"),
        ({"length": "long"}, "length must be a whole number of 64 bits: got 'long' (str)"),
        ({"length": "--5"}, "length must be a whole number of 64 bits: got '--5' (str)"),
        ({"length": 10**30}, "row 7: length must be a whole number of 64 bits: got '1000"),
        ({"context": "a\ud800b"}, r"row 7: context must be a text: got 'a\ud800b' (str)"),
        ({"answers": ["\ud800"]}, "row 7: answers must be a list of texts"),
        ({"answers": None}, "row 7: answers must hold an answer to score by: got None"),
        ({"answers": []}, "row 7: answers must hold an answer to score by: got []"),
        ({"answer_prefix": ""}, "this is a derived data set with the prompt merged into the context"),
    ],
)
def test_a_row_of_another_kind_is_refused(change, told):
    row = {**staging.longbench_rows("trec")[0], **change}
    with pytest.raises(TaskError) as raised:
        checked_row(SUITES["longbench"], row, "row 7")
    assert told in str(raised.value)


def test_a_missing_column_is_named_with_those_that_are_there():
    row = staging.longbench_rows("trec")[0]
    del row["context"]
    with pytest.raises(
        TaskError, match=r"row 7 has no column 'context'; LongBench has input, context, .* has input, a"
    ):
        checked_row(SUITES["longbench"], row, "row 7")


def test_columns_that_nobody_reads_are_left_out():
    row = staging.longbench_rows("trec")[0]
    assert checked_row(SUITES["longbench"], {**row, "more": 1}, "row 7") == row


@pytest.mark.parametrize(
    ("kind", "task", "content", "told"),
    [
        ("infinitebench", "passkey", b"{not json}\n", "cannot be read"),
        ("infinitebench", "passkey", b"[1, 2]\n", "a line is no object"),
        ("infinitebench", "passkey", b'{"id": "\xff"}\n', "cannot be read"),
        ("infinitebench", "passkey", b"[" * 200_000, "passkey.jsonl cannot be read (row 1: maximum recursion depth"),
        ("infinitebench", "passkey", b'{"id": ' + b"1" * 5000 + b"}", "passkey.jsonl cannot be read (row 1: Exceeds"),
        ("infinitebench", "passkey", b"\n", "has no rows: stage the suite again"),
        ("longbench", "trec", b"no archive", "data.zip, data/trec.jsonl cannot be read"),
        ("choubun", "wiki_qa", b"PAR1", "not a Parquet file"),
    ],
)
def test_a_damaged_file_is_one_line_with_the_remedy(kind, task, content, told, tmp_path):
    staging.stage(tmp_path, kind)
    suite = SUITES[kind]
    (tmp_path / suite.folder / suite.file_name(task)).write_bytes(content)
    staging.write_source(tmp_path, suite)
    with pytest.raises(TaskError) as raised:
        first_row(found(tmp_path, kind, task))
    assert told in str(raised.value)


def refusal(task):
    """What is said where the rows cannot be read; nothing where they can."""
    try:
        list(rows(task))
    except TaskError as error:
        return str(error)
    return ""


def test_a_damaged_archive_is_one_line_wherever_the_damage_is(tmp_path):
    """Bits that flipped in headers and in compressed data make four readers raise a dozen kinds of errors."""
    staging.stage(tmp_path, "longbench")
    path = tmp_path / "longbench/data.zip"
    sound = path.read_bytes()
    task = found(tmp_path, "longbench", "trec")
    for seed in range(200):
        draw, damaged = random.Random(seed), bytearray(sound)
        for _ in range(20):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert "\n" not in refusal(task)


@pytest.mark.parametrize("options", [None, []])
def test_a_question_with_choices_needs_them(options, tmp_path):
    staging.stage(tmp_path, "infinitebench")
    first, *more = staging.infinitebench_rows("code_debug")
    staging.write_lines(tmp_path / "infinitebench/code_debug.jsonl", [{**first, "options": options}, *more])
    staging.write_source(tmp_path, SUITES["infinitebench"])
    with pytest.raises(TaskError, match=r"row 1 of .*code_debug\.jsonl: options must be a list of the choices: got"):
        first_row(found(tmp_path, "infinitebench", "code_debug"))


@pytest.mark.parametrize("spoilt", ["[" * 100_000, '{"origin": "hub", "files": {"a": {"sha256": "", "bytes": 1e999}}}'])
def test_a_damaged_manifest_is_one_line_with_the_remedy(spoilt, tmp_path):
    (tmp_path / "SOURCE.json").write_text(spoilt)
    with pytest.raises(TaskError, match=r"SOURCE\.json cannot be read \(.*\): delete it and stage the suite again"):
        read_manifest(tmp_path)


def test_a_file_of_another_size_than_was_staged_is_refused(tmp_path):
    staging.stage(tmp_path, "infinitebench")
    (tmp_path / "infinitebench/passkey.jsonl").write_text("")
    with pytest.raises(TaskError, match=r"passkey.jsonl has 0 bytes, but had [\d,]+ when it was staged: delete it"):
        found(tmp_path, "infinitebench", "passkey")


def test_a_file_of_the_same_size_and_another_content_is_refused(tmp_path, cache):
    staging.stage(tmp_path, "infinitebench")
    path = tmp_path / "infinitebench/passkey.jsonl"
    path.write_bytes(path.read_bytes().replace(b"def", b"fed"))
    with pytest.raises(TaskError, match=r"is not what was staged \(its sha256 differs\)"):
        load_rows(found(tmp_path, "infinitebench", "passkey"))
    assert not cache.exists()


def test_a_file_that_is_gone_is_named(tmp_path):
    staging.stage(tmp_path, "choubun")
    (tmp_path / "choubun" / SUITES["choubun"].file_name("wiki_qa")).unlink()
    with pytest.raises(TaskError, match=r"wiki_qa/test-00000-of-00001.parquet cannot be read"):
        found(tmp_path, "choubun", "wiki_qa")


def test_the_folder_of_suites_is_given_or_in_the_environment_or_the_users(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("NAMM_TASKS", raising=False)
    assert str(data_root()) == "/home/somebody/.cache/namm/tasks"
    monkeypatch.setenv("NAMM_TASKS", "/data/tasks")
    assert str(data_root()) == "/data/tasks"
    assert str(data_root("~/mine")) == "/home/somebody/mine"


def test_a_row_without_question_has_an_empty_one():
    row = {**staging.longbench_rows("lcc")[0], "input": None}
    assert checked_row(SUITES["longbench"], row, "row 7")["input"] == ""


def test_a_staged_task_says_where_it_is(staged):
    task = found(staged, "longbench", "trec")
    assert task.place == f"{staged / 'longbench/data.zip'}, data/trec.jsonl"
    assert dataclasses.replace(task, member=None).place == str(staged / "longbench/data.zip")
    assert json.loads((staged / "longbench/SOURCE.json").read_text())["suite"] == "longbench"

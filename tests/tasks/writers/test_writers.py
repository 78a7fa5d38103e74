"""What the writers write: the hub's files in name, columns and types, the same bytes from the same arguments."""

import ast
import hashlib
import json
import re
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.corpus import Source, corpus_of, read_corpus
from tasks.documents import TextPool, count_pieces
from tasks.errors import TaskError
from tasks.sources import read_manifest
from tasks.suites import SUITES
from tasks.words import split_text
from tasks.writers import infinitebench, longbench, ruler, words, write_suite
from tasks.writers.material import Material
from tests.tasks.conftest import GENERATED_LENGTH, GENERATED_ROWS

SIZES = {"seed": 3, "num_rows": 2, "target_tokens": 512, "count_tokens": count_pieces}


def rows_of(generated, kind):
    """All rows of a suite by task, as plain JSON or Parquet readers see them."""
    suite, folder = SUITES[kind], generated / SUITES[kind].folder
    for task in suite.tasks:
        path = folder / suite.file_name(task, GENERATED_LENGTH)
        if path.suffix == ".parquet":
            yield task, pq.read_table(path).to_pylist()
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield task, [json.loads(line) for line in archive.read(suite.member_name(task)).splitlines()]
        else:
            yield task, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUITES)
def test_columns_are_those_of_the_suite_and_rows_fit_the_length(kind, generated):
    suite = SUITES[kind]
    for task, rows in rows_of(generated, kind):
        assert len(rows) == GENERATED_ROWS, task
        assert all(list(row) == list(suite.columns) for row in rows), task
        for row in rows:
            text = f"{row['context']}\n{row['input']}" if "context" in row else row["input"]
            assert count_pieces(text) <= GENERATED_LENGTH, task
            assert row[suite.answers], task
        names = [row[suite.id_column] for row in rows] if suite.id_column else range(GENERATED_ROWS)
        assert len(set(names)) == GENERATED_ROWS, task


@pytest.mark.slow
def test_the_manifest_names_every_file_by_its_hash(generated):
    for folder in ("longbench", "infinitebench", "choubun", "ruler"):
        manifest = read_manifest(generated / folder)
        assert manifest is not None
        assert (manifest.origin, manifest.id) == ("generated", read_corpus().sha256)
        for name, facts in manifest.files.items():
            data = (generated / folder / name).read_bytes()
            assert (facts.sha256, facts.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.slow
def test_answers_can_be_found_where_the_task_says(generated):
    by_task = dict(rows_of(generated, "longbench"))
    for task in ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "dureader", "hotpotqa", "triviaqa"):
        assert all(row["answers"][0] in row["context"] + row["input"] for row in by_task[task]), task
    for row in by_task["passage_retrieval_en"]:
        assert f"{row['answers'][0]}:\n" in row["context"]
    for row in by_task["passage_count"]:
        paragraphs = re.split(r"Paragraph \d+:\n", row["context"])[1:]
        assert row["answers"] == [str(len({text.strip() for text in paragraphs}))]
    for row in by_task["trec"]:
        assert row["answers"][0] in row["all_classes"]


@pytest.mark.slow
def test_made_up_code_returns_what_the_answer_says(generated):
    for row in dict(rows_of(generated, "infinitebench"))["code_run"]:
        name, argument = re.search(r"(func_\d+)\((-?\d+)\)", row["input"]).groups()
        tree = {node.name: node for node in ast.parse(row["context"]).body}

        def value(name, x, tree=tree):
            body = tree[name].body[0].value
            inner = body.left
            below = value(inner.func.id, x) if isinstance(inner, ast.Call) else x
            return below + body.right.value * (1 if isinstance(body.op, ast.Add) else -1)

        assert row["answer"] == [str(value(name, int(argument)))]


def test_the_same_arguments_write_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_suite("infinitebench", tmp_path / name, **{**SIZES, "seed": seed})
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "infinitebench").iterdir()}
        for name in ("one", "two", "other")
    )
    assert one == two
    assert all(one[name] != other[name] for name in one)
    assert len(one) == 13  # twelve splits, one more than lm-eval has tasks, and the manifest


@pytest.mark.parametrize("task", words.TASKS)
def test_rows_in_words_are_all_known_to_the_small_llama(task):
    from tasks.words import VOCABULARY

    material = Material(read_corpus(), 0, 3, 512, count_pieces, in_words=True)
    for row in material.rows("longbench", task, words.TASKS[task]):
        known = set(VOCABULARY)
        assert set(split_text(row.context) + split_text(row.input) + list(row.answers)) <= known
        key = row.input.removeprefix("ask ")
        assert f"{key}{row.answers[0]}" in row.context
        assert row.classes is None or row.answers[0] in row.classes


def test_every_task_has_a_writer():
    assert set(longbench.TASKS) == set(SUITES["longbench"].tasks)
    assert {name for name, task in longbench.TASKS.items() if task.in_e} == set(SUITES["longbench_e"].tasks)
    assert set(infinitebench.SPLITS) == {*SUITES["infinitebench"].tasks, "math_calc"}
    assert set(ruler.MAX_NEW_TOKENS) == set(SUITES["ruler"].tasks)
    assert set(words.TASKS) <= set(longbench.TASKS)


def test_text_of_suites_is_held_out_from_what_models_and_memories_learn():
    corpus = read_corpus()
    pool = TextPool(corpus, "heldout", 512)
    train = {line for source in corpus.of("train") for line in source.text.splitlines() if len(line.strip()) >= 30}
    drawn = [line for line in pool.lines(np.random.default_rng(0)) if len(line.strip()) >= 30]
    assert sum(line in train for line in drawn) <= 0.1 * len(drawn)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_rows": 0}, "num_rows is 0; choose 1 or more"),
        ({"seed": -1}, "seed is -1; choose 0 or more"),
        ({"target_tokens": 100}, "length is 100 tokens; ask for at least 512"),
    ],
)
def test_sizes_that_are_not_possible_are_refused(changes, told, tmp_path):
    with pytest.raises(TaskError) as raised:
        write_suite("choubun", tmp_path, **{**SIZES, **changes})
    assert str(raised.value) == told
    assert list(tmp_path.iterdir()) == []


def test_a_suite_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(TaskError, match="suite is 'scrolls'; known suites are longbench"):
        write_suite("scrolls", tmp_path, **SIZES)


def test_a_corpus_too_short_is_told(tmp_path):
    names = [f"file {number}.md" for number in range(200)]
    corpus = corpus_of("short", [Source(name, "prose", f"One line of {name} only.\n") for name in names])
    with pytest.raises(TaskError, match="corpus 'short' has no code in split 'heldout': give a folder with more files"):
        Material(corpus, 0, 2, 512, count_pieces).rows("longbench", "lcc", longbench.TASKS["lcc"].maker)

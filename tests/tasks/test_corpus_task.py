from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus import corpus_of, read_corpus, split_of
from tasks.corpus_task import DRAFTS, CorpusTaskKind, CorpusTaskSettings
from tasks.documents import count_pieces
from tasks.errors import TaskError
from tasks.registry import build_task, task_settings
from tests.text_model import text_tokenizer

KINDS = get_args(CorpusTaskKind)
ANSWERS_MADE = {"text_passage_count"}
"""Their answers need not stand in the text: they are counted."""


def make(kind="text_fact_code", length=512, **more):
    return build_task(CorpusTaskSettings(kind=kind, length=length, tokenizer=None, **more))


def whole_text(example) -> str:
    return example.prompt + "".join(question.text + question.answer for question in example.questions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [512, 2048])
def test_an_example_is_a_function_of_seed_split_and_index(kind, length):
    task, again = make(kind, length), make(kind, length)
    examples = [task.example("heldout", index) for index in range(3)]

    assert [again.example("heldout", index) for index in (2, 1, 0)] == examples[::-1]
    assert len({example.prompt for example in examples}) == 3
    assert make(kind, length, seed=1).example("heldout", 0).prompt != examples[0].prompt
    assert task.example("train", 0).prompt != examples[0].prompt


@settings(max_examples=25, deadline=None)  # no deadline: a loaded machine is no bug
@given(
    kind=st.sampled_from(KINDS),
    split=st.sampled_from(("train", "heldout")),
    index=st.integers(0, 10**6),
    length=st.integers(512, 1500),
)
def test_every_answer_stands_in_the_context_and_the_length_is_kept(kind, split, index, length):
    example = make(kind, length).example(split, index)

    assert example.prompt.endswith("\n")
    tokens = 1 + count_pieces(whole_text(example))
    assert tokens <= length
    assert tokens > 0.6 * length  # passages and functions are taken whole
    for question in example.questions:
        answer = question.answer.strip("\n").removeprefix(" ")
        assert question.answer == f" {answer}\n"
        assert answer
        assert kind in ANSWERS_MADE or answer in example.prompt


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_documents_reach_their_length(kind):
    length = 4096 if kind == "text_line_type" else 8192  # there are not so many different lines of code held out
    example = make(kind, length).example("heldout", 0)
    assert 0.95 * length < 1 + count_pieces(whole_text(example)) <= length


def test_a_model_tokenizer_counts_where_the_task_says_so():
    tokenizer = text_tokenizer()

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    task = build_task(CorpusTaskSettings(kind="text_kv", length=700), count)
    example = task.example("train", 0)
    assert 600 < 1 + count(whole_text(example)) <= 700
    pieces = [example.prompt, *(part for q in example.questions for part in (q.text, q.answer))]
    assert sum(map(count, pieces)) == count(whole_text(example)), "pieces are cut where the tokenizer cuts"


def test_splits_share_no_file_and_no_word():
    corpus = read_corpus()
    by_split = {split: corpus.of(split) for split in ("train", "validation", "heldout")}
    files = {split: {s.name.partition("#")[0] for s in sources} for split, sources in by_split.items()}
    words = {split: set(corpus.words(split)) for split in files}
    for a, b in (("train", "validation"), ("train", "heldout"), ("validation", "heldout")):
        assert not files[a] & files[b]
        assert not words[a] & words[b]
    assert all(split_of(name) == split for split, names in files.items() for name in names)


def test_values_are_no_words_of_the_text_around_them():
    example = make("text_fact_prose", 1024).example("heldout", 1)
    for question in example.questions:
        value = question.answer.strip()
        assert example.prompt.count(value) == 1, f"{value} stands in the text more than once"


def test_the_hash_of_a_corpus_names_its_texts(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = read_corpus.__wrapped__(tmp_path)
    assert read_corpus.__wrapped__(tmp_path).sha256 == first.sha256
    (tmp_path / "b.md").write_text("more\n")
    assert read_corpus.__wrapped__(tmp_path).sha256 != first.sha256
    assert corpus_of("other name", first.sources).sha256 == first.sha256


def test_the_expected_hash_is_checked():
    digest = read_corpus().sha256
    assert make(corpus_sha256=digest[:12]).corpus.sha256 == digest
    with pytest.raises(TaskError, match=f"corpus_sha256 is 'beef', but the text .* has {digest}: use the same"):
        make(corpus_sha256="beef")


def test_any_folder_of_text_serves(tmp_path):
    sources = read_corpus().of("train")[:60]
    for source in sources:
        path = tmp_path / source.name.replace("/", "_").replace("#", "_")
        path.with_suffix(".py" if source.kind == "code" else ".txt").write_text(source.text)
    task = make("text_passkey", corpus=str(tmp_path))
    assert task.corpus.name == tmp_path.name
    example = task.example("train", 0)
    assert all(question.answer.strip() in example.prompt for question in example.questions)


def test_a_corpus_too_short_for_the_length_is_refused_with_what_it_has(tmp_path):
    (tmp_path / "few.txt").write_text("\n".join(f"line {n} of a short text about nothing" for n in range(40)))
    (tmp_path / "words.md").write_text(" ".join(sorted(read_corpus().words("train"))[:400]))
    name = next(f"f{n}.txt" for n in range(100) if split_of(f"f{n}.txt") == "train")
    (tmp_path / "few.txt").rename(tmp_path / name)
    with pytest.raises(TaskError, match=r"length is 4096; the corpus has text for about \d+ tokens only: ask for sh"):
        make("text_passkey", 4096, corpus=str(tmp_path)).example("train", 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "text_fact"}, "kind is 'text_fact'; known kinds are text_fact_prose, "),
        ({"length": 511}, "length is 511; ask for at least 512 tokens"),
        ({"num_questions": 0}, "num_questions is 0; ask for at least 1"),
        ({"num_questions": 9}, "num_questions is 9, too many for length 512; set length to at least 576, or num_quest"),
        ({"seed": -1}, "seed is -1; choose 0 or more"),
    ],
)
def test_impossible_settings_are_named(wrong, message):
    with pytest.raises(TaskError) as error:
        CorpusTaskSettings(**{"kind": "text_kv", "length": 512, **wrong})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokenizer": "model"}, "tokenizer is 'model', but no model is asked here: give the folder of one, or null"),
        ({"tokenizer": "/nowhere"}, "tokenizer: no tokenizer.json in '/nowhere': give the folder of a model with one"),
        ({"corpus": "/nowhere"}, "corpus: '/nowhere' is no folder: give one with .py, .md, .rst or .txt files in it"),
    ],
)
def test_what_is_missing_is_named(wrong, message):
    with pytest.raises(TaskError) as error:
        build_task(CorpusTaskSettings(**{"kind": "text_kv", "tokenizer": None, **wrong}))
    assert str(error.value) == message


def test_the_registry_knows_every_kind():
    assert set(DRAFTS) == set(KINDS)
    for kind in KINDS:
        chosen = CorpusTaskSettings(kind=kind, length=600, tokenizer=None)
        assert task_settings(asdict(chosen)) == chosen
        assert build_task(chosen).name == chosen.name == f"{kind}-600"


def test_examples_are_frozen_in_their_form():
    """The words are the corpus's own; the form of questions and facts is what models are trained on."""
    for kind, question in (
        ("text_fact_code", "Question: What is the value of "),
        ("text_fact_prose", "Question: What is the "),
        ("text_kv", 'Question: What is the value of the key "'),
        ("text_passkey", "Question: What is the pass key?\nAnswer:"),
        ("text_next_line", "Question: Which line comes after `"),
    ):
        example = make(kind).example("train", 0)
        assert example.questions[0].text.startswith(f"\n{question}")
        assert example.questions[1].text.startswith(question)
        assert example.questions[0].text.endswith("\nAnswer:")
    dense = make("text_kvdense").example("train", 0)
    key, value = dense.questions[0].text.strip("\n:"), dense.questions[0].answer
    assert f"\n{key}:{value}" in dense.prompt

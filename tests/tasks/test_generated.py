from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import TaskError
from tasks.generated import GeneratedTask, ask, draw_facts, write_document
from tasks.registry import GeneratedTaskSettings, build_task
from tasks.task import Example, Question
from tasks.words import KEYS, VALUES, VOCABULARY, join_words, split_text, token_kinds, word_kind

KINDS = ("facts_prose", "facts_code")


def example(kind="facts_prose", split="train", index=0, **settings) -> Example:
    return build_task(GeneratedTaskSettings(kind=kind, **settings)).example(split, index)


@st.composite
def possible_settings(draw) -> GeneratedTaskSettings:
    num_facts = draw(st.integers(1, 64))
    return GeneratedTaskSettings(
        kind=draw(st.sampled_from(KINDS)),
        length=draw(st.integers(2 + 4 * num_facts, 600)),
        num_facts=num_facts,
        num_questions=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**63)),
    )


splits = st.sampled_from(("train", "heldout"))
indices = st.integers(0, 10**6)


def test_the_registry_builds_a_task_with_the_name_of_its_settings():
    settings = GeneratedTaskSettings(kind="facts_code", length=128)
    task = build_task(settings)

    assert task.name == settings.name == "facts_code-128"
    assert task.example("heldout", 3).task == "facts_code-128"


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_a_document_has_exactly_the_tokens_asked_for(case, split, index):
    prompt = build_task(case).example(split, index).prompt
    assert 1 + len(split_text(prompt)) == case.length  # 1: beginning of sequence


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_the_same_settings_split_and_index_always_give_the_same_example(case, split, index):
    assert build_task(case).example(split, index) == build_task(case).example(split, index)


def test_an_example_does_not_depend_on_the_examples_drawn_before_it():
    task = build_task(GeneratedTaskSettings(kind="facts_prose"))
    for index in range(5):
        task.example("train", index)
    assert task.example("train", 7) == build_task(GeneratedTaskSettings(kind="facts_prose")).example("train", 7)


def test_examples_are_frozen_in_time():
    """A run is repeatable only as long as old settings give the old text: a change here ends every stored run."""
    assert example(length=24, num_facts=2, num_questions=1) == Example(
        task="facts_prose-24",
        split="train",
        index=0,
        prompt="this library=turquoise idle miller today takes a wheel beside the bottle, "
        "this institute=autumn narrow carpet washes this heavy farmer into",
        questions=(Question(text="\nask institute=", answer="autumn"),),
    )
    assert example("facts_code", length=24, num_facts=2, num_questions=1) == Example(
        task="facts_code-24",
        split="train",
        index=0,
        prompt="# moves every cellar\ndef holds(barrel):\n    captain=scarlet\n    institute=scarlet\n    wheel =",
        questions=(Question(text="\nask captain=", answer="scarlet"),),
    )


@pytest.mark.parametrize("difference", [{"seed": 1}, {"index": 1}, {"split": "heldout"}, {"kind": "facts_code"}])
def test_seed_index_split_and_kind_each_change_the_example(difference):
    assert example(**difference).prompt != example().prompt


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_answers_stand_literally_behind_their_key_in_the_document(case, split, index):
    drawn = build_task(case).example(split, index)
    assert len(drawn.questions) == case.num_questions
    for question in drawn.questions:
        key = question.text.removeprefix("\nask ")
        assert f"{key}{question.answer}" in drawn.prompt


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_a_document_has_the_facts_asked_for_and_no_key_twice(case, split, index):
    words = split_text(build_task(case).example(split, index).prompt)
    keys = [word for word in words if word_kind(word) == "key"]
    assert len(keys) == len(set(keys)) == case.num_facts
    assert all(word_kind(words[place + 1]) == "value" for place, word in enumerate(words) if word in keys)
    assert sum(word_kind(word) == "value" for word in words) == case.num_facts


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_questions_and_answers_have_a_fixed_number_of_tokens(case, split, index):
    for question in build_task(case).example(split, index).questions:
        assert len(split_text(question.text)) == 3
        assert len(split_text(question.answer)) == 1


@settings(max_examples=40, deadline=None)  # no deadline: a loaded machine is no bug
@given(case=possible_settings(), split=splits, index=indices)
def test_splitting_and_joining_a_prompt_with_its_questions_gives_it_back(case, split, index):
    drawn = build_task(case).example(split, index)
    text = drawn.prompt + "".join(question.text + question.answer for question in drawn.questions)
    assert join_words(split_text(text)) == text
    assert set(split_text(text)) <= set(VOCABULARY)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_heldout_share_no_document_and_not_even_a_fact(kind):
    def facts(split):
        task = build_task(GeneratedTaskSettings(kind=kind, length=64))
        prompts = [task.example(split, index).prompt for index in range(200)]
        return {fact for prompt in prompts for fact in re.findall(r"\w+=[a-z]+", prompt)}

    assert len(facts("train")) > 500
    assert not facts("train") & facts("heldout")


def test_keys_are_asked_with_replacement():
    questions = example(length=64, num_facts=2, num_questions=8).questions
    assert len({question.text for question in questions}) == 2


def test_facts_of_no_split_use_every_pair_of_key_and_value():
    rng = np.random.default_rng(0)
    facts = [fact for _ in range(300) for fact in draw_facts(rng, 64, split=None).items()]
    parities = {(KEYS.index(key) + VALUES.index(value)) % 2 for key, value in facts}
    assert parities == {0, 1}


def test_facts_are_spread_over_the_whole_document():
    places = [
        place / 256
        for index in range(100)
        for place, kind in enumerate(token_kinds(example(index=index).prompt))
        if kind == "value"
    ]
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 150  # 800 facts, 200 expected in each quarter


def test_code_documents_look_like_code_and_prose_like_prose():
    code, prose = example("facts_code").prompt, example("facts_prose").prompt
    assert re.search(r"^def \w+\(\w+\):\n(    .*\n)+    return \w+$", code, re.MULTILINE)
    assert re.search(r"^# ", code, re.MULTILINE)
    assert "\n\n" in code
    assert re.search(r"[a-z]\. [a-z]", prose)
    assert "def " not in prose


def test_token_kinds_say_what_each_token_is_beginning_of_sequence_included():
    kinds = token_kinds("the river captain=amber turns.")
    assert kinds == ("special", "filler", "filler", "key", "value", "filler", "filler")


def test_a_document_knows_its_facts():
    rng = np.random.default_rng(0)
    facts = {"captain=": "amber", "beacon=": "otter"}
    document = write_document("facts_code", 40, facts, rng)
    assert document.facts == facts
    assert len(document.words) == 39
    assert {question.answer for question in ask(document, 20, rng)} == {"amber", "otter"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "facts_poem"}, "kind is 'facts_poem'; known kinds are facts_prose, facts_code"),
        ({"num_facts": 0}, "num_facts is 0; ask for at least 1"),
        ({"num_questions": 0}, "num_questions is 0; ask for at least 1"),
        ({"seed": -1}, "seed is -1; choose 0 or more"),
        ({"num_facts": 65, "length": 999}, "num_facts is 65; there are 64 keys, so ask for at most that many"),
        (
            {"num_facts": 8, "length": 33},
            "num_facts is 8, too many for documents of length 33; set length to at least 34, or num_facts to at most 7",
        ),
    ],
    ids=["kind", "no facts", "no questions", "seed", "keys", "length"],
)
def test_impossible_settings_name_the_key_and_the_remedy(settings, message):
    with pytest.raises(TaskError, match=f"^{re.escape(message)}$"):
        GeneratedTaskSettings(**{"kind": "facts_prose", **settings})


def test_the_shortest_document_holds_its_facts():
    for index in range(50):
        assert len(split_text(example("facts_code", length=34, index=index).prompt)) == 33


def test_there_are_256_words_and_each_has_one_meaning():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 256
    assert not {key.removesuffix("=") for key in KEYS} & set(VOCABULARY)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="negative"):
        example(index=-1)


def test_the_task_is_a_plain_value():
    assert build_task(GeneratedTaskSettings(kind="facts_prose")) == GeneratedTask(
        "facts_prose-256", "facts_prose", 256, 8, 4, 0
    )

"""The model that is kept in the repository: what its card promises, and its tokenizer."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.registry import GeneratedTaskSettings, build_task
from tasks.words import BOS, VOCABULARY, split_text, token_kinds
from workers import word_tokenizer
from workers.training import exact_match

FOLDER = Path(word_tokenizer.__file__).parent / "models" / "small-llama"
KINDS = ("facts_prose", "facts_code")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER, local_files_only=True).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [256, 512])
def test_it_answers_heldout_questions(model, kind, length):
    task = build_task(GeneratedTaskSettings(kind=kind, length=length))
    assert exact_match(model, [task.example("heldout", index) for index in range(64)]) >= 0.97


def test_it_answers_one_question_by_plain_generation(model):
    example = build_task(GeneratedTaskSettings(kind="facts_code", length=128)).example("heldout", 0)
    question = example.questions[0]
    encoded = tokenizer()(example.prompt + question.text, return_tensors="pt")
    completion = model.generate(**encoded, max_new_tokens=1)[0, encoded.input_ids.shape[1] :]
    assert tokenizer().decode(completion) == question.answer


def test_it_is_small_float32_and_keeps_its_embeddings_apart(model):
    assert (FOLDER / "model.safetensors").stat().st_size <= 3_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.attention_bias
    assert not model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 4096
    assert model.config.num_key_value_heads == 2


def test_the_model_card_says_how_it_was_made_and_how_good_it_is(model):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert re.search(r"python -m workers\.training --out DIR --seed \d+ --steps-limit \d+", card)
    assert f"{model.num_parameters():,} parameters" in card
    rows = re.findall(r"^\| (facts_\w+) \| ([\d,]+) \| (\d+) \| \d+ \| ([\d.]+) \|$", card, re.MULTILINE)
    good = {(kind, length) for kind, length, num_facts, figure in rows if num_facts == "8" and float(figure) >= 0.97}
    assert {(kind, length) for kind in KINDS for length in ("256", "512")} <= good


def test_no_single_kv_head_does_all_the_looking_up(model):
    """A control: if one KV head sufficed, "keep that head whole" would be the best memory, whatever the tokens."""
    task = build_task(GeneratedTaskSettings(kind="facts_prose", length=256))
    examples = [task.example("heldout", index) for index in range(32)]
    for silent in range(2):
        remaining = torch.ones(4)
        remaining[2 * silent : 2 * silent + 2] = 0
        hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, remaining=remaining: ((args[0].unflatten(-1, (4, 32)) * remaining[:, None]).flatten(-2),)
        )
        try:
            assert exact_match(model, examples) < 0.8
        finally:
            hook.remove()


def test_the_kept_tokenizer_is_the_one_that_the_trainer_builds():
    assert tokenizer().backend_tokenizer.to_str() == word_tokenizer.build_tokenizer(4096).backend_tokenizer.to_str()
    assert tokenizer().convert_ids_to_tokens(list(range(256))) == list(VOCABULARY)


@settings(max_examples=60, deadline=None)  # no deadline: a loaded machine is no bug
@given(
    kind=st.sampled_from(KINDS),
    split=st.sampled_from(("train", "heldout")),
    length=st.integers(34, 400),
    index=st.integers(0, 10**6),
)
def test_text_to_tokens_to_text_gives_the_text_and_pieces_join_without_a_seam(kind, split, length, index):
    encode, decode = tokenizer(), tokenizer().decode
    example = build_task(GeneratedTaskSettings(kind=kind, length=length)).example(split, index)
    pieces = [piece for question in example.questions for piece in (question.text, question.answer)]
    ids = encode(example.prompt).input_ids
    assert len(ids) == length == len(token_kinds(example.prompt))
    assert decode(ids, skip_special_tokens=True) == example.prompt
    for piece in pieces:
        ids += encode(piece, add_special_tokens=False).input_ids
    text = example.prompt + "".join(pieces)
    assert ids == encode(text).input_ids
    assert decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_splits_text_as_the_tasks_do():
    text = build_task(GeneratedTaskSettings(kind="facts_code")).example("train", 0).prompt
    assert tokenizer().convert_ids_to_tokens(tokenizer()(text).input_ids) == [BOS, *split_text(text)]


def test_unknown_words_become_the_unknown_token():
    ids = tokenizer()("the zeppelin turns", add_special_tokens=False).input_ids
    assert ids == tokenizer().convert_tokens_to_ids(["the", "<unk>", "turns"])
    assert tokenizer()("zeppelin=amber", add_special_tokens=False).input_ids[0] == tokenizer().unk_token_id


def test_the_beginning_of_sequence_comes_with_the_special_tokens_only():
    assert tokenizer()("the river").input_ids[0] == tokenizer().bos_token_id
    assert len(tokenizer()("the river", add_special_tokens=False).input_ids) == 2

"""From text to token ids: what stands around a prompt, and what gives way when it is too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from tasks.task import CompletionExample, Example, Question
from workers.errors import PromptError
from workers.language_model import load_tokenizer
from workers.prompts import PromptEncoder
from workers.settings import ModelSettings, PromptSettings

TOKENIZER, WINDOW = load_tokenizer(ModelSettings(path_or_id="small-llama"))
BOS = TOKENIZER.bos_token_id
WORDS = ("the", "lantern")


def example(num_words, *, max_new_tokens=4, is_chat=True):
    prompt = " ".join(WORDS[i % 2] for i in range(num_words))
    return CompletionExample(
        task="made-up",
        split="train",
        index=3,
        prompt=prompt,
        answers=("amber",),
        max_new_tokens=max_new_tokens,
        is_chat=is_chat,
    )


def encoder(tokenizer=TOKENIZER, window=WINDOW, **values):
    return PromptEncoder(tokenizer, window, PromptSettings(**values))


def plain(text):
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_a_prompt_that_fits_is_left_alone():
    encoded = encoder().prompt(example(10))
    assert encoded.ids == (BOS, *plain(example(10).prompt))
    assert (encoded.prompt_tokens, encoded.spans, encoded.num_cut_tokens) == (11, (), 0)


@pytest.mark.parametrize(("bos", "begins"), [(None, True), (True, True), (False, False)])
def test_the_beginning_of_sequence_is_as_set(bos, begins):
    assert (encoder(bos=bos).prompt(example(3)).ids[0] == BOS) == begins


def test_a_tokenizer_that_adds_none_is_given_one_when_asked_for():
    bare, _ = load_tokenizer(ModelSettings(path_or_id="small-llama"))
    bare.backend_tokenizer.post_processor = None
    assert encoder(bare).prompt(example(3)).ids[0] != BOS
    assert encoder(bare, bos=True).prompt(example(3)).ids == (BOS, *plain(example(3).prompt))


def test_an_end_of_sequence_that_a_tokenizer_puts_behind_every_text_does_not_end_the_prompt():
    ending, _ = load_tokenizer(ModelSettings(path_or_id="small-llama"))
    around = [(ending.bos_token, BOS), (ending.eos_token, ending.eos_token_id)]
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{ending.bos_token} $A {ending.eos_token}", special_tokens=around
    )
    assert ending("the")["input_ids"] == [BOS, *plain("the"), ending.eos_token_id]
    assert encoder(ending).prompt(example(3)).ids == (BOS, *plain(example(3).prompt))


def test_the_longest_prompt_leaves_room_for_the_completion():
    whole = encoder(max_tokens=20).prompt(example(15))
    assert len(whole.ids) + 4 == 20
    with pytest.raises(PromptError) as raised:
        encoder(max_tokens=20).prompt(example(16))
    assert str(raised.value) == (
        "example 3 of made-up has 17 tokens, and needs 4 more for what follows, but there is room for 20: set "
        "prompts.truncation to middle, or take a shorter task"
    )


@given(num_words=st.integers(1, 80), room=st.integers(8, 60), exact=st.booleans())
@settings(deadline=None)
def test_what_is_cut_is_the_middle(num_words, room, exact):
    encoded = encoder(max_tokens=room, truncation="middle_exact" if exact else "middle").prompt(example(num_words))
    whole = plain(example(num_words).prompt)
    kept = room - 4 - 1
    assert encoded.num_cut_tokens == max(0, len(whole) - kept)
    if len(whole) <= kept:
        assert encoded.ids[1:] == whole
        return
    half = kept // 2
    first, last = whole[: half + (kept % 2 if exact else 0)], whole[len(whole) - half :]
    # LongBench's own way loses the odd token, and the word at the seam may be another one than both were.
    expected = first + last if exact else plain(TOKENIZER.decode(first) + TOKENIZER.decode(last))
    assert encoded.ids[1:] == expected
    assert len(encoded.ids) + 4 <= room


def test_halves_are_decoded_and_encoded_again_as_longbench_does():
    """Where the halves meet, their texts may make another token than their ids did."""
    prompt = "the captain= " + "quiet " * 9 + "old river amber"
    ids = plain(prompt)
    kept = 6
    merged = plain(TOKENIZER.decode(ids[: kept // 2]) + TOKENIZER.decode(ids[len(ids) - kept // 2 :]))
    request = CompletionExample(
        task="made-up", split="train", index=0, prompt=prompt, answers=("amber",), max_new_tokens=1
    )
    encoded = encoder(max_tokens=kept + 2, truncation="middle").prompt(request)
    assert encoded.ids == (BOS, *merged[:kept])


def test_a_window_too_short_even_for_the_completion_is_refused():
    with pytest.raises(PromptError, match=r"needs 19 more .* choose a longer window"):
        encoder(max_tokens=20, truncation="middle").prompt(example(5, max_new_tokens=19))


def test_the_window_is_the_models_unless_set():
    assert encoder().max_tokens == 4096
    with pytest.raises(PromptError, match=r"prompts.max_tokens is 5000, but the model was made for 4096"):
        encoder(max_tokens=5000)


def test_a_gold_answer_stands_behind_its_prompt():
    encoded = encoder().answered(example(5))
    (span,) = encoded.spans
    assert encoded.ids[slice(*span)] == plain("amber")
    assert encoded.ids[: span[0]] == encoder().prompt(example(5)).ids


def test_questions_are_asked_behind_the_document():
    asked = Example("made-up", "train", 0, "the river\n", (Question("ask captain=", "amber"), Question(" ask", " a")))
    encoded = encoder().questions(asked)
    assert [encoded.ids[slice(*span)] for span in encoded.spans] == [plain("amber"), plain(" a")]
    assert encoded.ids[: encoded.prompt_tokens] == (BOS, *plain("the river\n"))
    with pytest.raises(PromptError, match="there is room for 7"):
        encoder(max_tokens=7).questions(asked)


# --- chat templates ---------------------------------------------------------------------------------------------------


@pytest.fixture
def chatting():
    tokenizer, _ = load_tokenizer(ModelSettings(path_or_id="small-llama"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}the {{ message.content }} river{% endfor %}"
        "{% if add_generation_prompt %} ask{% endif %}"
    )
    return tokenizer


def test_a_request_is_put_into_the_chat_template(chatting):
    encoded = encoder(chatting, chat_template=True).prompt(example(4))
    assert encoded.ids == (BOS, *plain("the"), *plain(example(4).prompt), *plain("river ask"))


def test_text_to_be_continued_is_never_put_into_it(chatting):
    encoded = encoder(chatting, chat_template=True).prompt(example(4, is_chat=False))
    assert encoded.ids == (BOS, *plain(example(4).prompt))


def test_what_is_cut_is_the_request_and_not_the_template(chatting):
    encoded = encoder(chatting, chat_template=True, max_tokens=14, truncation="middle").prompt(example(30))
    assert len(encoded.ids) <= 10
    assert encoded.ids[:2] == (BOS, *plain("the"))
    assert encoded.ids[-2:] == plain("river ask")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"chat_template": True}, "prompts.chat_template is true, but the tokenizer has none"),
        ({"bos": True}, "prompts.bos is true, but the tokenizer has no beginning-of-sequence token"),
    ],
)
def test_what_the_tokenizer_has_not_cannot_be_asked_for(values, told):
    tokenizer, _ = load_tokenizer(ModelSettings(path_or_id="small-llama"))
    tokenizer.bos_token = None
    with pytest.raises(PromptError) as raised:
        encoder(tokenizer, **values)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"truncation": "left"}, "prompts.truncation must be one of refuse, middle, middle_exact: got 'left'"),
        ({"max_tokens": 1}, "prompts.max_tokens must be at least 2 or null: got 1"),
    ],
)
def test_settings_that_are_never_possible(values, told):
    with pytest.raises(ValueError, match="must be") as raised:
        PromptSettings(**values)
    assert str(raised.value) == told


@pytest.mark.parametrize("bad", ["日本語の文", "naïve café", "\x00\x07"])
def test_text_that_the_tokenizer_does_not_know_is_encoded_all_the_same(bad):
    request = CompletionExample(task="made-up", split="train", index=0, prompt=bad, answers=(bad,), max_new_tokens=4)
    assert len(encoder().answered(request).ids) > 1

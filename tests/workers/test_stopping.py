"""Where completions end, with the small Llama's words and with a byte-level tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.language_model import load_tokenizer
from workers.settings import ModelSettings
from workers.stopping import Stops


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(ModelSettings(path_or_id="small-llama"))[0]


@pytest.fixture(scope="module")
def byte_tokens():
    """One token a byte, as byte-pair tokenizers have them at the least, and one for two letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}, "ab": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def stops(tokenizer, *texts, end_ids=None):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=end_ids))
    return Stops(SimpleNamespace(tokenizer=tokenizer, model=model), texts)


def first_end(stop, ids):
    """Tokens after which a completion is over; None if it is not."""
    ends = (n for n in range(1, len(ids) + 1) if bool(stop(torch.tensor([ids[:n]]))))
    return next(ends, None)


@pytest.mark.parametrize(
    ("text", "stop", "length", "said"),
    [
        ("one\ntwo", "\n", 4, "one"),
        ("\n", "\n", 1, ""),
        ("xaby", "b", 2, "xa"),  # within a token of two letters
        ("x ab y", "ab y", 5, "x "),
        ("日本。次", "。", 9, "日本"),
        ("no end", "zz", None, "no end"),
    ],
)
def test_a_text_ends_a_completion_and_is_cut_off(byte_tokens, text, stop, length, said):
    ids = byte_tokens(text)["input_ids"]
    stop = stops(byte_tokens, stop)
    assert first_end(stop, ids) == length
    assert stop.text(ids[:length]) == said


def test_a_line_break_ends_a_completion_of_words(words):
    ids = words("amber june\nask captain=", add_special_tokens=False)["input_ids"]
    stop = stops(words, "\n")
    assert first_end(stop, ids) == 3
    assert stop.text(ids[:3]) == "amber june"


def test_the_earliest_of_several_endings_counts(words):
    assert stops(words, "june", "\n").text(words("amber june\n", add_special_tokens=False)["input_ids"]) == "amber "


def test_every_end_of_sequence_token_ends_and_is_not_said(byte_tokens):
    ids = byte_tokens("ab c")["input_ids"]
    assert first_end(stops(byte_tokens), [*ids, 0]) == len(ids) + 1
    assert first_end(stops(byte_tokens, end_ids=[ids[1], 0]), ids) == 2
    assert first_end(stops(byte_tokens, end_ids=7), ids) is None
    assert stops(byte_tokens).text([*ids, 0]) == "ab c"


def test_rows_end_by_themselves(byte_tokens):
    rows = torch.tensor([byte_tokens(text)["input_ids"] for text in ("xy\n", "xyz")])
    assert stops(byte_tokens, "\n")(rows).tolist() == [True, False]

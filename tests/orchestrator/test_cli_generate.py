"""``namm generate``: completions under a memory, and what of the prompt was kept."""

import io
import json
import sys

import pytest
import torch

from orchestrator.cli import main
from orchestrator.commands.generate import Piece, complete, mark_plainly, style_of
from tasks.registry import GeneratedTaskSettings, build_task
from workers.language_model import load_language_model
from workers.memory.heuristics import Recent
from workers.memory.memory import KeepAll
from workers.memory.specs import RivalSpec
from workers.settings import ModelSettings

EXAMPLE = build_task(GeneratedTaskSettings(kind="facts_prose")).example("heldout", 0)
PROMPT = EXAMPLE.prompt + EXAMPLE.questions[0].text
ANSWER = EXAMPLE.questions[0].answer


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT + "\n")  # as editors end a file
    return str(path)


def feed(monkeypatch, content: bytes) -> None:
    """Put ``content`` on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def generated(capsys, *words):
    """The JSON document of a completion."""
    assert main(["generate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_full_cache_answers_and_keeps_everything(prompt_file, capsys):
    document = generated(capsys, "full", "--prompt", prompt_file, "--max-new-tokens", "1")
    assert document["text"] == ANSWER
    assert document["kept_ratio"] == 1.0
    assert document["cache_bytes"] == document["full_cache_bytes"] == document["peak_bytes"]
    assert "".join(piece["text"] for piece in document["prompt"]) == PROMPT
    assert {piece["heads"] for piece in document["prompt"]} == {4}


def test_a_memory_forgets_and_says_what(finished_run, prompt_file, capsys):
    document = generated(capsys, str(finished_run.champion), "--prompt", prompt_file, "--max-new-tokens", "2")
    held = [tokens for layer in document["held_tokens"] for tokens in layer]
    seen = document["seen_tokens"]
    assert seen == document["prompt_tokens"] + 1  # the last token decoded is not read
    assert document["kept_ratio"] == pytest.approx(sum(held) / 4 / seen)
    assert document["cache_bytes"] == sum(held) * 2 * 32 * 4  # keys and values of 32 float32 numbers
    assert document["full_cache_bytes"] == 4 * seen * 2 * 32 * 4
    assert document["cache_bytes"] < document["full_cache_bytes"]
    assert sum(piece["heads"] for piece in document["prompt"]) == sum(held) - 4  # all heads hold the newest token


def test_people_see_the_completion_the_figures_and_the_marked_prompt(finished_run, prompt_file, capsys):
    assert main(["generate", str(finished_run.champion), "--prompt", prompt_file]) == 0
    out = capsys.readouterr().out
    for told in ("tokens seen", "tokens kept", "KV head 1", "layer 1", "[-", "-]", "bytes"):
        assert told in out


def test_the_bare_completion_can_be_piped(prompt_file, capsys):
    words = ["--prompt", prompt_file, "--show", "completion", "--max-new-tokens", "1"]
    assert main(["generate", "full", *words]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"


def test_the_prompt_may_come_from_standard_input(monkeypatch, capsys):
    feed(monkeypatch, PROMPT.encode())
    assert generated(capsys, "full", "--max-new-tokens", "1")["text"] == ANSWER


def test_control_characters_of_a_prompt_cannot_steer_the_terminal(monkeypatch, capsys):
    feed(monkeypatch, b"a\x1b[31mb\x00c \xe2\x80\xae captain=")
    assert main(["generate", "full", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "a␛[31mb␀c � captain=" in out
    assert not {"\x1b", "\x00", "\u202e"} & set(out)


def test_another_model_precision_and_device_can_be_named(prompt_file, capsys):
    words = ["--prompt", prompt_file, "--model", "small-llama", "--dtype", "bfloat16", "--device", "cpu"]
    document = generated(capsys, "full", *words, "--max-new-tokens", "1")
    assert document["model"] == "small-llama"
    assert document["cache_bytes"] == 4 * document["seen_tokens"] * 2 * 32 * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no memory in nowhere"),
        (["full", "--model", "./nowhere"], "no model at './nowhere'"),
        (["full", "--model", "someone/something"], "pin the commit"),
        (["full", "--device", "abacus"], "'abacus' cannot be used here"),
        (["full", "--max-new-tokens", "5000"], "but the model reads 4,096 at most"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(words, told, prompt_file, capsys):
    assert main(["generate", *words, "--prompt", prompt_file]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "standard input is empty"), (b" \n", "is empty"), (b"caf\xe9", "is not UTF-8 text (byte 3)")],
)
def test_a_prompt_that_cannot_be_used_is_refused(content, told, monkeypatch, capsys):
    feed(monkeypatch, content)
    assert main(["generate", "full"]) == 2
    assert told in capsys.readouterr().err


def test_a_prompt_without_room_is_one_line_with_the_remedy(prompt_file, monkeypatch, capsys):
    def decode(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr("orchestrator.commands.generate.decode_greedily", decode)
    assert main(["generate", "full", "--prompt", prompt_file]) == 2
    said = capsys.readouterr().err
    assert "there is no room on cpu for this prompt of" in said
    assert "--dtype" in said
    assert said.count("\n") == 1


def test_a_prompt_file_that_is_not_there_is_named(capsys):
    assert main(["generate", "full", "--prompt", "nowhere.txt"]) == 2
    assert "cannot read the prompt in nowhere.txt: No such file" in capsys.readouterr().err


# --- its parts --------------------------------------------------------------------------------------------------------


def test_decoding_stops_where_the_model_stops(small_llama, monkeypatch):
    first = complete(small_llama, KeepAll(), PROMPT, 1)
    answer_id = small_llama.continuation_ids(ANSWER)[0]
    monkeypatch.setattr(small_llama.model.generation_config, "eos_token_id", [answer_id])
    stopped = complete(small_llama, KeepAll(), PROMPT, 10)
    assert (first.text, stopped.text) == (ANSWER, "")
    assert (first.new_tokens, stopped.new_tokens) == (1, 0)


def test_each_token_of_the_prompt_knows_how_many_heads_hold_it(small_llama):
    budget = ((1, 2), (3, 4))
    length = len(small_llama.prompt_ids(PROMPT))
    memory = Recent(RivalSpec(name="recent", update_every=length, budget=budget))
    completion = complete(small_llama, memory, PROMPT, 1)
    assert completion.held_tokens == budget
    heads = [piece.heads for piece in completion.prompt]
    assert sum(heads) == 10
    assert heads[-1] == 4  # the newest
    assert max(heads[:-1]) <= 3


def test_the_model_is_left_without_memory(small_llama):
    before = small_llama.model.config._attn_implementation
    complete(small_llama, KeepAll(), "a stone", 1)
    assert small_llama.model.config._attn_implementation == before
    with torch.inference_mode():
        small_llama.model(torch.tensor([[1, 2]]))


def test_forgotten_runs_are_marked_in_plain_text_without_the_blanks_before_them():
    pieces = [Piece(text=text, heads=heads) for text, heads in (("the", 1), (" old", 0), ("\n  wet", 0), (" stone", 2))]
    assert mark_plainly(pieces) == "the [-old\n  wet-] stone"


@pytest.mark.parametrize(("heads", "style"), [(0, "dim strike"), (1, "dim"), (2, ""), (3, ""), (4, "bold")])
def test_the_more_heads_hold_a_token_the_stronger_it_is_shown(heads, style):
    assert style_of(heads, 4) == style

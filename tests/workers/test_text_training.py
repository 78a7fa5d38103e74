"""The trainer of models over real text, at a size that trains in seconds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.corpus import read_corpus
from tests.text_model import text_tokenizer
from workers import text_command, text_curriculum, text_training, training
from workers.checksum import weights_sha256
from workers.errors import ModelError
from workers.language_model import model_folder
from workers.line_encoder import LineEncoder
from workers.muon import Muon
from workers.row_makers import row_makers
from workers.text_curriculum import (
    ANSWERS_WEIGHT,
    BREAK_WEIGHT,
    LANGUAGE_WEIGHT,
    LATEST_SHARES,
    LEVELS,
    Role,
    Row,
    RowMaker,
    TextCurriculum,
)
from workers.text_model import LOOKS_BACK, TextShape, new_text_model
from workers.text_training import Batch, TextTraining, train_text

TINY = TextShape(
    vocabulary=400, hidden=32, layers=1, query_heads=2, kv_heads=1, head_size=16, mlp=32, max_tokens=512,
    tokens_per_step=1024,
)  # fmt: skip


@pytest.fixture(autouse=True)
def a_small_corpus(monkeypatch, tmp_path_factory):
    """A tokenizer learned from all of the standard library takes half a minute."""
    tokenizer = text_tokenizer(400)
    monkeypatch.setattr(text_training, "learn_tokenizer", lambda _corpus, _vocabulary, _max_tokens: tokenizer)


@pytest.fixture(scope="module")
def maker() -> RowMaker:
    tokenizer = text_tokenizer(400)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return RowMaker(read_corpus(), encode, tokenizer.bos_token_id, seed=0)


@pytest.mark.parametrize("level", LEVELS[:4], ids=lambda level: level.name)
def test_rows_fit_their_level_and_are_functions_of_their_place(maker, level):
    rows = [maker.row(level, step=3, number=number) for number in range(8)]
    assert all(len(row.ids) == len(row.roles) <= level.length for row in rows)
    assert all(row.ids[0] == maker.bos and row.roles[0] == Role.GIVEN for row in rows)
    assert {Role.ANSWER, Role.BREAK} <= {role for row in rows for role in row.roles}
    assert [maker.row(level, 3, number) for number in range(7, -1, -1)] == rows[::-1]
    assert maker.row(level, 4, 0) != rows[0]


def test_what_counts_fully_is_an_answer_that_stands_in_the_row(maker):
    tokenizer = text_tokenizer(400)
    row = maker.row(LEVELS[0], 0, 0)
    text = tokenizer.decode(row.ids.tolist())
    answers = answers_of(row)
    assert len(answers) >= 2
    for answer in answers[:-1]:
        assert text.count(tokenizer.decode(answer)) >= 2, "once in the list, once as an answer"


def answers_of(row: Row) -> list[list[int]]:
    runs = itertools.groupby(zip(row.ids, row.roles, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for role, run in runs if role == Role.ANSWER]


def test_answers_count_as_much_as_they_should_however_few_they_are():
    many = Row.of([([1], Role.GIVEN), (range(2, 8), Role.LANGUAGE)])
    few = Row.of([([1, 9, 9], Role.GIVEN), ([5], Role.ANSWER), ([6], Role.BREAK)])
    batch = Batch.of([many, few], "cpu")
    assert batch.gold.tolist() == [2, 3, 4, 5, 6, 7, 5, 6]
    assert batch.ids.flatten()[batch.places].tolist() == [1, 2, 3, 4, 5, 6, 9, 5]
    assert batch.is_answer.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert batch.importance.sum().item() == pytest.approx(1.0)
    language, answer, line_break = batch.importance[:6].sum(), batch.importance[6], batch.importance[7]
    assert (answer + line_break).item() == pytest.approx(ANSWERS_WEIGHT / LANGUAGE_WEIGHT * language.item())
    assert line_break.item() == pytest.approx(BREAK_WEIGHT * answer.item())


def test_short_documents_are_crowded_and_ask_no_fact_twice(maker):
    rows = [maker.row(LEVELS[2], step=1, number=number) for number in range(24)]
    asked = [len(answers_of(row)) for row in rows if Role.ANSWER in row.roles]
    assert max(asked) > 4, "more facts than a document of that length has when it is asked for"
    tokenizer = text_tokenizer(400)
    for row in rows:
        questions = [line for line in tokenizer.decode(row.ids.tolist()).split("\n") if line.startswith("Question:")]
        assert len(questions) == len(set(questions))


def test_some_heads_of_a_new_model_look_back_whatever_stands_there():
    shape = dataclasses.replace(TINY, hidden=96, layers=2, query_heads=6, kv_heads=3, head_size=64, max_tokens=256)
    model = new_text_model(shape, seed=0)
    model.config._attn_implementation = "eager"
    ids = torch.randint(3, 400, (1, 200))
    layers = model(ids, output_attentions=True).attentions
    near = np.arange(12)
    for look in LOOKS_BACK:
        looked_at = np.array([layers[look.layer][0, look.head].diagonal(-int(x))[50:].mean().item() for x in near])
        assert abs(looked_at.argmax() - look.distance) <= 0.5
        assert (looked_at.max() > 0.95) == (look.sharpness == 8.0), "one token or a few"
        around = np.abs(near - look.distance) <= 2
        assert looked_at[around].mean() > 2 * looked_at[~around].mean()
    free = layers[1][0, 5]
    assert max(free.diagonal(-int(x))[50:].mean().item() for x in near) < 0.05, "others look as they like"


def test_what_is_near_a_value_and_what_is_asked_are_said_alike():
    of_second_layer = [look for look in LOOKS_BACK if look.layer == 1]
    shape = TextShape()
    assert len({look.head // (shape.query_heads // shape.kv_heads) for look in of_second_layer}) == 1, "one KV head"


def test_muon_says_what_that_of_torch_says():
    weights = [torch.randn(6, 8), torch.randn(6, 8), torch.randn(12, 4)]
    mine, theirs = ([torch.nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    optimizers = [Muon([{"params": mine, "lr": 0.02}]), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)]
    for _ in range(4):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, weight in zip(mine, theirs, weights, strict=True):
        assert torch.allclose(one, other, atol=2e-3)
        assert (one - weight).norm() > 0.05


def test_the_curriculum_moves_on_when_a_level_is_mastered_or_time_is_up():
    curriculum = TextCurriculum()
    for _ in range(4):
        curriculum.report(0, 0.9)
    assert curriculum.reached == 1
    curriculum.report(0, 1.0)
    assert curriculum.reached == 1, "an earlier level says nothing about this one"
    for _ in range(8):
        curriculum.report(curriculum.reached, 0.9)
    assert (curriculum.reached, LEVELS[3].length) == (3, 1024), "of long documents more must be right"
    curriculum = TextCurriculum()
    rng = np.random.default_rng(0)
    assert curriculum.next_level(rng, share=LATEST_SHARES[2]) <= 3
    assert curriculum.reached == 3
    drawn = [curriculum.next_level(rng, share=0.11) for _ in range(400)]
    assert 60 < sum(level < 3 for level in drawn) < 140, "a quarter of the batches are earlier levels"
    curriculum.next_level(rng, share=1.0)
    assert curriculum.reached == len(LEVELS) - 1


def test_training_by_steps_is_a_function_of_its_settings_however_often_it_is_interrupted(tmp_path, monkeypatch):
    settings = TextTraining(shape=TINY, steps=6)
    losses = []
    train_text(tmp_path / "whole", settings, lambda progress: losses.append(progress.loss))
    assert np.isfinite(losses).all()

    monkeypatch.setattr(text_training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(text_training, "SAVE_PAUSE", 0.0)
    for stop in (2, 3, 5):

        def interrupt(progress, stop=stop):
            if progress.step > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_text(tmp_path / "parts", settings, interrupt)
    steps = []
    train_text(tmp_path / "parts", settings, lambda progress: steps.append(progress.step))
    assert steps == [6], "it went on where it was saved"
    assert weights_sha256(tmp_path / "parts") == weights_sha256(tmp_path / "whole")
    assert not (tmp_path / "parts" / "training").exists()


def test_the_loss_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(text_curriculum, "LATEST_SHARES", (1.0,) * 6)  # stays with the first lists
    losses = []
    train_text(tmp_path, TextTraining(shape=TINY, steps=120), lambda progress: losses.append(progress.loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_processes_make_the_same_rows(tmp_path):
    settings = TextTraining(shape=TINY, steps=2)
    train_text(tmp_path / "one", settings, lambda _: None)
    train_text(tmp_path / "two", dataclasses.replace(settings, processes=1), lambda _: None)
    assert weights_sha256(tmp_path / "one") == weights_sha256(tmp_path / "two")


def test_an_unfinished_training_of_other_settings_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(text_training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(text_training, "SAVE_PAUSE", 0.0)

    def interrupt(progress):
        if progress.step > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_text(tmp_path, TextTraining(shape=TINY, steps=6), interrupt)
    with pytest.raises(ModelError, match=r"unfinished training with other settings \(seed\): go on with those"):
        train_text(tmp_path, TextTraining(shape=TINY, steps=6, seed=2), interrupt)


def test_the_command_trains_measures_and_writes_a_card(tmp_path, capsys):
    out = tmp_path / "model"
    arguments = ["--preset", "medium", "--out", str(out), "--steps-limit", "2", "--examples", "1"]
    assert text_command.is_meant(arguments)
    assert text_command.main(arguments, TINY) == 0
    printed = capsys.readouterr().out
    assert "ready after" in printed
    assert "step      2  100.0%" in printed
    assert "tokens/s" in printed
    assert "| task | 512 |" in printed
    card = (out / "README.md").read_text()
    assert weights_sha256(out) in card
    assert "python -m workers.training --preset medium" in card
    assert "| text_variable | " in card

    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert model.dtype == torch.bfloat16
    assert tokenizer("x")["input_ids"][0] == model.config.bos_token_id
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"][0] == 2

    assert training.main(["--preset", "medium", "--eval-only", str(out), "--examples", "1"]) == 0
    assert "| text_variable | " in capsys.readouterr().out


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys):
    assert training.main(["--preset", "medium", "--eval-only", str(tmp_path)]) == 2
    assert f"no model in {tmp_path}; train one: python -m workers.training" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        training.main(["--preset", "medium", "--out", str(tmp_path), "--minutes", "-1"])
    assert "give a number of minutes above 0" in capsys.readouterr().err
    assert training.main(["--preset", "medium", "--out", str(tmp_path / "m"), "--corpus", str(tmp_path / "no")]) == 2
    assert "is no folder" in capsys.readouterr().err
    small = str(model_folder("small-llama"))
    assert training.main(["--preset", "medium", "--eval-only", small, "--corpus", str(tmp_path / "no")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert training.main(["--preset", "medium", "--out", str(tmp_path / "m"), "--device", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --device: 'nonsense' cannot be used here (")
    assert error.endswith("): try 'cpu'\n")
    assert error.count("\n") == 1
    assert not text_command.is_meant(["--preset", "small"])


def test_lines_are_encoded_as_the_whole_text_is():
    tokenizer = text_tokenizer(400)
    encode = LineEncoder(tokenizer)
    texts = [source.text[:3000] for source in read_corpus().of("heldout")[:12]]
    for text in ["", "\n", "\n\n a  b\t1234\n", " é\n x", *texts, *texts]:
        assert encode(text) == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_shelves_hold_each_training_file_and_word_once():
    corpus = read_corpus()
    shelves = corpus.shelves(3_000_000)
    assert len(shelves) > 1
    names = [source.name for shelf in shelves for source in shelf.of("train")]
    assert sorted(names) == [source.name for source in corpus.of("train")]
    assert sorted(word for shelf in shelves for word in shelf.words("train")) == list(corpus.words("train"))


KILLED = """
import os, signal, sys
from tests.workers.test_text_training import StandIn
from workers.row_makers import row_makers
from workers.text_curriculum import LEVELS

if __name__ == "__main__":
    with row_makers(StandIn(), 2) as order:
        ordered = [order(LEVELS[0], step, 4) for step in range(3)]
        print(*sorted({row for rows in ordered for row in rows()}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


class StandIn:
    """Of a row, says which process made it."""

    def __init__(self, num_chars: int = 0) -> None:
        self.text = num_chars * "x"

    def rows(self, _level: object, _step: int, numbers: range) -> list[int]:
        return [os.getpid() for _ in numbers]


def test_who_orders_rows_does_not_wait_for_processes_to_start():
    started = time.monotonic()
    with row_makers(StandIn(4_000_000), 2) as order:
        ordered = [order(LEVELS[0], step, 4) for step in range(3)]
        asked = time.monotonic() - started
        assert all(len(rows()) == 4 for rows in ordered)
        made = time.monotonic() - started
    assert asked < made / 2


def test_processes_that_make_rows_do_not_outlive_a_killed_trainer(tmp_path):
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    makers = [int(process) for process in ended.stdout.split()]
    assert makers
    deadline = time.monotonic() + 30
    while any(is_running(process) for process in makers):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether there is such a process, one that has ended but was not waited for left out."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

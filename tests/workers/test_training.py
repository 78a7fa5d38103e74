from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tasks.registry import GeneratedTaskSettings, build_task
from tasks.words import KEYS, VOCABULARY, word_kind
from tests.workers.memory.tiny import tiny_model
from workers import training
from workers.curriculum import LEVELS, TOKENS_PER_STEP, Curriculum, draw_batch
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec
from workers.model_card import Measurement, model_card
from workers.shared_retrieval import keys_shared_among_kv_heads
from workers.training import Progress, exact_match, measure, new_model, save, train
from workers.word_tokenizer import build_tokenizer

LEVEL_NAMES = [level.name for level in LEVELS]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Training at full batch size would take seconds a step on a busy machine."""
    monkeypatch.setattr("workers.curriculum.TOKENS_PER_STEP", 512)


def progress_of(seed: int, num_steps: int) -> list[Progress]:
    steps: list[Progress] = []
    train(new_model(seed), seed, num_steps, steps.append)
    return steps


def test_training_is_a_function_of_the_seed():
    models = [new_model(3), new_model(3), new_model(4)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        train(model, seed, 3, lambda _: None)
    first, again, other = ([parameter.detach() for parameter in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_few_steps_reduce_the_loss():
    steps = progress_of(seed=0, num_steps=40)
    assert [step.step for step in steps] == list(range(40))
    assert sum(step.loss for step in steps[-5:]) < 0.85 * sum(step.loss for step in steps[:5])


def test_training_leaves_no_hooks_behind_and_the_model_in_evaluation_mode():
    model = new_model(0)
    train(model, 0, 2, lambda _: None)
    assert not model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_new_model_looks_at_the_previous_token_with_its_first_kv_head():
    model = new_model(0)
    model.set_attn_implementation("eager")
    ids = torch.randint(16, 256, (1, 300), generator=torch.Generator().manual_seed(0))
    weights = model(input_ids=ids, output_attentions=True).attentions[0][0]
    previous = weights.diagonal(offset=-1, dim1=-2, dim2=-1)[:, 20:].mean(-1)
    assert previous[:2].min() > 0.5  # the two query heads of KV head 0
    assert previous[2:].max() < 0.2


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_rows_of_a_batch_have_one_length_and_only_answers_are_learned(level):
    batch = draw_batch(level, np.random.default_rng(0))
    assert batch.ids.shape == batch.is_answer.shape == (max(1, 512 // level.row_tokens), level.row_tokens)
    assert not batch.is_answer[:, : level.length].any()
    assert {word_kind(VOCABULARY[token_id]) for token_id in batch.ids[batch.is_answer].tolist()} == {"value"}


def test_the_answer_to_a_question_stands_behind_its_key_in_the_document():
    level = LEVELS[LEVEL_NAMES.index("mixed-128")]
    rng = np.random.default_rng(1)
    questions = 0
    for _ in range(20):
        for ids, is_answer in zip(*(tensor.tolist() for tensor in _tensors(draw_batch(level, rng))), strict=True):
            facts = dict(pairwise(ids[: level.length]))
            for place in [place for place, answer in enumerate(is_answer) if answer]:
                if VOCABULARY[ids[place - 1]] in KEYS:  # not so in rows that are copied
                    assert facts[ids[place - 1]] == ids[place]
                    questions += 1
    assert questions > 500


def _tensors(batch):
    return batch.ids, batch.is_answer


def test_one_row_in_ten_is_copying():
    level, rng = LEVELS[LEVEL_NAMES.index("mixed-64")], np.random.default_rng(0)
    rows = torch.cat([draw_batch(level, rng).is_answer for _ in range(100)])
    is_copying = rows.sum(-1) > level.num_questions
    assert len(rows) == 500
    assert 0.05 < is_copying.float().mean() < 0.15


def test_levels_grow_up_to_1024_tokens_and_a_step_has_about_4096():
    assert [level.length for level in LEVELS] == [17, 33, 65, 64, 128, 256, 512, 1024]
    assert TOKENS_PER_STEP == 4096


def test_the_curriculum_moves_on_when_four_batches_of_the_hardest_level_are_mastered_on_average():
    curriculum = Curriculum()
    for accuracy in (0.2, 0.9, 0.9, 0.9):
        curriculum.report(0, accuracy)
    assert curriculum.reached == 0
    curriculum.report(0, 0.95)  # the last four: 0.9, 0.9, 0.9, 0.95
    assert curriculum.reached == 1
    for _ in range(4):
        curriculum.report(0, 1.0)  # an earlier level says nothing about the hardest
    assert curriculum.reached == 1


def test_the_curriculum_stays_at_its_last_level():
    curriculum = Curriculum(reached=len(LEVELS) - 1)
    for _ in range(10):
        curriculum.report(len(LEVELS) - 1, 1.0)
    assert curriculum.reached == len(LEVELS) - 1


def test_one_batch_in_four_comes_from_an_earlier_level():
    curriculum, rng = Curriculum(reached=3), np.random.default_rng(0)
    drawn = [curriculum.next_level(rng) for _ in range(1000)]
    assert set(drawn) == {0, 1, 2, 3}
    assert 700 < drawn.count(3) < 800


def test_a_key_is_answered_through_its_own_kv_head_only_while_keys_are_shared():
    model = new_model(0).eval()
    ids = torch.tensor([[1, VOCABULARY.index(KEYS[0]), VOCABULARY.index(KEYS[1]), VOCABULARY.index("river")]])
    seen: list[torch.Tensor] = []
    project = model.model.layers[1].self_attn.o_proj
    keys = [VOCABULARY.index(key) for key in KEYS]
    with keys_shared_among_kv_heads(model, [model.model.layers[1].self_attn], keys):
        spy = project.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].unflatten(-1, (4, 32))))
        model(input_ids=ids)
        spy.remove()
    is_open = (seen[0] != 0).any(-1).tolist()  # [tokens, query heads]
    assert is_open == [[True] * 4, [True, True, False, False], [False, False, True, True], [True] * 4]
    assert not project._forward_pre_hooks


def test_exact_match_counts_the_questions_that_a_model_gets_right():
    """A model without attention that answers with the most frequent token would score about 1 in 64."""
    task = build_task(GeneratedTaskSettings(kind="facts_prose", length=64))
    assert exact_match(new_model(0).eval(), [task.example("heldout", index) for index in range(8)]) < 0.3


def test_a_saved_model_measures_as_it_did_before(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "MEASURED_CASES", ((64, 8),))
    model = new_model(0).eval()
    save(model, tmp_path)
    assert training.main(["--eval-only", str(tmp_path), "--examples", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [float(line.split()[-1]) for line in table] == [round(row.exact_match, 3) for row in measure(model, 2)]


def test_the_command_writes_weights_tokenizer_and_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "MEASURED_CASES", ((64, 8),))
    assert training.main(["--out", str(tmp_path), "--seed", "5", "--steps-limit", "2", "--examples", "2"]) == 0
    assert "step     0  dense-17" in capsys.readouterr().out
    expected = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"README.md"}
    assert "--seed 5 --steps-limit 2" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_measuring_a_folder_without_a_model_says_what_to_do(tmp_path, capsys):
    assert training.main(["--eval-only", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: no model.safetensors in {tmp_path}; train a model with: python -m workers.training --out {tmp_path}\n"
    )


def test_a_folder_of_another_kind_is_not_measured(tmp_path, capsys):
    """A memory's folder was once made up to be a Llama of seven billion random numbers."""
    settings = NammSettings()
    PretrainedMemory(NammSpec(settings=settings), np.zeros(settings.genome_size, np.float32)).save_pretrained(tmp_path)
    assert training.main(["--eval-only", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: model.path_or_id: cannot load '{tmp_path}': ")
    tiny_model().save_pretrained(tmp_path)
    build_tokenizer(training.MAX_LENGTH_TOKENS).save_pretrained(tmp_path)
    assert training.main(["--eval-only", str(tmp_path)]) == 2
    assert f"the model in {tmp_path} knows 61 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["small", "medium"])
def test_where_nothing_can_be_written_nothing_is_trained(preset, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert training.main(["--preset", preset, "--out", str(tmp_path / "file"), "--steps-limit", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: --out: cannot write {tmp_path / 'file'} (File exists): choose another folder\n"


@pytest.mark.parametrize("arguments", [["--steps-limit", "0"], ["--examples", "0"], ["--seed", "-1"]])
def test_impossible_numbers_end_the_command_with_one_line(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        training.main(["--out", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_the_model_card_lists_every_measurement():
    card = model_card(
        "small-llama", 7, "--steps-limit 900", 200.4, [Measurement("facts_code", 1024, 8, 64, 0.9961)], 263_808
    )
    assert "| facts_code | 1,024 | 8 | 64 | 0.996 |" in card
    assert "took 200 CPU-seconds" in card


def test_minutes_stand_in_the_place_of_steps(tmp_path, capsys):
    out = tmp_path / "model"
    assert training.main(["--preset", "small", "--out", str(out), "--minutes", "0.02", "--examples", "2"]) == 0
    printed = capsys.readouterr().out
    steps = next(line for line in printed.splitlines() if line.endswith(" steps"))
    assert int(steps.split()[0]) >= 2
    assert "--minutes 0.02" in (out / "README.md").read_text()
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "give a number of minutes above 0"),
        (["--minutes", "1", "--steps-limit", "2"], "not allowed with argument"),
    ],
)
def test_a_length_that_is_none_is_named(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        training.main(["--out", str(tmp_path / "model"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()

"""The commands of the README for full size, on tiny random weights and made-up files of the same formats."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator.arguments import parse
from orchestrator.cli import main
from orchestrator.targets_control import control_target, settings_of
from orchestrator.transfer import Wanted
from tasks.control_data import PUBLISHED, Episode, write_parquet
from tests.tasks.clips import write_long_video_bench, write_mlvu
from workers.control_model import ControlSettings
from workers.control_training import TrainingSettings, new_controller
from workers.errors import ModelError
from workers.shapes import SHAPES
from workers.training import new_model, save
from workers.vision_training import new_vision_model, save_vision

HERE = ("model.device=cpu", "model.dtype=float32", "cluster.address=in-process", "cluster.accelerators_per_worker=0")


def full_size_commands():
    section = Path("README.md").read_text(encoding="utf-8").partition("#### At full size")[2].partition("\n## ")[0]
    return re.findall(r"`(namm transfer [^`]+)`", section)


def options(what):
    """The options of the command that carries a memory to ``what``; MEMORY, DIR and --to are the reader's."""
    (command,) = (command for command in full_size_commands() if what in command)
    return parse(command.split()[1:])


def carried(capsys, *words):
    assert main(["transfer", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_command_of_the_readme_is_understood():
    assert len(full_size_commands()) == 3
    for command in full_size_commands():
        assert parse(command.split()[1:]).command == "transfer"


@pytest.mark.slow
def test_llama_70b_with_its_preset(finished_run, tmp_path, capsys):
    asked = options("Meta-Llama-3-70B")
    save(new_model(0, SHAPES["deep-llama"]), tmp_path)
    # The tiny model knows 256 words: generated documents stand in for the suite.
    words = ("--preset", asked.preset, *HERE, "memory.update_every=64", "prompts.max_tokens=16384")
    words = (*words, "evaluation.lengths=[1024]", "--tasks", "facts_prose", "--examples", 1)
    document = carried(capsys, finished_run.champion, "--to", tmp_path, *words, "--rivals", "recent")
    assert [row["length"] for row in document["table"]] == [1024, 1024]


@pytest.mark.slow
def test_llava_on_both_suites_with_its_preset(finished_run, tmp_path, capsys):
    asked = options("LLaVA-NeXT-Video")
    model = tmp_path / "model"
    save_vision(new_vision_model(0), model)
    write_long_video_bench(tmp_path)
    write_mlvu(tmp_path)
    words = ("--preset", asked.preset, "--tasks", asked.tasks, "--data", tmp_path, *HERE, "--rivals", "recent")
    document = carried(capsys, finished_run.champion, "--to", model, *words)
    assert {row["task"] for row in document["table"]} == {
        "mean",
        "longvideobench",
        *(f"mlvu-{task}" for task in ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order")),
        *(f"mlvu-{task}" for task in ("6_anomaly_reco", "7_topic_reasoning")),
    }


def recorded(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 11), (5, 3), (5,))]
    write_parquet(folder / "0000.parquet", [Episode(*parts)])


@pytest.mark.slow
def test_published_decision_transformers_with_their_data(finished_run, tmp_path, capsys):
    asked = options("decision-transformer-gym-hopper-medium")
    assert asked.other_version
    model = tmp_path / "model"
    new_controller(TrainingSettings(hidden_size=16), 11, 3).save_pretrained(model)  # as the hub has it: weights alone
    recorded(tmp_path / "hopper-medium-v2")
    words = ("--data", tmp_path / "hopper-medium-v2", "--other-version", *HERE[2:3], "--examples", 2, "--max-steps", 70)
    document = carried(capsys, finished_run.champion, "--to", model, *words, "--rivals", "recent")
    assert document["figure"] == "return in Hopper"
    assert set(document["table"][0]["cells"]) == {"full", "namm", "window-20", "recent"}


@pytest.mark.parametrize("model", list(PUBLISHED)[:2])
def test_a_published_model_without_a_commit_is_refused(model):
    with pytest.raises(ModelError, match=f"--to {model}: pin the commit"):
        control_target(model, Wanted(), print)


def test_the_data_of_a_published_model_is_asked_for_by_name(tmp_path, capsys, finished_run, monkeypatch):
    monkeypatch.setattr("orchestrator.targets.kind_of", lambda _model: "control")
    monkeypatch.setattr("orchestrator.commands.transfer.kind_of", lambda _model: "control")
    name = "edbeeching/decision-transformer-gym-hopper-medium"
    assert main(["transfer", str(finished_run.champion), "--to", f"{name}@{'0' * 40}"]) == 2
    assert "stage hopper-medium-v2 of edbeeching/decision_transformer_gym_replay" in capsys.readouterr().err


def test_scales_of_a_published_model_come_from_its_data(tmp_path):
    recorded(tmp_path / "hopper-medium-v2")
    settings = settings_of("edbeeching/decision-transformer-gym-hopper-medium", Wanted(data=str(tmp_path)))
    assert isinstance(settings, ControlSettings)
    assert (settings.environment, settings.window_steps) == ("Hopper-v2", 20)
    assert len(settings.state_mean) == 11

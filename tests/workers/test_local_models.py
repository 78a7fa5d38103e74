"""Models that are trained where they are needed, and found again."""

import os

import pytest
import torch
from transformers import LlamaForCausalLM

from workers import local_llamas
from workers.errors import ModelError
from workers.local_llamas import LLAMAS
from workers.local_models import LocalRecipe, local_model
from workers.memory.attention import memory_attached
from workers.memory.memory import KeepAll
from workers.shapes import SHAPES, SMALL_LLAMA
from workers.training import new_model


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path))
    return tmp_path


def recipe(train, settings="shape 1"):
    return LocalRecipe(name="toy", settings=settings, version=1, train=train)


def write_config(folder, say):
    say("half way")
    (folder / "config.json").write_text("{}")


def test_a_model_is_trained_once_and_then_found():
    said = []
    folder = local_model(recipe(write_config), said.append)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert local_model(recipe(None), said.append) == folder
    assert said == ["half way"]


def test_another_recipe_never_finds_an_old_model():
    assert recipe(None).folder != recipe(None, settings="shape 2").folder


def test_an_interrupted_training_leaves_nothing(cache_folder):
    def interrupted(folder, _say):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_model(recipe(interrupted), print)
    assert list((cache_folder / "models").iterdir()) == []


def test_a_model_that_somebody_else_has_trained_meanwhile_is_taken(cache_folder):
    def slow(folder, say):
        write_config(folder, say)
        local_model(recipe(write_config), lambda _: None)

    folder = local_model(recipe(slow), lambda _: None)
    assert list((cache_folder / "models").iterdir()) == [folder]


def test_a_cache_folder_that_cannot_be_written_is_named(cache_folder, monkeypatch):
    (cache_folder / "file").write_text("")
    monkeypatch.setenv("NAMM_CACHE", str(cache_folder / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .*: name another folder .* NAMM_CACHE"):
        local_model(recipe(write_config), print)


@pytest.mark.parametrize("name", SHAPES)
def test_a_memory_that_keeps_everything_is_the_plain_model_for_every_shape(name):
    model = new_model(3, SHAPES[name]).eval()
    ids = torch.randint(16, 256, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        with memory_attached(model, KeepAll()) as cache:
            chunked = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(32, dim=1)]
    torch.testing.assert_close(torch.cat(chunked, dim=1), plain, atol=1e-5, rtol=0)
    assert cache.held_tokens().shape == (2, SHAPES[name].num_layers, SHAPES[name].num_kv_heads)


def test_the_shapes_differ_in_depth_width_heads_groups_and_rotary_base():
    shapes = [shape for name, shape in SHAPES.items() if name != SMALL_LLAMA]
    assert set(LLAMAS) == set(SHAPES) - {SMALL_LLAMA}
    for key in ("num_layers", "hidden_size", "num_query_heads", "num_kv_heads", "rope_theta"):
        assert any(getattr(shape, key) != getattr(SHAPES[SMALL_LLAMA], key) for shape in shapes), key
    assert len({shape.num_query_heads // shape.num_kv_heads for shape in shapes}) > 1


def test_a_small_llama_of_another_shape_is_trained_and_told_about(monkeypatch):
    shape = SHAPES["mqa-llama"]
    short = type(shape)(num_layers=1, num_kv_heads=1, num_steps=2)
    monkeypatch.setattr(local_llamas, "SHAPES", {"mqa-llama": short})
    monkeypatch.setattr("workers.curriculum.TOKENS_PER_STEP", 512)
    said = []
    folder = local_model(local_llamas._recipe("mqa-llama"), said.append)
    model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (1, 1)
    assert said == [
        "training mqa-llama (1 layers, hidden 128, 4 query / 1 KV heads of 32): step 0 of 2, dense-17, "
        f"accuracy {said[0][-4:]}"
    ]
    assert os.access(folder, os.R_OK | os.X_OK)

"""The preset of a model that one accelerator cannot hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from orchestrator.config import config_from_dict, config_hash, config_to_dict, load_config
from orchestrator.errors import ConfigError

GIB = 2**30
FREE_BYTES = 74 * GIB
"""Of an accelerator of 80 GB, at least."""


def llama3_70b() -> LlamaConfig:
    """Its published shape."""
    return LlamaConfig(
        vocab_size=128_256, hidden_size=8_192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip


def test_weights_caches_and_scores_fit_the_accelerators_of_a_worker():
    """The arithmetic of the preset's comment."""
    config, shape = load_config("llama3-70b"), llama3_70b()
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(shape).parameters()) * 2
    assert weights / GIB == pytest.approx(131.4, abs=0.1)
    head_size = shape.hidden_size // shape.num_attention_heads
    heads = shape.num_hidden_layers * shape.num_key_value_heads
    assert heads * 2 * head_size * 2 == 320 * 1024
    length = config.prompts.max_tokens
    rows = config.units.candidates_per_unit * config.units.examples_per_unit
    channels = config.memory.num_bins + 2 * config.memory.hop - 1
    held = rows * length * heads * (2 * head_size * 2 + 4 * channels + 4)
    scores = rows * shape.num_attention_heads * config.memory.update_every * (length + config.memory.update_every)
    per_accelerator = (weights + held) / config.cluster.accelerators_per_worker + scores * (2 * 4 + 2 * 2)
    assert per_accelerator < 0.8 * FREE_BYTES
    on_two = (weights + held) / 2 + scores * (2 * 4 + 2 * 2)
    assert on_two > FREE_BYTES  # so that it takes more than two


def test_it_differs_from_the_smaller_one_in_the_model_and_where_it_has_room_alone():
    small, large = (config_to_dict(load_config(name)) for name in ("llama3-8b", "llama3-70b"))
    assert {key for key in small if small[key] != large[key]} == {"model", "cluster", "units"}
    assert large["model"]["device"] == "auto"


def test_a_spread_model_needs_reserved_accelerators():
    with pytest.raises(ConfigError, match=r"cluster\.accelerators_per_worker must be above 0 when .* is auto"):
        load_config("llama3-70b", ["cluster.accelerators_per_worker=0"])


def test_more_accelerators_than_one_are_not_reserved_for_a_model_on_one():
    with pytest.raises(ConfigError, match=r"cluster\.accelerators_per_worker must be 1 at most when .* is cuda"):
        load_config("llama3-8b", ["cluster.accelerators_per_worker=4"])


def test_room_by_device_is_read_from_yaml_and_leaves_the_trajectory_as_it_is():
    plain = load_config("llama3-70b")
    config = load_config("llama3-70b", ["model.max_memory={0: 60GiB, cpu: 200GiB}"])
    assert config.model.max_memory == {"0": "60GiB", "cpu": "200GiB"}
    assert config_from_dict(config_to_dict(config)) == config
    assert config_hash(config) == config_hash(plain)
    in_8_bits = dataclasses.replace(plain, model=dataclasses.replace(plain.model, quantization="int8"))
    assert config_hash(in_8_bits) != config_hash(plain)


@pytest.mark.parametrize("setting", ["quantization=int2", "max_memory={gpu: 9GiB}", "max_memory={0: lots}"])
def test_impossible_settings_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=rf"model\.{setting.partition('=')[0]} must"):
        load_config("llama3-70b", [f"model.{setting}"])

"""Loading a frozen model: what comes out, and every way it can go wrong said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.utils import logging as transformers_logging

from workers.errors import ModelError
from workers.language_model import LanguageModel, load_language_model, model_folder, ntk_rope_theta
from workers.settings import ModelSettings

SMALL = model_folder("small-llama")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the small Llama."""
    return Path(shutil.copytree(SMALL, tmp_path / "model"))


def load(path: Path | str, **changes: object) -> LanguageModel:
    return load_language_model(ModelSettings(path_or_id=str(path), **changes))


def edit(**changes: object) -> Callable[[Path], object]:
    """Changes keys of the model's configuration."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return apply


# What comes out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_is_frozen_in_evaluation_mode_and_of_the_dtype_asked_for(dtype):
    model = load("small-llama", dtype=dtype).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_folder_loads_as_its_name_does_with_every_weight_as_stored(folder):
    stored = load_file(folder / WEIGHTS)
    for source in ("small-llama", folder):
        weights = load(source).model.state_dict()
        assert weights.keys() == stored.keys()
        assert all(torch.equal(weights[name], stored[name]) for name in stored)


def test_tied_embeddings_are_not_missing_weights(folder):
    edit(tie_word_embeddings=True)(folder)
    without_a_weight(folder)
    model = load(folder).model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_sizes_are_those_of_the_text_model():
    language_model = load("small-llama")
    assert (language_model.num_layers, language_model.num_kv_heads, language_model.max_tokens) == (2, 2, 4096)


def test_prompts_begin_with_the_beginning_of_sequence_and_continuations_do_not():
    language_model = load("small-llama")
    bos = language_model.tokenizer.bos_token_id
    assert language_model.prompt_ids("the river")[0] == bos
    assert language_model.continuation_ids("the river") == language_model.prompt_ids("the river")[1:]


def test_of_a_text_that_is_too_long_only_we_say_so(caplog):
    """Whoever asks for the ids compares their number with what the model reads, and says it in one line."""
    language_model = load("small-llama")
    transformers_logging.enable_propagation()
    try:
        assert len(language_model.prompt_ids("the river " * 3000)) > language_model.max_tokens
        assert len(language_model.continuation_ids("the river " * 3000)) > language_model.max_tokens
    finally:
        transformers_logging.disable_propagation()
    assert not caplog.records


def test_progress_bars_are_back_after_loading(folder):
    were_shown = transformers_logging.is_progress_bar_enabled()
    load(folder)
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError):
        load(folder)
    assert transformers_logging.is_progress_bar_enabled() == were_shown


# Rotary positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "alpha"), [(4.0, 2.0), (2.0, 1.0)])
def test_the_ntk_factor_stretches_the_rotary_base_and_the_longest_sequence(factor, alpha):
    """The model was made for 4,096 tokens; a stretched one must not refuse the texts that it was stretched for."""
    plain, stretched = load("small-llama"), load("small-llama", rope_ntk_factor=factor, rope_ntk_alpha=alpha)
    theta = ntk_rope_theta(10_000.0, 32, factor, alpha)
    assert theta > 10_000.0 * (alpha * factor - alpha + 1)  # the exponent is above 1
    expected = theta ** -(torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    torch.testing.assert_close(stretched.model.model.rotary_emb.inv_freq.double(), expected, rtol=1e-6, atol=0)
    assert stretched.max_tokens == factor * plain.max_tokens
    ids = torch.arange(16, 96)[None]
    assert not torch.allclose(plain.model(ids).logits, stretched.model(ids).logits)


def test_a_stretched_model_does_not_stretch_the_next_one_that_is_loaded():
    load("small-llama", rope_ntk_factor=4.0)
    assert load("small-llama").model.config.rope_parameters["rope_theta"] == 10_000.0


def gemma_with_two_kinds_of_rotary_positions(folder: Path) -> None:
    """Its sliding and full layers have a base each, so there is no one base to stretch."""
    config = Gemma3TextConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)


NOT_PLAIN = {
    "yarn": edit(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}),
    "linear": edit(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}),
    "a-base-by-kind-of-layer": gemma_with_two_kinds_of_rotary_positions,
    "learned-positions": edit(model_type="gpt2", rope_parameters=None),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_rotary_positions_that_are_not_plain_cannot_be_stretched(folder, kind):
    NOT_PLAIN[kind](folder)
    with pytest.raises(ModelError, match=rf"^model\.rope_ntk_factor: '{folder}' has no plain .*: remove the setting$"):
        load(folder, rope_ntk_factor=4.0)


# What can go wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_is_said_at_once_without_asking_the_hub(path):
    with pytest.raises(ModelError, match=rf"^model\.path_or_id: no model at '{path}' .*: give a folder .*$"):
        load(path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=rf"^model\.path_or_id: no model at '{tmp_path}' \(no config\.json\): .*$"):
        load(tmp_path)


def test_a_hub_model_needs_a_pinned_commit():
    with pytest.raises(
        ModelError, match=r"^model\.revision: pin the commit of hub model 'meta-llama/Llama-3\.2-1B'.*$"
    ):
        load("meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_named(device):
    """A model on ``meta`` has no weights at all."""
    with pytest.raises(ModelError, match=rf"^model\.device: '{device}' cannot be used here .*: try 'cpu'$"):
        load("small-llama", device=device)


@pytest.mark.parametrize("changes", [{"dtype": "float8"}, {"dtype": "double"}, {"rope_ntk_factor": 1.0}], ids=str)
def test_impossible_settings_are_refused_by_name(changes):
    (key,) = changes
    with pytest.raises(ValueError, match=rf"^model\.{key} must be .*: got .*$"):
        load("small-llama", **changes)


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def whole(file: str, text: str) -> Callable[[Path], object]:
    """Replaces a file."""
    return lambda folder: (folder / file).write_text(text)


BAD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config-not-json": ("config.json", lambda folder: (folder / "config.json").write_text("{")),
    "config-of-nothing": ("model_type", lambda folder: (folder / "config.json").write_text("{}")),
    "unknown-architecture": ("frobnicator", edit(model_type="frobnicator")),
    "not-a-decoder": ("T5Config", edit(model_type="t5")),
    "weights-missing": (WEIGHTS, lambda folder: (folder / WEIGHTS).unlink()),
    "weights-empty": ("header", lambda folder: (folder / WEIGHTS).write_bytes(b"")),
    "weights-cut-short": ("metadata", lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99_000])),
    "weights-pickled": (WEIGHTS, lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin")),
    "weights-of-another-size": ("size", edit(hidden_size=64)),
    "weights-of-fewer-layers": (r"model\.layers\.2\.", edit(num_hidden_layers=3)),
    "one-weight-missing": (r"lm_head\.weight", without_a_weight),
    "no-tokenizer": (
        "tokenizer",
        lambda f: [f.joinpath(n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
    ),
    "no-vocabulary": ("serialization file", lambda folder: (folder / "tokenizer.json").unlink()),
    "config-null": ("TypeError", whole("config.json", "null")),
    "config-a-list": ("config", whole("config.json", "[]")),
    "config-nested-too-deeply": ("recursion", whole("config.json", "[" * 100_000)),
    "layers-null": ("num_hidden_layers", edit(num_hidden_layers=None)),
    "a-width-that-heads-do-not-divide": ("hidden", edit(hidden_size=7)),
    "dtype-of-no-name": ("nope", edit(dtype="nope")),
    "no-heads": ("ZeroDivisionError", edit(num_attention_heads=0)),
    "rope-in-words": ("rope", edit(rope_parameters="x")),
    "layers-of-no-kind": ("layer", edit(layer_types=["x", "y"])),
    "longest-text-in-words": ("max_position_embeddings", edit(max_position_embeddings="a")),
    "tokenizer-config-a-list": ("AttributeError", whole("tokenizer_config.json", "[]")),
    "generation-config-a-list": ("TypeError", whole("generation_config.json", "[]")),
    "tokenizer-not-json": ("line 1 column 2", lambda folder: (folder / "tokenizer.json").write_text("{")),
}


@pytest.mark.parametrize("what", BAD)
def test_a_model_that_cannot_be_loaded_is_named_in_one_line_with_the_reason(folder, what):
    """Missing weights above all: transformers would make random ones up with no more than a warning."""
    reason, spoil = BAD[what]
    spoil(folder)
    with pytest.raises(ModelError, match=rf"^model\.path_or_id: cannot load .*'{folder}': .*{reason}") as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("model.path_or_id") == 1
    assert not message.rstrip().endswith(":")


@pytest.mark.parametrize("allowed", [False, True])
def test_code_of_a_model_runs_only_when_it_is_trusted(folder, allowed, monkeypatch, tmp_path):
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    edit(model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})(folder)
    code = "import os, pathlib\npathlib.Path(os.environ['RAN']).touch()\nraise ValueError('it ran')\n"
    (folder / "mine.py").write_text(code)
    with pytest.raises(ModelError, match="it ran" if allowed else "custom code.*trust_remote_code=True"):
        load(folder, trust_remote_code=allowed)
    assert (tmp_path / "ran").exists() == allowed

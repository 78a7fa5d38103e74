"""``namm doctor``: what a memory would find in a model, without its weights."""

import json

import numpy as np
import pytest
from transformers import BloomConfig, LlavaConfig, MambaConfig

from orchestrator.cli import main
from tests.workers.memory.zoo import ARCHITECTURES, tiny_config, zoo_model
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec


def examined(capsys, *words):
    """The JSON document about a model."""
    assert main(["doctor", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_says_of_every_architecture_what_a_real_cache_then_holds(name, tmp_path, capsys):
    tiny_config(name).save_pretrained(tmp_path)
    document = examined(capsys, str(tmp_path))
    assert (document["works"], document["obstacles"], document["untried"]) == (True, [], None)
    model = zoo_model(name)
    cache = hooked_cache(model, KeepAll())
    model(model.dummy_inputs["input_ids"][:1, :3], past_key_values=cache, use_cache=True)
    assert document["architecture"] == type(model).__name__
    assert document["token_bytes"] * 3 == cache.cache_bytes
    assert [layer["kv_heads"] for layer in document["layers"]] == [cache.held_tokens().shape[2]] * 2
    windows = [None if layer.options.sliding_window is None else 7 for layer in cache.layers]
    assert [layer["sliding_window"] for layer in document["layers"]] == windows
    assert all(layer["has_sinks"] == (name == "gpt-oss") for layer in document["layers"])


def test_people_see_the_model_and_whether_a_memory_fits(finished_run, capsys):
    assert main(["doctor", "small-llama", "--memory", str(finished_run.champion)]) == 0
    out = capsys.readouterr().out
    for told in (
        "LlamaForCausalLM",
        "can be attached  yes",
        "1,024 bytes a token",
        "memory fits",
        "0-1",
        "beam search",
    ):
        assert told in out


def test_a_memory_that_would_never_evict_does_not_fit(finished_run, tmp_path, capsys):
    config = tiny_config("gemma3")
    config.max_position_embeddings = 4
    config.save_pretrained(tmp_path)
    memory = examined(capsys, str(tmp_path), "--memory", str(finished_run.champion))["memory"]
    assert memory["fits"] is False
    assert any("never evicts" in remark for remark in memory["remarks"])
    assert any("window of 7" in remark for remark in memory["remarks"])


@pytest.mark.parametrize("layout", [(4, 2), (1, 2)])
def test_a_memory_made_for_other_heads_does_not_fit_and_is_refused_at_work(layout, tmp_path, capsys):
    settings = NammSettings(choice="snapkv", layout=layout)
    genome = np.zeros(settings.genome_size, np.float32)
    PretrainedMemory(NammSpec(settings=settings), genome).save_pretrained(tmp_path)
    memory = examined(capsys, "small-llama", "--memory", str(tmp_path))["memory"]
    told = f"the memory's layout is {layout[0]} layers of 2 KV heads, but LlamaForCausalLM has 2 of 2: take the model"
    assert memory["fits"] is False
    assert told in memory["remarks"][0]
    (tmp_path / "prompt.txt").write_text("the river")
    for command, text in (("generate", "--prompt"), ("explain", "--text")):
        assert main([command, str(tmp_path), text, str(tmp_path / "prompt.txt"), "--model", "small-llama"]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "told"),
    [(MambaConfig(), "keeps a state"), (BloomConfig(), "registry")],
    ids=["state-space", "own-attention-code"],
)
def test_a_model_that_cannot_work_is_named_with_the_reason(config, told, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    document = examined(capsys, str(tmp_path))
    assert document["works"] is False
    assert document["layers"] == []
    assert told in " ".join(document["obstacles"])
    assert main(["doctor", str(tmp_path)]) == 0
    assert told in capsys.readouterr().out


def test_the_text_part_of_a_multimodal_model_is_looked_at(tmp_path, capsys):
    LlavaConfig().save_pretrained(tmp_path)
    document = examined(capsys, str(tmp_path))
    assert document["works"] is True
    assert len(document["layers"]) == 32


def test_code_that_comes_with_a_model_is_not_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config"}})
    )
    (tmp_path / "strange.py").write_text("raise SystemExit('this was run')\n")
    assert main(["doctor", str(tmp_path)]) == 2
    assert "trust_remote_code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [(["./nowhere"], "no model at './nowhere'"), (["small-llama", "--memory", "nowhere"], "no memory in nowhere")],
    ids=["model", "memory"],
)
def test_bad_input_is_one_line_and_exit_2(words, told, capsys):
    assert main(["doctor", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1

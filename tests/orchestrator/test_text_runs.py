"""Runs over real text: what is found wrong before anything starts, and a short run as a user has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from orchestrator.cli import main
from orchestrator.config import config_hash, config_to_dict, differences, load_config
from tests.text_model import write_text_model
from workers.checksum import weights_sha256
from workers.errors import ModelError
from workers.language_model import load_language_model
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec
from workers.settings import ModelSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("model"), max_tokens=1024)


def refusal(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def over_text(model, *more) -> list[str]:
    return [
        "small",
        f"model.path_or_id={model}",
        'tasks=[{"kind": "text_kv", "length": 512}]',
        "evaluation.lengths=[512]",
        "cluster.address=in-process",
        "tracking.enabled=false",
        "examples.pool=4",
        "examples.per_generation=2",
        "examples.heldout=2",
        "search.population=4",
        "search.generations=2",
        "memory.update_every=128",
        *more,
    ]


def test_a_model_that_knows_no_real_text_is_named(capsys, tmp_path):
    error = refusal(capsys, "evolve", *over_text("small-llama"), "--run", tmp_path / "run")
    assert "the tokenizer of 'small-llama' does not know the text of text_kv-512" in error
    assert "choose a model that reads real text, or the generated tasks" in error
    assert not (tmp_path / "run").exists()


def test_documents_cut_for_another_tokenizer_are_named(capsys, tmp_path, model):
    other = write_text_model(tmp_path / "other", vocabulary=300)
    task = f'[{{"kind": "text_kv", "length": 512, "tokenizer": "{other}"}}]'
    error = refusal(capsys, "evolve", *over_text(model, f"tasks={task}"), "--run", tmp_path / "run")
    assert f"text_kv-512 is cut to its length by the tokenizer in '{other}', which is not that of '{model}'" in error
    assert "set the task's tokenizer to 'model', or choose the model that it belongs to" in error
    assert not (tmp_path / "run").exists()


def test_a_length_that_the_corpus_cannot_reach_is_named_before_the_run(capsys, tmp_path, model):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        words = " ".join(f"{a}{b}{c}er" for a in "bdfgk" for b in "aeiou" for c in "lmnr"[: 1 + number % 4])
        (texts / f"f{number}.txt").write_text(words.replace("er b", "er\nb") + "\n")
    task = f'[{{"kind": "text_passkey", "length": 8192, "corpus": "{texts}"}}]'
    error = refusal(capsys, "evolve", *over_text(model, f"tasks={task}"), "--run", tmp_path / "run")
    assert "corpus" in error
    assert "a folder with more text" in error or "ask for shorter documents" in error
    assert not (tmp_path / "run").exists()


def test_a_document_longer_than_the_model_reads_is_named(capsys, tmp_path, model):
    error = refusal(capsys, "evolve", *over_text(model, "evaluation.lengths=[2048]"), "--run", tmp_path / "run")
    assert "of text_kv-2048 has" in error
    assert "there is room for 1024" in error


def test_weights_of_another_checksum_are_named(capsys, tmp_path, model):
    found = weights_sha256(model)
    error = refusal(capsys, "evolve", *over_text(model, "model.sha256=deadbeef"), "--run", tmp_path / "run")
    assert f"model.sha256 is 'deadbeef', but the weights in '{model}' have {found}: get the checkpoint that" in error
    assert "model.sha256" in refusal(capsys, "evaluate", "recent", "--model", model, "model.sha256=deadbeef")
    assert load_language_model(ModelSettings(path_or_id=str(model), sha256=found[:12].upper())).num_layers == 2
    with pytest.raises(ModelError, match=r"model\.sha256 is 'deadbeef'"):
        load_language_model(ModelSettings(path_or_id=str(model), sha256="deadbeef"))


def test_the_checksum_is_of_names_and_contents(model, tmp_path):
    first = LlamaForCausalLM.from_pretrained(model)
    first.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        first.model.norm.weight[0] += 1.0
    first.save_pretrained(tmp_path / "other")
    assert weights_sha256(tmp_path / "same") == weights_sha256(model) != weights_sha256(tmp_path / "other")
    with pytest.raises(ModelError, match=r"there are no \.safetensors files"):
        weights_sha256(tmp_path)


def test_a_hub_model_is_pinned_by_its_commit_instead():
    settings = ModelSettings(path_or_id="owner/name", revision="0" * 40, sha256="deadbeef")
    with pytest.raises(
        ModelError, match=r"model\.sha256 is for folders, but 'owner/name' is on the hub: name its commit"
    ):
        load_language_model(settings)


def test_a_checksum_that_is_none_is_named(capsys, tmp_path):
    assert "model.sha256 must be 8 to 64 hexadecimal digits or null: got 'abc'" in refusal(
        capsys, "evolve", "small", "model.sha256=abc", "--run", tmp_path / "run"
    )


def test_the_checksum_does_not_decide_the_trajectory():
    plain, pinned = load_config("small"), load_config("small", ["model.sha256=deadbeef"])
    assert config_hash(plain) == config_hash(pinned)
    assert not differences(config_to_dict(plain), config_to_dict(pinned))


def test_a_rival_is_evaluated_on_real_text(model, capsys):
    tasks = ["--model", str(model), "--tasks", "text_passkey-600,text_kv-600", "--quiet"]
    settings = ["cluster.address=in-process", "examples.heldout=2"]
    assert main(["evaluate", "h2o", *tasks, *settings]) == 0
    printed = capsys.readouterr().out
    assert "h2o" in printed
    assert "600" in printed, "at the length that was named, not at those of a preset"


def test_genes_of_heads_for_another_model_are_named(capsys, tmp_path, model):
    heads = ["memory.choice=snapkv", "memory.layout=[6,3]"]
    error = refusal(capsys, "evolve", *over_text(model, *heads), "--run", tmp_path / "run")
    assert f"memory.layout is [6, 3], but '{model}' has 2 layers of 2 KV heads: set it to [2, 2]" in error
    assert not (tmp_path / "run").exists()

    settings = NammSettings(choice="h2o", layout=(6, 3))
    PretrainedMemory(NammSpec(settings=settings), np.zeros(18, np.float32)).save_pretrained(tmp_path / "memory")
    error = refusal(capsys, "evaluate", tmp_path / "memory", "--model", model, "--tasks", "text_kv-600")
    assert "a genome that knows heads apart serves no other model" in error


def test_a_run_over_real_text_ends_with_a_report_and_says_which_kinds_it_forgets(tmp_path, capsys, model, monkeypatch):
    """The documents are cut by the model's own tokenizer there too. The model knows nothing: no score is too small."""
    for module in ("orchestrator.report", "orchestrator.fitness"):  # the one that takes it from the other first
        monkeypatch.setattr(f"{module}.SMALLEST_FULL_CACHE_SCORE", 1e-300)
    folder = tmp_path / "run"
    assert main(["evolve", *over_text(model), "--run", str(folder), "--quiet"]) == 0
    assert "report was not made" not in capsys.readouterr().err
    assert (folder / "report.html").is_file()
    arguments = ["--examples", "1", "--folder", str(tmp_path / "kinds"), "--json"]
    assert main(["kinds", str(folder), "--model", str(model), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["num_texts"] == 1

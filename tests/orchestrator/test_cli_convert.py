"""``namm convert``: a published checkpoint becomes a memory that every command takes, and the other way round."""

import json
import os

import pytest
import torch

from orchestrator.cli import main
from tests.workers.memory.test_pretrained import example_memory
from tests.workers.memory.test_published import SMALL, checkpoint, search_state
from workers.memory.pretrained import PretrainedMemory


def test_there_and_back(tmp_path, capsys):
    source, memory, back = checkpoint(tmp_path), tmp_path / "memory", tmp_path / "out" / "back.pt"
    assert main(["convert", str(source), "--to", str(memory), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["genome_size"], document["has_statistics"]) == (SMALL.genome_size, True)
    assert main(["inspect", str(memory)]) == 0
    assert main(["convert", str(memory), "--to", str(back)]) == 0
    assert str(back) in capsys.readouterr().out
    assert torch.equal(torch.load(back)["evolution_state"]["mean"], search_state()["mean"])


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("a.pt", "b.pt", "one of a.pt and b.pt must be a checkpoint"),
        ("a", "b", "one of a and b must be a checkpoint"),
        ("nowhere.pt", "b", "there is no checkpoint nowhere.pt"),
        ("nowhere", "b.pt", "there is no memory in nowhere"),
        ("ragged", "b.pt", "heads 'ragged' (published: 'even')"),
        ("evil.pt", "b", "what else it holds is not run"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(source, target, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example_memory().save_pretrained("ragged")
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert main(["convert", source, "--to", target]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert not {"b", "b.pt", "ran"} & set(os.listdir())


def test_an_imported_memory_can_be_scored_and_turned_like_any_other(tmp_path, capsys):
    """A genome of zeros keeps everything at 0 and next to nothing above: the dial has two settings."""
    state = {"mean": torch.zeros(SMALL.genome_size)}
    assert main(["convert", str(checkpoint(tmp_path, evolution_state=state)), "--to", str(tmp_path / "memory")]) == 0
    memory = PretrainedMemory.from_pretrained(tmp_path / "memory")
    assert memory.spec.normalisation is None
    words = ["--rivals", "none", "--examples", "1", "--json", "cluster.address=in-process", "examples.pool=4"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "memory"), *words, "examples.per_generation=2", "--lengths", "600"]) == 0
    (full, namm, *_) = json.loads(capsys.readouterr().out)["table"]
    assert (full["kept_ratio"], namm["kept_ratio"]) == (1.0, 1.0)

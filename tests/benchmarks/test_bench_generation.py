from __future__ import annotations

import re

import numpy as np

from tasks.corpus_task import CorpusTaskSettings
from tests.benchmarks.bench_generation import KIND, grown, line, main
from tests.text_model import write_text_model
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import NammSettings, NammSpec
from workers.settings import ModelSettings
from workers.text_model import TextShape

SMALL = TextShape(hidden=32, layers=2, query_heads=4, kv_heads=2, head_size=8, mlp=48)


def test_a_straight_line_goes_through_points_on_one():
    assert line([1, 2, 4], [1.5, 2.5, 4.5]) == "0.50 s + 1.0000 s for each (R² 1.000)"


def test_models_grow_with_the_tokenizer_of_the_one_that_is_named(tmp_path, capsys):
    model = ModelSettings(path_or_id=str(write_text_model(tmp_path, vocabulary=2048)))
    larger = TextShape(hidden=64, layers=3, query_heads=8, kv_heads=4, head_size=8, mlp=96)
    grown(model, CorpusTaskSettings(kind=KIND, length=2048), (SMALL, larger), population=2, documents=1)
    told = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"\d million parameters: \d+\.\d\d s", entry) is not None for entry in told[:2]] == [True] * 2
    assert told[2].startswith("millions: ")


def test_what_a_generation_costs_is_printed(tmp_path, monkeypatch, capsys):
    write_text_model(tmp_path / "model", vocabulary=2048)
    settings = NammSettings(update_every=256, heads="ragged", hidden_size=4, window=8, hop=4)
    genome = np.random.default_rng(0).normal(size=settings.genome_size).astype(np.float32)
    PretrainedMemory(NammSpec(settings=settings), genome, {}).save_pretrained(tmp_path / "memory")
    arguments = ["--model", str(tmp_path / "model"), "--memory", str(tmp_path / "memory"), "--length", "512"]
    monkeypatch.setattr(
        "sys.argv", ["bench_generation", *arguments, "--populations", "1", "2", "--documents", "1", "2"]
    )
    main()
    printed_lines = capsys.readouterr().out.splitlines()
    assert printed_lines[0].startswith("2 genomes x 2 documents of 512 tokens: ")
    assert printed_lines[1].startswith("documents [1, 2]: ")

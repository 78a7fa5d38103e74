from __future__ import annotations

import re

from tasks.corpus_task import CorpusTaskSettings
from tests.benchmarks.bench_generation import KIND, grown, line
from tests.text_model import write_text_model
from workers.settings import ModelSettings
from workers.text_model import TextShape

SMALL = TextShape(hidden=32, layers=2, query_heads=4, kv_heads=2, head_size=8, mlp=48)


def test_a_line_through_points_on_it():
    assert line([1, 2, 4], [1.5, 2.5, 4.5]) == "0.50 s + 1.0000 s for each (R² 1.000)"


def test_models_grow_with_the_tokenizer_of_the_one_that_is_named(tmp_path, capsys):
    model = ModelSettings(path_or_id=str(write_text_model(tmp_path, vocabulary=2048)))
    larger = TextShape(hidden=64, layers=3, query_heads=8, kv_heads=4, head_size=8, mlp=96)
    grown(model, CorpusTaskSettings(kind=KIND, length=2048), (SMALL, larger), population=2, documents=1)
    told = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"\d million parameters: \d+\.\d\d s", entry) is not None for entry in told[:2]] == [True] * 2
    assert told[2].startswith("millions: ")

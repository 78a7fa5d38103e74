"""A real medium Llama, where NAMM_MEDIUM_LLAMA names its folder, reaches on the tasks over text what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tasks.corpus_task import CorpusTaskSettings
from tests.text_model import MEDIUM_LLAMA, needs_medium_llama
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.specs import RivalSpec
from workers.settings import ModelSettings
from workers.unit import Unit

pytestmark = [pytest.mark.slow, needs_medium_llama, pytest.mark.timeout(900)]

MEASURED = {
    ("fact_prose", 1024): 1.00,
    ("fact_code", 1024): 1.00,
    ("kv", 1024): 0.96,
    ("kvdense", 1024): 1.00,
    ("passkey", 1024): 1.00,
    ("variable", 1024): 0.78,
    ("passage_doc", 1024): 0.86,
    ("passage_line", 1024): 1.00,
    ("next_line", 1024): 0.87,
    ("fact_prose", 2048): 1.00,
    ("kv", 2048): 0.95,
    ("passage_line", 2048): 0.92,
    ("variable", 2048): 0.65,
}
"""Exact match by task and length, over many examples; a few examples here scatter around it."""
NUM_EXAMPLES = {1024: 12, 2048: 8}


def tolerance(expected: float, num_answers: int) -> float:
    """Three standard errors of so many answers of which every second is asked of another document, and three points."""
    return 0.03 + 3 * float(np.sqrt(max(0.02, expected * (1 - expected)) / (num_answers / 2)))


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    assert MEDIUM_LLAMA is not None
    tasks = tuple(CorpusTaskSettings(kind=f"text_{task}", length=length) for task, length in MEASURED)
    return EvaluatorRecipe(model=ModelSettings(path_or_id=MEDIUM_LLAMA), tasks=tasks).build()


@pytest.mark.parametrize(("task", "length"), MEASURED)
def test_the_rows_that_came_with_the_model(evaluator, task, length):
    assert MEDIUM_LLAMA is not None
    rows = Path(MEDIUM_LLAMA) / "heldout_examples.parquet"
    if not rows.is_file():
        pytest.skip("this model came without rows")
    found = pq.read_table(rows, filters=[("task", "=", task), ("length", "=", length)]).to_pylist()
    hits: list[bool] = []
    for row in found[: NUM_EXAMPLES[length]]:
        ids = torch.tensor([row["ids"]])
        with torch.inference_mode():
            choices = evaluator.language_model.model(input_ids=ids, use_cache=False).logits.argmax(-1)
        spans = zip(row["answer_start"], row["answer_end"], strict=True)
        hits += [bool((choices[0, a - 1 : b - 1] == ids[0, a:b]).all()) for a, b in spans]
    expected = MEASURED[task, length]
    assert np.mean(hits) == pytest.approx(expected, abs=tolerance(expected, len(hits)))


@pytest.mark.parametrize(("task", "length"), MEASURED)
def test_the_examples_made_here(evaluator, task, length):
    examples = tuple(range(NUM_EXAMPLES[length]))
    scored = evaluator.score(
        Unit(
            generation=0,
            memory_name="full",
            memory=RivalSpec(name="full"),
            task=f"text_{task}-{length}",
            split="heldout",
            examples=examples,
            candidates=(0,),
            genomes=np.zeros((1, 0), np.float32),
        )
    )
    expected = MEASURED[task, length]
    assert scored.exact.mean() == pytest.approx(expected, abs=tolerance(expected, 4 * len(examples)))
    assert scored.seen_tokens.max() <= length

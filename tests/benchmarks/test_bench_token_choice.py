from __future__ import annotations

import pytest

from orchestrator import fitness
from tests.benchmarks.bench_token_choice import (
    VARIANTS,
    Plan,
    evaluations_to_reach,
    evolve,
    printed,
    run,
    settings_of,
)
from tests.text_model import MEDIUM_LLAMA, needs_medium_llama, write_text_model
from workers.memory.pretrained import PretrainedMemory
from workers.settings import ModelSettings


def test_evaluations_are_counted_to_the_generation_whose_mean_of_three_reaches_the_mark():
    assert evaluations_to_reach([0.1, 0.5, 0.6, 0.7], 0.39, 10) == 30
    assert evaluations_to_reach([0.1, 0.5, 0.6, 0.7], 0.1, 10) == 10
    assert evaluations_to_reach([0.1, 0.2], 0.9, 10) is None


def test_every_variant_is_a_memory_that_there_can_be(tmp_path):
    plan = Plan(model=ModelSettings(path_or_id=str(write_text_model(tmp_path))), out=tmp_path, seconds=0.0)
    sizes = {name: settings_of(variant, plan).genome_size for name, variant in VARIANTS.items()}
    assert sizes["published"] == sizes["warm"] == sizes["target"] == 4172
    assert sizes["offsets"] == 4172 + 4
    assert sizes["heads-only"] == 4


def test_a_generation_on_a_model_that_knows_nothing(tmp_path, monkeypatch, capsys):
    """All of the path at a size that takes seconds; what the figures are does not matter."""
    monkeypatch.setattr(fitness, "SMALLEST_FULL_CACHE_SCORE", 0.0)
    model = ModelSettings(path_or_id=str(write_text_model(tmp_path / "model", vocabulary=2048)))
    plan = Plan(
        model=model, out=tmp_path, seconds=0.0, length=512, update_every=256, population=4, pool=1, per_generation=1,
        valid=1, warm_steps=2, seed=3,
    )  # fmt: skip
    document = evolve("all-price", plan)
    assert "all-price seed 3  generation 0  fitness " in capsys.readouterr().out
    assert document["genome"] == 4172 + 326 + 4
    assert "| all-price | 3 | 4,502 | 20 |" in printed([document], plan)
    memory = PretrainedMemory.from_pretrained(tmp_path / "all-price-seed3")
    assert memory.genome.shape == (4502,)


@pytest.mark.slow
@needs_medium_llama
@pytest.mark.timeout(600)
def test_a_generation_of_two_variants(tmp_path):
    model = ModelSettings(path_or_id=str(MEDIUM_LLAMA))
    plan = Plan(
        model=model, out=tmp_path, seconds=0.0, length=512, update_every=128, population=4, pool=2, per_generation=1,
        valid=1,
    )  # fmt: skip
    documents = run(["offsets", "heads-only"], plan)
    assert "| offsets | 0 | 4,190 | 20 |" in printed(documents, plan)
    assert "| heads-only | 0 | 18 | 20 |" in printed(documents, plan)

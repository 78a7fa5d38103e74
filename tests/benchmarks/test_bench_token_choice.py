from __future__ import annotations

import pytest

from tests.benchmarks.bench_token_choice import VARIANTS, Plan, evaluations_to_reach, printed, run, settings_of
from tests.text_model import MEDIUM_LLAMA, needs_medium_llama, write_text_model
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
    assert "| offsets | 4,190 | 20 |" in printed(documents, plan)
    assert "| heads-only | 18 | 20 |" in printed(documents, plan)

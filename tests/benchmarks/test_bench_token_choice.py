from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from orchestrator import fitness
from tests.benchmarks.bench_token_choice import (
    KINDS,
    VARIANTS,
    Plan,
    drawn,
    evaluations_to_reach,
    evolve,
    kind_and_count,
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


def test_kinds_where_answers_are_lost_are_drawn_more_often_from_as_many_more(tmp_path):
    plan = Plan(
        model=ModelSettings(path_or_id="any"), out=tmp_path, seconds=0.0, pool=6, per_generation=1,
        more={"text_variable": 4},
    )  # fmt: skip
    counts = {name: len(indices) for name, indices in drawn(plan, 0).items()}
    assert counts == {f"{kind}-2048": 4 if kind == "text_variable" else 1 for kind in KINDS}
    assert (plan.pool_of("text_variable"), plan.pool_of("text_kv")) == (24, 6)
    assert drawn(plan, 0) != drawn(plan, 1)


def test_a_count_of_a_kind_is_read_or_refused():
    assert kind_and_count("text_kv=4") == ("text_kv", 4)
    for wrong in ("text_kv", "text_kv=0", "text_kv=a", "kv=4"):
        with pytest.raises(argparse.ArgumentTypeError, match="one of text_fact_prose"):
            kind_and_count(wrong)


def test_a_search_goes_on_from_a_memory_that_was_evolved_and_from_no_other(tmp_path, monkeypatch):
    """Of the same settings, with the statistics that it was evolved with."""
    monkeypatch.setattr(fitness, "SMALLEST_FULL_CACHE_SCORE", 0.0)
    model = ModelSettings(path_or_id=str(write_text_model(tmp_path / "model", vocabulary=2048)))
    plan = Plan(
        model=model, out=tmp_path / "first", seconds=0.0, length=512, population=4, pool=1, per_generation=1, valid=1,
        kept_target=0.3,
    )  # fmt: skip
    evolve("offsets-lookahead-target", plan)
    first = PretrainedMemory.from_pretrained(tmp_path / "first" / "offsets-lookahead-target-seed0")
    starts = str(tmp_path / "first" / "offsets-lookahead-target-seed{seed}")
    later = replace(plan, out=tmp_path / "later", pool=2, starts=starts)
    evolve("offsets-lookahead", later)
    second = PretrainedMemory.from_pretrained(tmp_path / "later" / "offsets-lookahead-seed0")
    averaged = PretrainedMemory.from_pretrained(tmp_path / "later" / "offsets-lookahead-seed0-averaged")
    assert second.spec == first.spec
    assert (second.genome != first.genome).any()
    assert abs(second.genome - first.genome).max() < 0.5
    assert (averaged.genome == second.genome).all()  # of one generation
    with pytest.raises(SystemExit, match="a memory of other settings"):
        evolve("published", later)


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

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import FitnessSettings, UnitSettings
from orchestrator.errors import ConfigError, NammError
from orchestrator.fitness import FullCacheScores, losses, merge_statistics
from orchestrator.units import plan_units
from tests.orchestrator.scored import KV_HEADS, LAYERS, SEEN_TOKENS, feature_pool, row_scores, score_unit
from workers.memory.specs import RivalSpec

EXAMPLES = {"qa": (1, 4, 9), "code": (0, 2)}
POPULATION = 5
COLUMNS = ("loss", "ratio", "exact", "graded", "kept_ratio")


def scored_units(name="namm", population=POPULATION, candidates_per_unit=2, examples_per_unit=2, examples=EXAMPLES):
    units = plan_units(
        generation=0,
        memory_name=name,
        memory=RivalSpec(name="full"),
        genomes=np.zeros((population, 3), dtype=np.float32),
        examples=examples,
        split="train",
        settings=UnitSettings(candidates_per_unit=candidates_per_unit, examples_per_unit=examples_per_unit),
        record_statistics=name == "full",
    )
    return [score_unit(unit) for unit in units]


def full_cache(examples=EXAMPLES):
    return FullCacheScores.from_units(scored_units("full", population=1, examples=examples))


def rewritten(column, value):
    """The scored units with one column overwritten."""
    return [
        dataclasses.replace(unit, **{column: np.full_like(getattr(unit, column), value)}) for unit in scored_units()
    ]


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.integers(1, 3))
def test_losses_depend_neither_on_the_order_of_the_units_nor_on_their_cut(random, per_block, per_shard):
    expected = losses(scored_units(), full_cache(), FitnessSettings(kept_price=0.3), POPULATION)
    shuffled = scored_units(candidates_per_unit=per_block, examples_per_unit=per_shard)
    random.shuffle(shuffled)
    fitness = losses(shuffled, full_cache(), FitnessSettings(kept_price=0.3), POPULATION)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(fitness, column), getattr(expected, column))


@pytest.mark.parametrize("score", ["graded", "exact"])
def test_the_loss_is_the_negative_mean_over_tasks_of_score_over_full_cache_score(score):
    index = {"exact": 0, "graded": 1}[score]
    fitness = losses(scored_units(), full_cache(), FitnessSettings(score=score, kept_price=0.25), POPULATION)
    for c in range(POPULATION):
        ratios = [
            np.mean([row_scores(task, c, e)[index] for e in drawn])
            / np.mean([row_scores(task, 0, e)[index] for e in drawn])
            for task, drawn in EXAMPLES.items()
        ]
        kept = [np.mean([row_scores(t, c, e)[2] / SEEN_TOKENS for e in drawn]) for t, drawn in EXAMPLES.items()]
        assert fitness.ratio[c] == pytest.approx(np.mean(ratios), rel=1e-14)
        assert fitness.kept_ratio[c] == pytest.approx(np.mean(kept), rel=1e-14)
        assert fitness.loss[c] == pytest.approx(-(np.mean(ratios) - 0.25 * np.mean(kept)), rel=1e-14)


def test_raw_scores_are_means_over_tasks_of_means_over_examples():
    fitness = losses(scored_units(), full_cache(), FitnessSettings(), POPULATION)
    for c in range(POPULATION):
        raw = [np.mean([row_scores(t, c, e)[:2] for e in drawn], axis=0) for t, drawn in EXAMPLES.items()]
        np.testing.assert_allclose([fitness.exact[c], fitness.graded[c]], np.mean(raw, axis=0), rtol=1e-14)


def test_the_full_cache_itself_has_the_ratio_1_in_every_task():
    fitness = losses(scored_units(population=1), full_cache(), FitnessSettings(), 1)
    assert fitness.ratio.tolist() == [1.0]
    assert {task: columns.ratio.tolist() for task, columns in fitness.by_task.items()} == {"code": [1.0], "qa": [1.0]}


def test_all_columns_are_float64_with_one_number_per_candidate():
    fitness = losses(scored_units(), full_cache(), FitnessSettings(), POPULATION)
    for columns in (fitness, *fitness.by_task.values()):
        for name in COLUMNS[1:]:
            assert getattr(columns, name).dtype == np.float64
            assert getattr(columns, name).shape == (POPULATION,)


def test_the_kept_ratio_averages_over_layers_and_kv_heads():
    unit = score_unit(
        plan_units(
            generation=0,
            memory_name="namm",
            memory=RivalSpec(name="full"),
            genomes=np.zeros((1, 1), dtype=np.float32),
            examples={"qa": (4,)},
            split="train",
            settings=UnitSettings(candidates_per_unit=1, examples_per_unit=1),
        )[0]
    )
    held = np.arange(1, LAYERS * KV_HEADS + 1, dtype=np.int32).reshape(1, LAYERS, KV_HEADS)
    fitness = losses([dataclasses.replace(unit, held_tokens=held)], full_cache(), FitnessSettings(), 1)
    assert fitness.kept_ratio[0] == pytest.approx(3.5 / SEEN_TOKENS)


def test_more_examples_in_the_full_cache_pass_than_were_drawn_change_nothing():
    pool = {task: tuple(range(12)) for task in EXAMPLES}
    np.testing.assert_array_equal(
        losses(scored_units(), full_cache(pool), FitnessSettings(), POPULATION).loss,
        losses(scored_units(), full_cache(), FitnessSettings(), POPULATION).loss,
    )


def test_a_task_that_the_model_cannot_solve_is_named():
    full = FullCacheScores.from_units(
        dataclasses.replace(unit, graded=unit.graded * (unit.task == "qa"))
        for unit in scored_units("full", population=1)
    )
    with pytest.raises(NammError, match=r"scores only 0 \(graded\) on the 2 examples of task code"):
        losses(scored_units(), full, FitnessSettings(), POPULATION)


def test_an_example_outside_the_full_cache_pass_is_named():
    with pytest.raises(NammError, match="no score for example 9 of task qa"):
        losses(scored_units(), full_cache({"qa": (1, 4), "code": (0, 2)}), FitnessSettings(), POPULATION)


@pytest.mark.parametrize("missing", range(3))
def test_a_missing_unit_is_an_error_and_never_a_mean_over_fewer_examples(missing):
    units = scored_units()
    del units[missing]
    with pytest.raises(NammError, match=r"did not answer example \d of task qa"):
        losses(units, full_cache(), FitnessSettings(), POPULATION)


def test_a_unit_that_is_there_twice_is_an_error_and_never_counted_twice():
    units = scored_units()
    with pytest.raises(NammError, match="candidate 0 answered example 1 of task qa twice"):
        losses([*units, units[0]], full_cache(), FitnessSettings(), POPULATION)


def test_a_candidate_beyond_the_population_is_an_error():
    with pytest.raises(NammError, match="candidate 4 of 4 is none"):
        losses(scored_units(), full_cache(), FitnessSettings(), 4)


def test_a_generation_without_units_has_no_losses():
    with pytest.raises(NammError, match="without a scored unit"):
        losses([], full_cache(), FitnessSettings(), POPULATION)


def test_a_score_that_is_not_a_number_reaches_the_loss_instead_of_vanishing():
    assert np.isnan(losses(rewritten("graded", np.nan), full_cache(), FitnessSettings(), POPULATION).loss).all()


@settings(deadline=None)
@given(st.randoms(use_true_random=False))
def test_merged_statistics_are_those_of_the_whole_pool_in_any_order_of_arrival(random):
    units = plan_units(
        generation=-1,
        memory_name="full",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((1, 0), dtype=np.float32),
        examples={"qa": (1, 4, 9, 17), "code": (0, 2)},
        split="train",
        settings=UnitSettings(candidates_per_unit=1, examples_per_unit=1),
        record_statistics=True,
    )
    scored = [score_unit(unit) for unit in units]
    expected = merge_statistics(scored)
    random.shuffle(scored)
    merged = merge_statistics(scored)
    pool = np.concatenate([feature_pool(unit) for unit in units])
    assert merged.count == len(pool)
    np.testing.assert_allclose(merged.mean, pool.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.variance, pool.var(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(merged.mean, expected.mean)
    np.testing.assert_array_equal(merged.variance, expected.variance)


def test_statistics_that_are_missing_or_there_twice_are_refused():
    full = scored_units("full", population=1)
    with pytest.raises(NammError, match="carries no feature statistics"):
        merge_statistics(scored_units())
    with pytest.raises(NammError, match="was handed in twice"):
        merge_statistics([*full, full[0]])
    with pytest.raises(NammError, match="no feature statistics to merge"):
        merge_statistics([])


def test_tasks_count_by_their_weights():
    plain = losses(scored_units(), full_cache(), FitnessSettings(), POPULATION)
    weighed = losses(scored_units(), full_cache(), FitnessSettings(weights={"qa": 3.0}), POPULATION)
    by_task = weighed.by_task
    np.testing.assert_allclose(weighed.ratio, (3 * by_task["qa"].ratio + by_task["code"].ratio) / 4, rtol=1e-14)
    assert not np.array_equal(weighed.ratio, plain.ratio)
    for task, fitness in plain.by_task.items():
        np.testing.assert_array_equal(fitness.ratio, by_task[task].ratio)


def test_a_draw_of_hard_examples_is_divided_by_a_tenth_of_the_whole_pool_at_least():
    """Or one lucky answer to them would weigh more than all others together."""
    graded = {("qa", example): 0.5 for example in range(9)} | {("qa", 9): 0.0}
    full = FullCacheScores(exact=graded, graded=graded)
    assert full.mean("qa", [0, 1], "graded") == 0.5
    assert full.mean("qa", [9], "graded") == pytest.approx(0.1 * 0.45)
    fitness = losses(scored_units(examples={"qa": (9,)}), full, FitnessSettings(score="graded"), POPULATION)
    np.testing.assert_allclose(fitness.ratio, fitness.graded / 0.045)


def test_raw_means_stand_beside_the_ratios_task_by_task():
    fitness = losses(scored_units(), full_cache(), FitnessSettings(), POPULATION)
    for name, task in fitness.by_task.items():
        drawn = EXAMPLES[name]
        assert task.full_cache == pytest.approx(np.mean([row_scores(name, 0, e)[1] for e in drawn]))
        np.testing.assert_allclose(task.ratio * task.full_cache, task.graded)


def test_a_price_that_rises_and_a_target_below_which_nothing_is_paid():
    scored, full = list(scored_units()), full_cache()
    plain = losses(scored, full, FitnessSettings(kept_price=0.4), POPULATION)
    half = losses(scored, full, FitnessSettings(kept_price=0.4, price_ramp=10), POPULATION, generation=4)
    done = losses(scored, full, FitnessSettings(kept_price=0.4, price_ramp=10), POPULATION, generation=30)
    np.testing.assert_allclose(half.loss, -(plain.ratio - 0.2 * plain.kept_ratio))
    assert np.array_equal(done.loss, plain.loss)

    target = float(np.median(plain.kept_ratio))
    aimed = losses(scored, full, FitnessSettings(kept_price=0.4, kept_target=target), POPULATION)
    np.testing.assert_allclose(aimed.loss, -(plain.ratio - 0.4 * np.maximum(plain.kept_ratio - target, 0)))


@pytest.mark.parametrize("wrong", [{"kept_target": 1.0}, {"price_ramp": -1}, {"kept_target": 0.2, "kept_price": 0.0}])
def test_impossible_prices_are_named(wrong):
    with pytest.raises(ConfigError, match=f"fitness.{next(iter(wrong))}"):
        FitnessSettings(**{"kept_price": 0.5, **wrong})

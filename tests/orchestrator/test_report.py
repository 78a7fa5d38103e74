"""The table: means over tasks, and intervals that are a bootstrap over examples."""

import numpy as np
import pytest

from orchestrator.evaluation import Result
from orchestrator.report import tabulate


def result(name: str, task: str, exact: list[float], graded: list[float]) -> Result:
    return Result(
        name=name,
        task=task,
        exact=float(np.mean(exact)),
        graded=float(np.mean(graded)),
        **{"kept_ratio": 0.5, "mean_bytes": 1.0, "peak_bytes": 2.0, "state_bytes": 3.0, "num_examples": len(exact)},
        exact_by_example=tuple(exact),
        graded_by_example=tuple(graded),
    )


def coins(count: int, seed: int, p: float = 0.8) -> list[float]:
    return (np.random.default_rng(seed).random(count) < p).astype(float).tolist()


def test_an_interval_is_as_wide_as_the_spread_of_the_examples_says():
    """For a share p of n examples the standard error is sqrt(p (1 - p) / n); of the mean of two tasks, 1.41 less."""
    ones = [1.0] * 100
    results = [result("full", task, ones, ones) for task in "ab"]
    results += [result("namm", task, coins(100, seed), coins(100, seed)) for seed, task in enumerate("ab")]
    _, row = tabulate(results, {"a": 256, "b": 256})
    width = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 200)
    assert row.exact_high - row.exact_low == pytest.approx(width, rel=0.2)
    assert row.exact_low < row.exact < row.exact_high
    assert (row.graded_ratio_low, row.graded_ratio_high) == pytest.approx((row.exact_low, row.exact_high))


def test_the_full_cache_is_resampled_along_with_the_memory():
    """A memory that is right just where the full cache is has all of its score, however hard the examples are."""
    graded = coins(50, 3)
    rows = tabulate([result(name, "a", graded, graded) for name in ("full", "namm")], {"a": 256})
    assert [(row.graded_ratio_low, row.graded_ratio_high) for row in rows] == [(1.0, 1.0)] * 2
    assert rows[1].exact_low < rows[1].exact_high


def test_without_examples_an_interval_is_a_point():
    means = {"exact": 0.5, "graded": 0.5, "kept_ratio": 0.5, "mean_bytes": 1.0, "peak_bytes": 2.0, "state_bytes": 3.0}
    (row,) = tabulate([Result(name="full", task="a", num_examples=9, **means)], {"a": 256})
    assert (row.exact_low, row.exact_high) == (0.5, 0.5)


def test_the_examples_stay_out_of_documents():
    document = result("namm", "a", [1.0, 0.0], [1.0, 0.0]).document()
    assert (document["name"], document["exact"]) == ("namm", 0.5)
    assert not [key for key in document if "by_example" in key]

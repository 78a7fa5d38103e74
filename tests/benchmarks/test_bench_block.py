"""The block benchmark: a block's results are those of one at a time, and it fails when it must."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tests.benchmarks import bench_block
from tests.benchmarks.bench_block import Outcome, main, measure

GOOD = Outcome(
    rows=256,
    block_seconds=[1.0, 1.1, 5.0],
    single_seconds=[2.4, 2.2, 9.0],
    graded_difference=1e-6,
    exact_difference=0.0,
    held_tokens_difference=0,
    kept_ratios=(0.1, 0.9),
)
BAD = {
    "graded": {"graded_difference": 2e-5},
    "exact": {"exact_difference": 0.25},
    "held": {"held_tokens_difference": 1},
    "slow": {"single_seconds": [2.1, 2.1, 9.0]},
    "not-a-number": {"graded_difference": float("nan")},
}


@pytest.fixture
def threads():
    """The recipe sets them for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_block_scores_as_one_genome_and_example_at_a_time_do(threads):
    outcome = measure(num_genomes=6, num_examples=3, repeats=1)
    assert outcome.rows == 6 * 3 * 2
    assert outcome.graded_difference <= 1e-5
    assert outcome.exact_difference == outcome.held_tokens_difference == 0
    assert outcome.kept_ratios[0] < 0.3 < 0.6 < outcome.kept_ratios[1]  # the genomes evict different amounts


def test_the_command_succeeds_and_prints_medians_spread_ratio_and_differences(monkeypatch, capsys):
    monkeypatch.setattr(bench_block, "measure", lambda *_: GOOD)
    assert main([]) == 0
    printed = capsys.readouterr()
    for part in ("1.10 s of CPU (1.00 to 5.00)", "2.40 s", "2.18 times as fast", "graded 1.0e-06", "kept 10% to 90%"):
        assert part in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_the_command_fails_when_results_differ_or_the_block_is_slow(monkeypatch, capsys, what, options):
    monkeypatch.setattr(bench_block, "measure", lambda *_: dataclasses.replace(GOOD, **BAD[what]))
    assert main(options) == 1
    printed = capsys.readouterr()
    assert printed.err.count("FAIL: ") == printed.err.count("\n") == 1
    if options:
        assert len(json.loads(printed.out)["complaints"]) == 1

"""The presets of the medium model: what they say, and, where there is such a model, a short run from end to end."""

from __future__ import annotations

import json

import pytest

from orchestrator.cli import main
from orchestrator.config import SINCE, config_hash, config_to_dict, differences, load_config
from tests.text_model import MEDIUM_LLAMA, needs_medium_llama


def test_the_preset_has_the_published_genome_and_stages_of_one_two_and_three_tasks():
    config = load_config("medium")
    assert config.memory.genome_size == 4172
    assert config.memory.update_every == 256
    assert config.search.population == 32
    assert [len(config.tasks_at(generation)) for generation in (0, 59, 60, 119, 120, 199)] == [1, 1, 2, 2, 3, 3]
    assert config.evaluation.lengths == (2048, 4096, 8192)


def test_the_short_preset_joins_its_tasks_within_three_generations():
    config = load_config("medium-short")
    assert [len(config.tasks_at(generation)) for generation in range(config.search.generations)] == [1, 2, 3]
    assert config.memory.genome_size == 4172


def test_what_came_later_leaves_runs_of_before_as_they_are():
    """Settings that are off do not enter the hash, so that a run of an earlier version goes on."""
    for override in (
        ["memory.layout=[2, 2]", "memory.offsets=true"],
        ["memory.lookahead=8"],
        ["memory.layout=[2, 2]", "memory.choice=snapkv"],
        ["search.warm_start={}"],
        ["fitness.kept_target=0.2"],
        ["fitness.price_ramp=10"],
    ):
        assert config_hash(load_config("small", override)) != config_hash(load_config("small"))
    off = ["memory.layout=null", "memory.offsets=false", "memory.lookahead=0", "memory.choice=network"]
    off += ["search.warm_start=null", "fitness.kept_target=0.0", "fitness.price_ramp=0"]
    assert config_hash(load_config("small", off)) == config_hash(load_config("small"))
    former = config_to_dict(load_config("small"))
    for section, key in (key.split(".") for key in SINCE):
        del former[section][key]  # as a run of before has it in its folder
    assert not differences(former, config_to_dict(load_config("small")))


@pytest.mark.slow
@needs_medium_llama
def test_a_short_run_on_a_medium_llama(tmp_path, capsys):
    settings = [f"model.path_or_id={MEDIUM_LLAMA}", "cluster.address=in-process", "tracking.enabled=false"]
    folder = tmp_path / "run"
    assert main(["evolve", "medium-short", *settings, "--run", str(folder), "--quiet", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in summary["table"]}
    assert rows["full"]["exact"] > 0.8, "the model itself finds what it is asked"
    assert {"namm", "one-head", "truncation"} < rows.keys()
    assert {result["task"] for result in summary["results"]} == {
        "text_kv-512",
        "text_fact_code-512",
        "text_variable-512",
    }

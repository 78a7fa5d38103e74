"""Incremental evolution: tasks join in stages, and search and statistics go on as they are."""

import json

import pytest

from orchestrator.cli import main
from orchestrator.config import config_to_dict, differences, load_config
from orchestrator.errors import ConfigError
from orchestrator.history import read_journal
from orchestrator.store import Store
from tests.orchestrator.conftest import TINY
from workers.memory.pretrained import PretrainedMemory
from workers.unit import FULL_CACHE_PASS

PROSE = "{kind: facts_prose, length: 256, num_facts: 8, num_questions: 2}"
CODE = "{kind: facts_code, length: 256, num_facts: 8, num_questions: 2}"
FIRST = [f"tasks=[{PROSE}]", "search.generations=2"]
SECOND = [f"tasks=[{PROSE}, {CODE}]", "stages=[{from_generation: 2, adds: [facts_code-256]}]"]


def evolve(folder, *words):
    tiny = [word for word in TINY if not word.startswith("search.generations")]
    assert main(["evolve", "small", *tiny, *words, "--run", str(folder), "--quiet"]) == 0
    return json.loads((folder / "summary.json").read_text())


def told(summary):
    """All that the search has decided."""
    return {key: summary[key] for key in ("population_hash", "genome_sha256", "table")}


@pytest.fixture(scope="module")
def in_one_command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "at-once"
    return folder, evolve(folder, *SECOND, "search.generations=4")


def test_each_stage_asks_its_tasks_and_no_others(in_one_command):
    folder, _ = in_one_command
    asked = [tuple(record.examples) for record in read_journal(folder).generations]
    both = ("facts_prose-256", "facts_code-256")
    assert asked == [both[:1], both[:1], both, both]
    assert {unit.task for unit in Store(folder).units(FULL_CACHE_PASS)} == set(both)


def test_a_stage_goes_on_from_the_exact_state_of_the_one_before(in_one_command, tmp_path):
    first = evolve(tmp_path / "run", *FIRST)
    assert first["generations"] == 2
    assert told(evolve(tmp_path / "run", *SECOND, "search.generations=4")) == told(in_one_command[1])


def test_a_run_is_resumed_in_any_stage(in_one_command, tmp_path):
    for generations in (1, 3, 4):
        summary = evolve(tmp_path / "run", *SECOND, f"search.generations={generations}")
    assert told(summary) == told(in_one_command[1])


def test_statistics_are_those_of_the_first_stage(in_one_command, tmp_path):
    evolve(tmp_path / "run", *FIRST)
    first, last = (PretrainedMemory.from_pretrained(at / "champion") for at in (tmp_path / "run", in_one_command[0]))
    assert first.spec.normalisation == last.spec.normalisation
    assert first.spec.normalisation is not None


def test_full_cache_scores_of_the_first_stage_are_taken_over_by_other_runs(tmp_path):
    """The library lies beside the run folders."""
    evolve(tmp_path / "one", *FIRST)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "full-cache").rglob("*.parquet")}
    assert len(kept) == 2  # four examples, two to a unit
    evolve(tmp_path / "two", *SECOND, "search.generations=3", "seed=5")
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "full-cache").rglob("*.parquet")}
    assert kept.items() <= now.items()
    assert len(now) == 4  # those of the task that joined
    one, two = (Store(tmp_path / name).units(FULL_CACHE_PASS) for name in ("one", "two"))
    shared = [unit for unit in two if unit.task == "facts_prose-256"]
    assert [unit.seconds for unit in shared] == [unit.seconds for unit in one]  # not scored again


def test_a_stage_to_come_may_be_added_and_one_that_began_may_not_be_changed(in_one_command, tmp_path, capsys):
    folder, _ = in_one_command
    later = "stages=[{from_generation: 3, adds: [facts_code-256]}]"
    tiny = [word for word in TINY if not word.startswith("search.generations")]
    assert main(["evolve", "small", *tiny, SECOND[0], later, "search.generations=4", "--run", str(folder)]) == 2
    assert "stages.0.from_generation (was 2) changed; start a new run folder" in capsys.readouterr().err


def test_settings_of_stages_to_come_decide_nothing_yet():
    early, late = (config_to_dict(load_config("small", words)) for words in (FIRST, SECOND))
    assert differences(early, late, generations=2) == []
    assert differences(early, late, generations=3) != []
    assert differences(early, late) != []


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{from_generation: 0, adds: [facts_code-256]}]", "stages.0: from_generation must be at least 1"),
        ("[{from_generation: 2, adds: []}]", "adds must be a list of at least one task"),
        ("[{from_generation: 2, adds: [facts]}]", "stages.0.adds must be names of tasks (facts_prose-256, facts_c"),
        ("[{from_generation: 2, adds: [facts_code-256, facts_prose-256]}]", "leave a task to begin with"),
        (
            "[{from_generation: 2, adds: [facts_code-256]}, {from_generation: 3, adds: [facts_code-256]}]",
            "lists of tasks that each join once",
        ),
        (
            "[{from_generation: 3, adds: [facts_code-256]}, {from_generation: 2, adds: [facts_prose-256]}]",
            "leave a task to begin with",
        ),
    ],
)
def test_impossible_stages_are_refused_by_name(stages, said):
    with pytest.raises(ConfigError) as raised:
        load_config("small", [SECOND[0], f"stages={stages}"])
    assert said.partition(": ")[2] in str(raised.value)


def test_the_weights_of_tasks_are_named_and_positive():
    assert load_config("small", ["fitness.weights={facts_code-256: 2}"]).fitness.weights == {"facts_code-256": 2.0}
    with pytest.raises(ConfigError, match="names of tasks"):
        load_config("small", ["fitness.weights={facts: 2}"])
    with pytest.raises(ConfigError, match=r"fitness.weights.facts_code-256 must be from 1e-9 to 1e9: got 0"):
        load_config("small", ["fitness.weights={facts_code-256: 0}"])
    with pytest.raises(ConfigError, match=r"from 1e-9 to 1e9: got 1e\+308"):  # two of them have no sum
        load_config("small", ["fitness.weights={facts_code-256: 1e308, facts_prose-256: 1e308}"])


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.2-1b", "qwen3-8b", "mistral-7b", "llama3-70b"])
def test_the_paper_s_stages_are_in_every_large_preset(name):
    config = load_config(name)
    assert [(stage.from_generation, stage.adds) for stage in config.stages] == [
        (300, ("longbench-dureader",)),
        (550, ("longbench-narrativeqa",)),
    ]
    assert config.tasks_at(0) == ("longbench-passage_retrieval_en",)
    assert (config.search.generations, config.search.population, config.search.sigma) == (670, 32, 0.065)
    assert (config.memory.update_every, config.memory.genome_size, config.examples.per_generation) == (512, 4172, 64)
    assert {task.profile for task in config.tasks} == {"paper"}
    assert (config.fitness.score, config.prompts.truncation) == ("exact", "middle")


def test_the_presets_of_the_stages_are_the_beginnings_of_the_whole():
    whole = config_to_dict(load_config("llama3-8b"))
    for number, (generations, num_tasks) in enumerate(((300, 1), (550, 2), (670, 3)), 1):
        config = load_config(f"llama3-8b-stage{number}")
        assert (config.search.generations, len(config.tasks)) == (generations, num_tasks)
        assert differences(config_to_dict(config), whole, generations) == []
    assert load_config("llama3-8b").model.rope_ntk_factor == 4.0

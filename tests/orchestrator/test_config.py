"""Settings load strictly, and every mistake is told in one line with its remedy."""

import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.config import (
    ClusterSettings,
    EvaluationSettings,
    ExampleSettings,
    FitnessSettings,
    RunConfig,
    SearchSettings,
    TrackingSettings,
    UnitSettings,
    config_from_dict,
    config_hash,
    config_to_dict,
    differences,
    load_config,
)
from orchestrator.errors import ConfigError
from tasks.registry import GeneratedTaskSettings
from workers.memory.specs import NammSettings
from workers.settings import ModelSettings

PRESETS = Path(__file__).parents[2] / "deploy" / "presets"
SHIPPED = sorted(file.stem for file in PRESETS.glob("*.yaml"))


def toy_config(**changes):
    settings = {
        "model": ModelSettings(path_or_id="small-llama"),
        "memory": NammSettings(update_every=64),
        "tasks": (GeneratedTaskSettings(kind="facts_prose"),),
        "examples": ExampleSettings(pool=8, per_generation=2, heldout=2),
        "search": SearchSettings(population=4, generations=3),
        "units": UnitSettings(candidates_per_unit=4, examples_per_unit=1),
        "evaluation": EvaluationSettings(lengths=(256,)),
    }
    return RunConfig(**{**settings, **changes})


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def complaint(path_or_preset_name, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path_or_preset_name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_presets_of_the_brief_are_shipped():
    assert {"small", "small-long", "llama3-8b"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_preset_loads_by_name_and_by_path(name):
    assert load_config(name) == load_config(PRESETS / f"{name}.yaml")


def test_a_preset_says_everything_that_it_needs_in_yaml():
    config = load_config("small")
    assert config.memory == NammSettings(update_every=64, hidden_size=16, heads="ragged")
    assert [task.name for task in config.tasks] == ["facts_prose-256", "facts_code-256"]
    assert config.cluster == ClusterSettings(workers=2)


def test_a_preset_that_extends_another_changes_only_what_it_names():
    small, long = load_config("small"), load_config("small-long")
    assert long.evaluation.lengths == (256, 512, 1024)
    assert long.search == dataclasses.replace(small.search, generations=long.search.generations)
    assert (long.model, long.memory, long.tasks) == (small.model, small.memory, small.tasks)


def test_extends_takes_a_path_relative_to_the_file_and_replaces_lists_whole(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path, "base.yaml", "extends: small\nsearch: {population: 8}")
    child = write(tmp_path / "mine", "child.yaml", "extends: ../base.yaml\ntasks: [{kind: facts_code}]")
    config = load_config(child)
    assert (config.search.population, config.search.generations) == (8, load_config("small").search.generations)
    assert config.tasks == (GeneratedTaskSettings(kind="facts_code"),)


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("search.population=8", lambda config: config.search.population, 8),
        ("search.sigma=1", lambda config: config.search.sigma, 1.0),
        ("search.sigma=1e-2", lambda config: config.search.sigma, 0.01),
        ("tasks.1.length=512", lambda config: config.tasks[1].length, 512),
        ("memory.cap=128", lambda config: config.memory.cap, 128),
        ("memory.cap=null", lambda config: config.memory.cap, None),
        ("search.diagonal=false", lambda config: config.search.diagonal, False),
        ("cluster.address=ray://head:10001", lambda config: config.cluster.address, "ray://head:10001"),
        ("tracking.uri=http://host:5000/?a=b", lambda config: config.tracking.uri, "http://host:5000/?a=b"),
        ("model.revision='1234'", lambda config: config.model.revision, "1234"),
        ("evaluation.lengths=[64, 128]", lambda config: config.evaluation.lengths, (64, 128)),
    ],
)
def test_an_override_is_parsed_as_yaml_and_wins(override, get, value):
    loaded = get(load_config("small", [override]))
    assert loaded == value
    assert type(loaded) is type(value)


def test_the_last_of_two_overrides_wins():
    assert load_config("small", ["seed=1", "seed=2"]).seed == 2


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.populaton=8", ["unknown key 'search.populaton'", "did you mean 'search.population'?", "sigma"]),
        ("population=8", ["unknown key 'population'", "did you mean 'search.population'?"]),
        ("serch.population=8", ["unknown key 'serch'", "did you mean 'search'?"]),
        ("tasks.0.lenght=512", ["unknown key 'tasks.0.lenght'", "did you mean 'tasks.0.length'?"]),
        ("search.population=eight", ["search.population must be a whole number", 'got "eight"']),
        ("search.population='8'", ["search.population must be a whole number", 'got "8"']),
        ("search.population=true", ["search.population must be a whole number", "got true"]),
        ("search.population=8.5", ["search.population must be a whole number", "got 8.5"]),
        ("search.diagonal=1", ["search.diagonal must be true or false", "got 1"]),
        ("model.revision=1234", ["model.revision must be a text (put it in quotes) or null", "got 1234"]),
        ("memory.cap=much", ["memory.cap must be a whole number or null", 'got "much"']),
        ("memory.heads=evn", ["memory.heads must be 'even' or 'ragged'", 'got "evn"']),
        ("memory.window=31", ["memory.window must be twice memory.hop", "31"]),
        ("memory=3", ["memory must be a section of keys", "got 3"]),
        ("tasks=facts_prose", ["tasks must be a list", 'got "facts_prose"']),
        ("tasks=[]", ["tasks must be a list of at least one task", "got []"]),
        ("tasks.1.kind=facts_prose", ["tasks must be different in kind or length", "facts_prose-256"]),
        ("tasks.0.num_facts=0", ["tasks.0: num_facts"]),
        ("examples.per_generation=999", ["examples.per_generation must be from 1 to examples.pool", "got 999"]),
        ("search.sigma=.nan", ["search.sigma must be positive and finite", "got nan"]),
        ("evaluation.rivals=[h20]", ["evaluation.rivals.0 must be", "'h2o'", 'got "h20"']),
        ("evaluation.lengths=[512, 256]", ["evaluation.lengths must be positive and increasing", "(512, 256)"]),
        ("cluster.workers=many", ['cluster.workers must be a whole number or a list of 2 whole numbers: got "many"']),
        ("cluster.workers=[1]", ["cluster.workers must be a whole number or a list of 2 whole numbers: got [1]"]),
        (
            "cluster.workers=[1, a]",
            ['cluster.workers must be a whole number or a list of 2 whole numbers: got [1, "a"]'],
        ),
        ("memory.layout=[1]", ["memory.layout must be a list of 2 whole numbers or null: got [1]"]),
        ("memory.layout=[1, 2, 3]", ["memory.layout must be a list of 2 whole numbers or null: got [1, 2, 3]"]),
        ("memory.layout=[a, b]", ['memory.layout must be a list of 2 whole numbers or null: got ["a", "b"]']),
        ("memory.layout=7", ["memory.layout must be a list of 2 whole numbers or null: got 7"]),
        ("tasks=[7]", ["tasks.0 must be a section of keys: got 7"]),
        ("fitness.weights=[1]", ["fitness.weights must be a section of keys: got [1]"]),
        ("model.max_memory=3", ["model.max_memory must be a section of keys or null: got 3"]),
        ("tasks.5.length=512", ["for '5' give the position in a list of 2"]),
        ("seed.x=1", ["there is no 'x' in 0"]),
        ("seed", ["must look like search.population=8"]),
        ("search..sigma=1", ["must look like search.population=8"]),
        ("seed=[1", ["override 'seed=[1', line 1: not valid YAML"]),
    ],
)
def test_a_wrong_override_is_named_with_its_remedy(override, words):
    line = complaint("small", override)
    assert [word for word in [f"override '{override}'", *words] if word not in line] == []
    assert line.count("must be") <= 1
    assert " more)" not in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=2001-02-30", 'seed must be a whole number: got "2001-02-30"'),
        ("seed=!!int foo", "line 1: not valid YAML: 'foo' is no int"),
        ("seed=!!bool foo", "line 1: not valid YAML: 'foo' is no bool"),
        ("seed=!!map foo", "line 1: not valid YAML: expected a section of keys"),
        ("seed=!!timestamp x", 'seed must be a whole number: got "x"'),
        ("search={? [a] : 1}", "line 1: not valid YAML: a key must be a word"),
        ("search={2020-01-01: 1}", "unknown key 'search.2020-01-01'"),
        ("search=&a [*a]", "line 1: not valid YAML: it holds itself"),
        ("search=&a {sigma: *a}", "line 1: not valid YAML: it holds itself"),
        (f"seed={'9' * 5000}", f"line 1: not valid YAML: '{'9' * 57}...' is no int"),
        (f"seed=0x{'f' * 5000}", f"line 1: not valid YAML: '0x{'f' * 55}...' is no int"),
        (f"seed={'[' * 3000}", "not valid YAML: lists or sections lie in each other too deeply"),
    ],
    ids=lambda value: value[:30],
)
def test_what_yaml_can_say_and_settings_cannot_be_is_one_line(override, words):
    line = complaint("small", override)
    assert line.startswith(f"override '{override[:100]}")
    assert words in line
    assert len(line) < 300


def test_sections_may_be_named_once_and_used_again(tmp_path):
    file = write(
        tmp_path, "mine.yaml", "extends: small\nsearch: {<<: &mine {sigma: 0.5, population: 6}, population: 8}"
    )
    assert (load_config(file).search.sigma, load_config(file).search.population) == (0.5, 8)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("memory.update_every=512", "tasks.0.length must be at least memory.update_every (512), or nothing is ever"),
        ("model.device=cuda", "cluster.accelerators_per_worker must be above 0 when model.device is cuda"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(override, words):
    assert words in complaint("small", override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: small\nsearch: {popsize: 8}", ["unknown key 'search.popsize'", "allowed in search: optimizer"]),
        ("extends: small\nsearch: {sigma: wide}", ["search.sigma must be a number", 'got "wide"']),
        ("extends: small\nmodel: null", ["model must be a section of keys", "got null"]),
        ("model: {device: cpu}", ["required key", "is missing", "(and"]),
        ("", ["must hold sections of keys", "got null"]),
        ("- seed", ["must hold sections of keys", 'got ["seed"]']),
        ("seed: [", ["line 1", "not valid YAML"]),
        ("seed: 1\nseed: 2", ["line 2", "key 'seed' appears twice"]),
        ("extends: 3", ["extends must be the name of a preset or a path", "got 3"]),
    ],
)
def test_a_wrong_file_is_named_with_the_remedy(tmp_path, text, words):
    file = write(tmp_path, "mine.yaml", text)
    line = complaint(file)
    assert [word for word in [str(file), *words] if word not in line] == []


def test_a_mistake_in_an_extended_file_is_charged_to_that_file(tmp_path):
    base = write(tmp_path, "base.yaml", "extends: small\nsearch: {population: 1}")
    child = write(tmp_path, "child.yaml", "extends: base.yaml\nsearch: {sigma: 0.1}")
    assert complaint(child).startswith(f"{base}: search.population must be at least 2")


def test_a_missing_required_key_is_charged_to_the_file_that_was_asked_for(tmp_path):
    file = write(tmp_path, "mine.yaml", "extends: small\nmodel: null")
    assert complaint(file, "model.device=cpu") == f"{file}: required key 'model.path_or_id' is missing"


def test_files_that_extend_each_other_are_refused(tmp_path):
    one = write(tmp_path, "one.yaml", "extends: two.yaml")
    write(tmp_path, "two.yaml", "extends: one.yaml")
    line = complaint(one)
    assert "in a circle" in line
    assert line.count("one.yaml") == 2


def test_an_unknown_preset_is_answered_with_the_known_ones():
    line = complaint("smal")
    assert "did you mean 'small'?" in line
    assert "llama3-8b" in line


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Path.exists, id="absent"),
        pytest.param(Path.mkdir, id="folder"),
        pytest.param(lambda file: file.write_bytes(b"\xff\xfe\x00"), id="not-utf8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make):
    file = tmp_path / "mine.yaml"
    make(file)
    assert complaint(file).startswith(f"cannot read {file}: ")


@pytest.mark.parametrize(
    "build",
    [
        lambda: ExampleSettings(pool=0, per_generation=1, heldout=1),
        lambda: ExampleSettings(pool=4, per_generation=5, heldout=1),
        lambda: ExampleSettings(pool=4, per_generation=4, heldout=0),
        lambda: SearchSettings(population=1, generations=1),
        lambda: SearchSettings(population=2, generations=0),
        lambda: SearchSettings(population=2, generations=1, sigma=float("inf")),
        lambda: SearchSettings(population=2, generations=1, optimizer=""),
        lambda: FitnessSettings(kept_price=-0.1),
        lambda: UnitSettings(candidates_per_unit=0, examples_per_unit=1),
        lambda: UnitSettings(candidates_per_unit=1, examples_per_unit=0),
        lambda: ClusterSettings(workers=0),
        lambda: ClusterSettings(workers=(0, 2)),
        lambda: ClusterSettings(workers=(4, 2)),
        lambda: ClusterSettings(unit_timeout_seconds=0.0),
        lambda: ClusterSettings(drain_seconds=-1.0),
        lambda: ClusterSettings(cpus_per_worker=-1),
        lambda: ClusterSettings(attempts_per_unit=0),
        lambda: ClusterSettings(address=""),
        lambda: TrackingSettings(experiment=""),
        lambda: EvaluationSettings(lengths=()),
        lambda: EvaluationSettings(lengths=(0, 256)),
        lambda: EvaluationSettings(lengths=(256,), rivals=("h2o", "h2o")),
        lambda: toy_config(seed=-1),
        lambda: toy_config(tasks=()),
    ],
)
def test_settings_out_of_bounds_are_refused_when_built(build):
    with pytest.raises(ConfigError, match=r"^[a-z_.]+ must be .+: got "):
        build()


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_survives_json_exactly(name):
    config = load_config(name)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_an_unknown_key_in_stored_settings_is_refused():
    with pytest.raises(ConfigError, match=r"configuration: unknown key 'search.popsize'"):
        config_from_dict({**config_to_dict(toy_config()), "search": {"popsize": 3}})


@pytest.mark.parametrize(
    "override",
    [
        "search.generations=99",
        "cluster.workers=7",
        "cluster.address=auto",
        "tracking.enabled=false",
        "evaluation.lengths=[64]",
    ],
)
def test_the_hash_ignores_what_cannot_change_the_trajectory(override):
    before, after = load_config("small"), load_config("small", [override])
    assert config_hash(before) == config_hash(after)
    assert differences(config_to_dict(before), config_to_dict(after)) == []


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model.dtype=bfloat16",
        "memory.ema=0.9",
        "tasks.0.seed=1",
        "examples.pool=64",
        "search.population=8",
        "fitness.kept_price=0.25",
        "units.candidates_per_unit=8",
    ],
)
def test_the_hash_and_the_differences_name_what_decides_the_trajectory(override):
    before, after = load_config("small"), load_config("small", [override])
    assert config_hash(before) != config_hash(after)
    assert differences(config_to_dict(before), config_to_dict(after)) == [override.partition("=")[0]]


def test_a_task_more_is_a_difference_by_its_position():
    one, two = (
        toy_config(),
        toy_config(tasks=(GeneratedTaskSettings(kind="facts_prose"), GeneratedTaskSettings(kind="facts_code"))),
    )
    assert "tasks.1.kind" in differences(config_to_dict(one), config_to_dict(two))


def test_a_whole_number_for_a_real_one_hashes_alike():
    assert config_hash(toy_config(fitness=FitnessSettings(kept_price=0))) == config_hash(toy_config())


@pytest.mark.parametrize(("text", "fewest", "most"), [("3", 3, 3), ("[2, 64]", 2, 64), ("[1, 1]", 1, 1)])
def test_workers_are_a_number_or_a_range(text, fewest, most):
    cluster = load_config("small", (f"cluster.workers={text}",)).cluster
    assert (cluster.fewest_workers, cluster.most_workers) == (fewest, most)


@pytest.mark.parametrize("text", ["two", "2.5", "[2]", "[1, 2, 3]", "true", "null"])
def test_workers_that_are_neither_are_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"cluster\.workers"):
        load_config("small", (f"cluster.workers={text}",))

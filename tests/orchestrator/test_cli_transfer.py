"""``namm transfer`` as a user runs it."""

import json

import pytest

from orchestrator.cli import main
from orchestrator.targets import GROUPS
from workers.memory.pretrained import PretrainedMemory
from workers.shapes import SHAPES
from workers.training import new_model, save

HERE = ("cluster.address=in-process", "examples.pool=4", "examples.per_generation=2")
FEW = ("--examples", "2", "--rivals", "recent,h2o")


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory):
    """An untrained model of another shape: nothing is learned from its scores."""
    folder = tmp_path_factory.mktemp("models") / "other"
    save(new_model(5, SHAPES["wide-llama"]), folder)
    return folder


def carried(capsys, *words):
    assert main(["transfer", *map(str, words), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_a_memory_is_compared_on_another_model_with_both_statistics(finished_run, other_llama, capsys):
    document = carried(capsys, finished_run.folder, "--to", other_llama, *HERE, *FEW)
    assert [(row["model"], row["statistics"], row["length"]) for row in document["table"]] == [
        (str(other_llama), "evolved", 256),
        (str(other_llama), "re-estimated", 256),
    ]
    for row in document["table"]:
        assert set(row["cells"]) == {"full", "namm", "one-head", "recent", "h2o"}
        assert row["cells"]["full"]["value"] == 100.0
        assert row["num_examples"] == 4  # two of each of two tasks
    names = {result["name"] for result in document["models"][0]["results"]}
    assert {"full", "namm-evolved", "namm-re-estimated", "h2o-head-at-namm-evolved"} <= names
    kept = {result["name"]: result["kept_ratio"] for result in document["models"][0]["results"]}
    for way in ("evolved", "re-estimated"):  # equal bytes, rounded up to whole tokens
        rival = kept[f"h2o-uniform-at-namm-{way}"]
        assert kept[f"namm-{way}"] <= rival + 0.01
        assert rival == pytest.approx(kept[f"namm-{way}"], abs=0.02)


def test_statistics_re_estimated_on_the_model_it_was_evolved_on_are_those_it_has(finished_run, capsys):
    words = (finished_run.folder, "--to", "small-llama", *HERE, "--examples", "2", "--rivals", "none")
    evolved, estimated = carried(capsys, *words)["table"]
    assert PretrainedMemory.from_pretrained(finished_run.champion).spec.normalisation is not None
    for name, cell in evolved["cells"].items():
        assert estimated["cells"][name] == pytest.approx(cell)
    assert estimated["kept_ratio"] == pytest.approx(evolved["kept_ratio"])


def test_the_result_is_printed_and_written(finished_run, other_llama, tmp_path, capsys):
    words = ["--to", str(other_llama), "--statistics", "evolved", "--tasks", "facts_code-320", "--output"]
    path = tmp_path / "new" / "table.md"
    assert main(["transfer", str(finished_run.champion), *words, str(path), *HERE, *FEW, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "95 % intervals over 2 examples" in out
    assert "time  models " in out
    header, _, row = path.read_text(encoding="utf-8").splitlines()
    assert header.startswith("| model | task | statistics | kept | KB | full | namm | ")
    assert "| 320 tokens | evolved |" in row or "| 256 tokens | evolved |" in row


def test_a_group_of_models_is_a_table_of_its_own():
    assert GROUPS["language"] == ("deep-llama", "wide-llama", "mqa-llama")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", "--to", "small-llama"], "there is nothing to evaluate at 'nothing'"),
        (["h2o", "--to", "small-llama"], "h2o is a rival, not a saved memory"),
        (["MEMORY", "--to", "./nowhere"], "no model at './nowhere'"),
        (["MEMORY", "--to", "small-llama", "--tasks", "fact_prose"], "did you mean facts_prose?"),
        (["MEMORY", "--to", "small-llama", "--output", "x.txt"], "its name must end in .json or .md"),
        (["MEMORY", "--to", "small-llama", "--output", "."], "must end in .json or .md"),
        (["MEMORY", "--to", "small-llama", "examples.heldouts=3"], "examples.heldouts"),
        (["MEMORY", "--to", "small-llama", "--rivals", "full"], "there is no rival 'full' to compare with"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(words, told, finished_run, capsys):
    words = [str(finished_run.champion) if word == "MEMORY" else word for word in words]
    assert main(["transfer", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1

"""``namm evaluate``: a memory beside its rivals, or a rival alone, on the small Llama."""

import json
import shutil

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.commands.evaluate import score_on
from orchestrator.config import load_config
from orchestrator.fleet import fleet_for
from orchestrator.run import worker_recipe
from orchestrator.units import plan_units
from tests.orchestrator.conftest import TINY
from workers.memory.specs import NammSpec

LONG_NAME = "a" * 240
"""That a file may have, but not one with anything added to its name."""
HERE = ("cluster.address=in-process", "examples.pool=4", "examples.per_generation=2")


def evaluated(capsys, *words):
    """The JSON document of an evaluation."""
    assert main(["evaluate", *words, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_a_run_folder_means_its_champion_under_its_own_settings(finished_run, capsys):
    document = evaluated(capsys, str(finished_run.folder))
    assert [row["name"] for row in document["table"]] == [row["name"] for row in finished_run.summary["table"]]
    for row, former in zip(document["table"], finished_run.summary["table"], strict=True):
        assert row.pop("seconds") > 0
        assert row == pytest.approx(former)


def test_evaluating_writes_nothing_into_the_run(finished_run):
    before = {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")}
    assert main(["evaluate", str(finished_run.folder), "--rivals", "none", "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished_run.folder.rglob("*")} == before


def test_lengths_examples_and_rivals_can_be_chosen(finished_run, capsys):
    words = ["--preset", "small", "--lengths", "256,320", "--examples", "1", "--rivals", "truncation,recent"]
    assert main(["evaluate", str(finished_run.champion), *HERE, *words]) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()[1:] if line]
    assert {(row[0], row[1]) for row in rows} == {
        (length, name)
        for length in ("256", "320")
        for name in ("full", "namm", "one-head", "truncation", "recent-uniform", "recent-layer", "recent-head")
    }
    assert {row[-2] for row in rows} == {"2"}  # one example of each of two tasks
    assert captured.err.startswith("evaluation: ")


def test_a_rival_alone_keeps_what_it_is_told_to(capsys):
    full, rival = evaluated(capsys, "h2o", "--config", "small", *HERE, "--examples", "1", "--kept-ratio", "0.4")[
        "table"
    ]
    assert (full["name"], full["kept_ratio"]) == ("full", 1.0)
    assert (rival["name"], rival["kept_ratio"]) == ("h2o", pytest.approx(0.4, abs=0.01))


def test_a_rival_alone_keeps_a_quarter_unless_told_otherwise(capsys):
    _, rival = evaluated(capsys, "recent", *HERE, "--examples", "1")["table"]
    assert rival["kept_ratio"] == pytest.approx(0.25, abs=0.01)


def test_the_full_cache_can_be_evaluated_alone(capsys):
    document = evaluated(capsys, "full", *HERE, "--examples", "1")
    assert [row["name"] for row in document["table"]] == ["full"]
    assert document["table"][0]["exact"] >= 0.9


def test_the_document_can_be_written_to_a_file_as_well(tmp_path, capsys):
    document = evaluated(capsys, "full", *HERE, "--examples", "1", "--output", str(tmp_path / "new" / "full.json"))
    assert json.loads((tmp_path / "new" / "full.json").read_text()) == document
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["full.json"]


@pytest.mark.cluster
def test_workers_on_ray_give_the_same_scores(finished_run, capsys):
    words = [str(finished_run.folder), "cluster.address=null", "cluster.workers=1", "--rivals", "none"]
    document = evaluated(capsys, *words)
    former = {row["name"]: row for row in finished_run.summary["table"]}
    assert all(row | {"seconds": 0} == pytest.approx(former[row["name"]] | {"seconds": 0}) for row in document["table"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "there is nothing to evaluate at 'nothing'"),
        (["h2o", "--preset", "smal"], "did you mean 'small'?"),
        (["h2o", "model.path_or_id=./nowhere"], "no model at './nowhere'"),
        (["h2o", "--lengths", "long"], "evaluation.lengths.0 must be a whole number"),
        (["h2o", "--output", "."], "--output . is a folder"),
        (["h2o", "--output", f"{LONG_NAME}.csv"], "File name too long"),
        ([2 * LONG_NAME], "aaa: File name too long; choose a shorter name"),
        (["h2o", "cluster.address=127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(words, told, capsys):
    assert main(["evaluate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_a_saved_memory_of_another_architecture_is_refused(finished_run, tmp_path, capsys):
    config = json.loads((finished_run.champion / "config.json").read_text())
    config["settings"]["hidden_size"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((finished_run.champion / "model.safetensors").read_bytes())
    assert main(["evaluate", str(tmp_path), *HERE]) == 2
    assert "the genome has 2124 numbers, its settings need 1100" in capsys.readouterr().err


def test_the_dial_of_a_saved_memory_is_turned_for_each_length(finished_run, capsys):
    words = ["--lengths", "256,320", "--rivals", "recent", "--kept-ratio", "0.5"]
    document = evaluated(capsys, str(finished_run.folder), *words)
    kept = {(row["length"], row["name"]): row["kept_ratio"] for row in document["table"]}
    assert kept[256, "namm"] == pytest.approx(0.5, abs=0.03)
    assert kept[320, "namm"] == pytest.approx(0.5, abs=0.03)
    assert kept[320, "recent-uniform"] == pytest.approx(kept[320, "namm"], abs=0.01)
    thresholds = document["thresholds"]["namm"]
    assert set(thresholds) == {f"facts_{kind}-{length}" for kind in ("prose", "code") for length in (256, 320)}
    assert 0.0 not in thresholds.values()


def test_a_memory_is_evaluated_as_it_was_saved_unless_told_otherwise(finished_run, capsys):
    assert evaluated(capsys, str(finished_run.folder), "--rivals", "none")["thresholds"]["namm"] == {
        "facts_prose-256": 0.0,
        "facts_code-256": 0.0,
    }


def test_one_name_may_stand_for_one_memory_at_two_settings_of_its_dial():
    config = load_config("small", TINY)
    with fleet_for(worker_recipe(config), config.cluster) as fleet:
        score = score_on(fleet, lambda _progress: None)
        units = [
            plan_units(
                generation=0,
                memory_name="namm",
                memory=NammSpec(settings=config.memory, threshold=threshold),
                genomes=np.zeros((1, config.memory.genome_size), np.float32),
                examples={task.name: (0,) for task in config.tasks},
                split="train",
                settings=config.units,
            )
            for threshold in (100.0, -100.0)
        ]
        least, most, again = (score(chosen) for chosen in (*units, units[0]))
    assert least[0].held_tokens.mean() < 0.5 * most[0].held_tokens.mean()
    assert again[0] is least[0]


def test_a_share_that_no_threshold_keeps_is_refused(finished_run, capsys):
    assert main(["evaluate", str(finished_run.folder), "--quiet", "--kept-ratio", "0.01"]) == 2
    told = capsys.readouterr().err
    assert "no threshold keeps 0.01: least is" in told
    assert told.count("\n") == 1


def test_a_run_without_champion_has_nothing_to_evaluate_yet(tmp_path, finished_run, capsys):
    shutil.copytree(finished_run.folder / "journal", tmp_path / "journal")
    assert main(["evaluate", str(tmp_path), *TINY]) == 2
    assert f"namm resume {tmp_path}" in capsys.readouterr().err

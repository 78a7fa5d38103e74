"""``namm transfer`` as a user runs it."""

import json
import sys

import numpy as np
import pytest
from transformers import Qwen2_5_VLConfig

from orchestrator.cli import main
from orchestrator.config import SearchSettings
from orchestrator.targets import GROUPS
from orchestrator.transfer import SearchThere
from tasks.control_data import Episode, write_parquet
from tests.tasks.clips import write_long_video_bench, write_mlvu
from workers.control_model import ControlSettings
from workers.control_training import TrainingSettings, new_controller, save_controller
from workers.memory.pretrained import PretrainedMemory
from workers.shapes import SHAPES
from workers.training import new_model, save
from workers.vision_training import new_vision_model, save_vision

HERE = ("cluster.address=in-process", "examples.pool=4", "examples.per_generation=2")
FEW = ("--examples", "2", "--rivals", "recent,h2o")


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory):
    """An untrained model of another shape: nothing is learned from its scores."""
    folder = tmp_path_factory.mktemp("models") / "other"
    save(new_model(5, SHAPES["mqa-llama"]), folder)
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
    assert header.startswith("| model | task | memory | kept | KB | full | namm | ")
    assert "| 320 tokens | evolved |" in row or "| 256 tokens | evolved |" in row


def test_a_group_of_models_is_a_table_of_its_own():
    assert GROUPS["language"] == ("deep-llama", "mqa-llama", "wide-llama")
    assert GROUPS["control"] == ("cheetah-dt",)
    assert GROUPS["vision"] == ("shapes-vlm",)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", "--to", "small-llama"], "there is nothing to evaluate at 'nothing'"),
        (["h2o", "--to", "small-llama"], "h2o is a rival, not a saved memory"),
        (["MEMORY", "--to", "./nowhere"], "no model at './nowhere'"),
        (["MEMORY", "--to", "small-llama", "--tasks", "fact_prose"], "did you mean facts_prose?"),
        (["MEMORY", "--to", "small-llama", "--output", "x.txt"], "its name must end in one of .json, .md"),
        (["MEMORY", "--to", "small-llama", "--output", "."], "--output . is a folder"),
        (["MEMORY", "--to", "language,control"], "--to names models of several kinds (control, language)"),
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


# --- control ----------------------------------------------------------------------------------------------------------

SHORT = ("cluster.address=in-process", "--max-steps", "70", "--examples", "3", "--rivals", "recent")


def controller(folder, environment="Hopper-v5", size=11, actions=3):
    """An untrained Decision Transformer: nothing is learned from its returns."""
    settings = ControlSettings(
        environment=environment,
        state_mean=(0.0,) * size,
        state_deviation=(1.0,) * size,
        return_scale=1000.0,
        target_return=500.0,
        window_steps=4,
    )
    save_controller(new_controller(TrainingSettings(hidden_size=16), size, actions), settings, folder)
    return folder


def test_a_memory_acts_in_an_environment(finished_run, tmp_path, capsys):
    folder = controller(tmp_path, "HalfCheetah-v5", 17, 6)
    document = carried(capsys, finished_run.folder, "--to", folder, *SHORT)
    assert document["figure"] == "return in HalfCheetah"
    assert [row["statistics"] for row in document["table"]] == ["evolved", "re-estimated"]
    for row in document["table"]:
        assert set(row["cells"]) == {"full", "namm", "window-4", "recent"}
        assert (row["task"], row["num_examples"]) == ("HalfCheetah-v5", 3)
        cell = row["cells"]["full"]
        assert -500 < cell["low"] <= cell["value"] <= cell["high"] < 500
    told = document["models"][0]
    assert (told["learned_from"], told["max_steps"]) == ("HalfCheetah-v5", 70)
    kept = {(result["name"], result["task"]): result["kept_ratio"] for result in told["results"]}
    assert kept["window-4", "HalfCheetah-v5"] == pytest.approx(4 / 70)
    assert kept["full", "HalfCheetah-v5"] == 1.0


@pytest.mark.parametrize(("environment", "size", "actions"), [("Hopper-v5", 11, 3), ("Walker2d-v5", 17, 6)])
def test_episodes_that_end_at_different_steps_are_compared_as_well(
    environment, size, actions, finished_run, tmp_path, capsys
):
    folder = controller(tmp_path, environment, size, actions)
    document = carried(capsys, finished_run.folder, "--to", folder, *SHORT, "--statistics", "evolved")
    (row,) = document["table"]
    assert row["task"] == environment
    assert row["cells"]["full"]["value"] != 0
    found = {result["name"]: result for result in document["models"][0]["results"]}
    assert found["full"]["seen_tokens"] > 64  # an untrained one stands long enough for an update
    assert found["full"]["kept_ratio"] == 1.0
    assert found["namm-evolved"]["kept_ratio"] < 1.0


def recorded(folder, num_episodes=2):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = ((5, 11), (5, 3), (5,))
    episodes = [
        Episode(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes)) for _ in range(num_episodes)
    ]
    write_parquet(folder / "0000.parquet", episodes)


@pytest.mark.parametrize(
    ("environment", "words", "told"),
    [
        ("Hopper-v5", ["--tasks", "Ant-v5"], "there is no environment 'Ant-v5'"),
        ("Hopper-v5", ["--tasks", "Hopper-v5,Walker2d-v5"], "acts in the one environment it has learned from"),
        ("Hopper-v4", [], "learned from episodes of Hopper-v4, but is to act in Hopper-v5"),
        ("Walker2d-v5", [], "reads states of 11 numbers, but Walker2d-v5 has 17"),
        ("Hopper-v5", ["--data", "nowhere"], "there are no recorded episodes at nowhere"),
    ],
    ids=["unknown", "several", "version", "shapes", "data"],
)
def test_what_cannot_be_acted_in_is_one_line_and_exit_2(environment, words, told, finished_run, tmp_path, capsys):
    folder = controller(tmp_path, environment)
    assert main(["transfer", str(finished_run.champion), "--to", str(folder), *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_another_version_may_be_allowed(finished_run, tmp_path, capsys):
    folder = controller(tmp_path / "model", "Hopper-v2")
    recorded(tmp_path / "hopper-medium-v2")
    words = (
        "--to",
        folder,
        "--data",
        tmp_path / "hopper-medium-v2",
        "--other-version",
        *SHORT,
        "--statistics",
        "evolved",
    )
    (told,) = carried(capsys, finished_run.champion, *words)["models"]
    assert told["learned_from"] == "Hopper-v2"
    assert told["target_return"] == 3600.0  # as the published models are asked


@pytest.mark.parametrize("module", ["gymnasium", "mujoco"])
def test_a_missing_extra_is_named_before_anything_is_trained(module, finished_run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["transfer", str(finished_run.champion), "--to", "control"]) == 2
    assert "pip install 'namm-orchestrator[control]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- vision -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def watcher(tmp_path_factory):
    """An untrained vision-language model."""
    folder = tmp_path_factory.mktemp("models") / "watcher"
    save_vision(new_vision_model(0), folder)
    return folder


def test_a_memory_watches_made_up_clips_beside_one_that_was_evolved_there(
    finished_run, watcher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path))
    short = SearchThere(search=SearchSettings(population=3, generations=1), pool=2, per_generation=1)
    monkeypatch.setattr("orchestrator.targets_vision.SearchThere", lambda: short)
    monkeypatch.setattr("orchestrator.targets_vision.REMARK_CLIPS", 2)
    words = ("--to", watcher, "--tasks", "shapes-24", "cluster.address=in-process", *FEW)
    document = carried(capsys, finished_run.folder, *words)
    assert [row["statistics"] for row in document["table"]] == ["evolved", "re-estimated", "there"]
    for row in document["table"]:
        assert set(row["cells"]) == {"full", "namm", "one-head", "recent", "h2o"}
        assert set(row["remarks"]) == {"redundant forgotten", "shapes forgotten"}
        assert row["task"] == "shapes-24"
    assert [path.name.startswith("watcher-") for path in (tmp_path / "memories").iterdir()] == [True]
    assert carried(capsys, finished_run.folder, *words)["table"] == document["table"]  # found again


@pytest.mark.parametrize(
    ("suite", "write"), [("longvideobench", write_long_video_bench), ("mlvu-2_needle", write_mlvu)]
)
def test_a_suite_of_clips_is_asked_from_its_own_files(suite, write, finished_run, watcher, tmp_path, capsys):
    write(tmp_path)
    words = ("--to", watcher, "--tasks", suite, "--data", tmp_path, "cluster.address=in-process", "--rivals", "none")
    document = carried(capsys, finished_run.folder, *words)
    assert [row["task"] for row in document["table"]] == [suite] * 2
    assert document["figure"] == "answered rightly, in percent"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "say with --tasks what to ask"),
        (["--tasks", "clips"], "there is no 'clips' to ask about clips"),
        (["--tasks", "longvideobench", "--data", "nowhere"], "it is gated (CC-BY-NC-SA-4.0)"),
    ],
    ids=["nothing", "unknown", "gated"],
)
def test_what_cannot_be_watched_is_one_line_and_exit_2(words, told, finished_run, watcher, capsys):
    assert main(["transfer", str(finished_run.champion), "--to", str(watcher), *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--tasks", "mlvu"]], ids=["nothing", "suite"])
def test_a_model_whose_positions_and_frames_are_not_known_is_refused_by_name(words, finished_run, tmp_path, capsys):
    config = Qwen2_5_VLConfig(text_config={"hidden_size": 32, "num_hidden_layers": 1})
    config.save_pretrained(tmp_path)
    assert main(["transfer", str(finished_run.champion), "--to", str(tmp_path), *words]) == 2
    captured = capsys.readouterr()
    assert f"{tmp_path} is a qwen2_5_vl: how it takes frames is known here of llava_next_video" in captured.err
    assert captured.err.count("\n") == 1


def test_a_clip_that_cannot_be_decoded_is_named_before_any_worker_starts(finished_run, watcher, tmp_path, capsys):
    folder = write_long_video_bench(tmp_path)
    (folder / "videos" / "v2.mp4").write_bytes(b"no video")
    words = ["--to", str(watcher), "--tasks", "longvideobench", "--data", str(tmp_path)]
    assert main(["transfer", str(finished_run.champion), *words]) == 2
    assert "v2.mp4 cannot be decoded" in capsys.readouterr().err


def test_a_missing_decoder_is_named_before_any_worker_starts(finished_run, watcher, tmp_path, monkeypatch, capsys):
    write_long_video_bench(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    words = ["--to", str(watcher), "--tasks", "longvideobench", "--data", str(tmp_path)]
    assert main(["transfer", str(finished_run.champion), *words]) == 2
    assert "pip install 'namm-orchestrator[vision]'" in capsys.readouterr().err

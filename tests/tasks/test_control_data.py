"""Recorded episodes in the two published formats, and what is wrong with them."""

import sys

import numpy as np
import pytest

from tasks.control import environment_named, make_environment, require_same_version
from tasks.control_data import PUBLISHED, Episode, Recording, read_recording, write_parquet
from tasks.errors import TaskError


def episodes(num_episodes=3, steps=4):
    rng = np.random.default_rng(1)
    shapes = ((steps, 11), (steps, 3), (steps,))
    return [Episode(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes)) for _ in range(num_episodes)]


def same(recording, expected):
    assert len(recording.episodes) == len(expected)
    for found, wanted in zip(recording.episodes, expected, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_parquet_as_on_the_hub_is_read(tmp_path):
    folder = tmp_path / "hopper-medium-v2" / "train"
    folder.mkdir(parents=True)
    made = episodes()
    write_parquet(folder / "0000.parquet", made[:2])
    write_parquet(folder / "0001.parquet", made[2:])
    recording = read_recording(tmp_path / "hopper-medium-v2")
    assert recording.environment == "Hopper-v2"
    same(recording, made)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that author and code should be told
def test_a_minari_data_set_is_read(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = episodes()
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=np.concatenate([each.observations, each.observations[-1:]]).astype(np.float64),
            actions=each.actions,
            rewards=each.rewards.astype(np.float64),
            terminations=np.zeros(4, bool),
            truncations=np.array([False, False, False, True]),
        )
        for number, each in enumerate(made)
    ]
    env = make_environment("Hopper-v5")
    minari.create_dataset_from_buffers("mujoco/hopper/made-up-v0", buffers, env=env, eval_env=env)
    recording = read_recording(tmp_path / "mujoco" / "hopper" / "made-up-v0")
    assert recording.environment == "Hopper-v5"
    same(recording, made)


def test_states_are_scaled_by_what_was_recorded():
    made = episodes()
    mean, deviation = Recording("Hopper-v5", tuple(made)).state_statistics()
    every = np.concatenate([each.observations for each in made])
    np.testing.assert_allclose(mean, every.mean(0), atol=1e-6)
    np.testing.assert_allclose(deviation, every.std(0), atol=1e-5)


def test_every_published_model_has_its_data():
    assert PUBLISHED["edbeeching/decision-transformer-gym-walker2d-medium-replay"] == "walker2d-medium-replay-v2"
    assert len(PUBLISHED) == 9


def test_a_place_without_episodes_says_what_to_stage(tmp_path):
    with pytest.raises(TaskError, match=r"there are no recorded episodes at .*edbeeching"):
        read_recording(tmp_path / "nothing")


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "hopper-medium-v2.parquet").write_bytes(b"half a file")
    with pytest.raises(TaskError, match="cannot be read as Parquet"):
        read_recording(tmp_path / "hopper-medium-v2.parquet")


def test_rows_of_another_data_set_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "hopper-medium-v2.parquet"
    pq.write_table(pa.table({"observations": [[[1.0]]], "text": ["x"]}), path)
    with pytest.raises(TaskError, match="has no column 'actions'"):
        read_recording(path)


def test_an_episode_with_a_missing_step_is_named(tmp_path):
    (broken,) = episodes(1)
    path = tmp_path / "hopper-medium-v2.parquet"
    write_parquet(path, [Episode(broken.observations, broken.actions[:-1], broken.rewards)])
    with pytest.raises(TaskError, match=r"row 0 is no episode"):
        read_recording(path)


def test_data_must_tell_its_environment(tmp_path):
    write_parquet(tmp_path / "mine.parquet", episodes())
    with pytest.raises(TaskError, match="does not tell its environment"):
        read_recording(tmp_path / "mine.parquet")


def test_another_version_than_the_datas_is_refused_with_both_remedies():
    require_same_version("Hopper-v5", "Hopper-v5")
    with pytest.raises(TaskError, match=r"learned from episodes of Hopper-v2, but is to act in Hopper-v5.*--tasks Hop"):
        require_same_version("Hopper-v2", "Hopper-v5")


def test_environments_that_cannot_be_judged_are_refused():
    with pytest.raises(TaskError, match="name one of HalfCheetah-v5, Hopper-v5, Walker2d-v5"):
        environment_named("Ant-v5")


def test_a_version_that_gymnasium_has_no_more_is_named():
    pytest.importorskip("gymnasium")
    with pytest.raises(TaskError, match="has no 'Hopper-v1'"):
        make_environment("Hopper-v1")


@pytest.mark.parametrize("module", ["gymnasium", "mujoco"])
def test_a_missing_extra_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TaskError, match=r"control: a package is needed .*pip install 'namm-orchestrator\[control\]'"):
        make_environment("Hopper-v5")

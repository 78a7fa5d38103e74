"""Recorded episodes in the two formats that they are published in.

``edbeeching/decision_transformer_gym_replay`` on the hub holds D4RL's episodes as Parquet: a row is an episode with the
nested lists ``observations``, ``actions``, ``rewards`` and ``dones``. Minari, D4RL's successor, keeps HDF5 files with a
specification of the environment in a folder such as ``mujoco/hopper/medium-v0``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.control import ENVIRONMENTS, EXTRA
from tasks.errors import TaskError
from tasks.libraries import library

REPLAY_HUB_ID = "edbeeching/decision_transformer_gym_replay"
REPLAY_BRANCH = "refs/convert/parquet"
"""The data set itself is a loading script, which is not run; this branch has the same rows as Parquet."""

COLUMNS = ("observations", "actions", "rewards", "dones")

PUBLISHED = MappingProxyType(
    {
        f"edbeeching/decision-transformer-gym-{name.lower()}-{level}": f"{name.lower()}-{level}-v2"
        for name in ENVIRONMENTS
        for level in ("medium", "medium-replay", "expert")
    }
)
"""Published Decision Transformers on the hub, and the configuration of the data set that each has learned from."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One recorded episode of T steps."""

    observations: npt.NDArray[np.float32]
    """``[T, size]``: what each action was chosen from."""
    actions: npt.NDArray[np.float32]
    """``[T, actions]``"""
    rewards: npt.NDArray[np.float32]
    """``[T]``"""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Episodes of one environment."""

    environment: str
    """With its version, as in ``Hopper-v5``."""
    episodes: tuple[Episode, ...]

    def state_statistics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of the observations, float64 ``[size]`` each: what models are given is scaled."""
        every = np.concatenate([episode.observations for episode in self.episodes]).astype(np.float64)
        return every.mean(axis=0), every.std(axis=0) + 1e-6


def read_recording(place: Path) -> Recording:
    """Episodes from a Parquet file, a folder of such files, or the folder of a Minari data set.

    Raises:
        TaskError: there is none, it is in another format, or a package is missing.
    """
    if (place / "data").is_dir() and list((place / "data").glob("*.hdf5")):
        return _read_minari(place)
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.suffix == ".parquet" else []
    if not files or not files[0].is_file():
        raise TaskError(
            f"there are no recorded episodes at {place}: stage the Parquet files of {REPLAY_HUB_ID} (branch "
            f"{REPLAY_BRANCH}), or a Minari data set"
        )
    return Recording(_environment_of(place), tuple(episode for file in files for episode in _read_parquet(file)))


def write_parquet(path: Path, episodes: Sequence[Episode]) -> None:
    """Write episodes in the schema of the hub's data set."""
    pyarrow = library("pyarrow", extra=EXTRA, what="recorded episodes")
    parquet = library("pyarrow.parquet", extra=EXTRA, what="recorded episodes")
    rows = {
        "observations": [episode.observations.tolist() for episode in episodes],
        "actions": [episode.actions.tolist() for episode in episodes],
        "rewards": [episode.rewards.tolist() for episode in episodes],
        "dones": [[False] * (len(episode.rewards) - 1) + [True] for episode in episodes],
    }
    single = pyarrow.list_(pyarrow.float32())
    types = [pyarrow.list_(single), pyarrow.list_(single), single, pyarrow.list_(pyarrow.bool_())]
    parquet.write_table(pyarrow.table(rows, schema=pyarrow.schema(list(zip(COLUMNS, types, strict=True)))), path)


def _read_parquet(path: Path) -> Iterator[Episode]:
    pyarrow = library("pyarrow", extra=EXTRA, what="recorded episodes")
    parquet = library("pyarrow.parquet", extra=EXTRA, what="recorded episodes")
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise TaskError(f"{path} cannot be read as Parquet ({error}): stage it again") from error
    if lacking := [name for name in COLUMNS if name not in table.column_names]:
        raise TaskError(
            f"{path} has no column {lacking[0]!r}: the rows of {REPLAY_HUB_ID} have {', '.join(COLUMNS)}; is it "
            "another data set?"
        )
    for number, row in enumerate(table.select(list(COLUMNS)).to_pylist()):
        yield _checked(row["observations"], row["actions"], row["rewards"], f"{path}, row {number}")


def _read_minari(place: Path) -> Recording:
    minari = library("minari", extra=EXTRA, what="recorded episodes in Minari's format")
    try:
        data = minari.MinariDataset(place / "data")
        episodes = tuple(
            _checked(each.observations[:-1], each.actions, each.rewards, f"{place}, episode {each.id}")
            for each in data.iterate_episodes()
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{place} is no Minari data set that can be read ({error}): stage it again") from error
    return Recording(str(data.env_spec.id) if data.env_spec else _environment_of(place), episodes)


def _checked(observations: Any, actions: Any, rewards: Any, where: str) -> Episode:
    try:
        episode = Episode(*(np.asarray(values, np.float32) for values in (observations, actions, rewards)))
        is_whole = episode.observations.ndim == episode.actions.ndim == 2 and episode.rewards.ndim == 1
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole or len({len(values) for values in (observations, actions, rewards)}) != 1 or not len(rewards):
        raise TaskError(f"{where} is no episode: observations, actions and rewards must be one for each step")
    return episode


def _environment_of(place: Path) -> str:
    """The environment that a data set's own name tells, as in ``halfcheetah-medium-v2``."""
    names = {name.lower(): name for name in ENVIRONMENTS}
    for part in reversed(place.parts):
        found = re.search(rf"({'|'.join(names)})[\w-]*-(v\d+)", part.lower())
        if found:
            return f"{names[found[1]]}-{found[2]}"
    raise TaskError(
        f"{place} does not tell its environment: keep the name that the data set has on the hub, as in "
        "hopper-medium-v2, for a folder above the files"
    )

"""Control: MuJoCo environments of gymnasium, many episodes side by side, and what a return is worth.

Environments are an extra: nothing here is imported from gymnasium before an environment is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tasks.errors import TaskError
from tasks.libraries import library
from tasks.task import Split

EXTRA = "control"

HELDOUT_SEEDS = 1_000_000
"""First seed of held-out episodes; those of training begin at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A kind of environment, whatever its version."""

    name: str
    """As gymnasium has it, without the version."""
    random_return: float
    """Return of random actions: 0 of D4RL's normalised score (arXiv 2004.07219, appendix A)."""
    expert_return: float
    """Return of a trained expert: 1 of the normalised score."""
    target_return: float
    """What a Decision Transformer is asked for (arXiv 2106.01345, appendix A)."""
    max_steps: int = 1000

    def normalised(self, returns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """D4RL's normalised score, as a share: 0 for random actions, 1 for the expert."""
        return (returns - self.random_return) / (self.expert_return - self.random_return)

    def raw(self, score: float) -> float:
        """The return behind a normalised score."""
        return self.random_return + score * (self.expert_return - self.random_return)


ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        environment.name: environment
        for environment in (
            Environment(name="HalfCheetah", random_return=-280.178953, expert_return=12135.0, target_return=6000.0),
            Environment(name="Hopper", random_return=-20.272305, expert_return=3234.3, target_return=3600.0),
            Environment(name="Walker2d", random_return=1.629008, expert_return=4592.3, target_return=5000.0),
        )
    }
)

VERSION = "v5"
"""The version that gymnasium's own MuJoCo bindings are made for, and the one that is evaluated on unless told so."""

_NAMED = re.compile(r"(?P<name>\w+?)-(?P<version>v\d+)")


def environment_named(name: str) -> tuple[Environment, str]:
    """The environment and the version that ``HalfCheetah-v5`` means.

    Raises:
        TaskError: it is none of those that a return can be judged of.
    """
    match = _NAMED.fullmatch(name)
    if match is None or match["name"] not in ENVIRONMENTS:
        known = ", ".join(f"{known}-{VERSION}" for known in ENVIRONMENTS)
        raise TaskError(f"there is no environment {name!r} to be evaluated on: name one of {known}")
    return ENVIRONMENTS[match["name"]], match["version"]


def require_same_version(recorded: str, asked: str) -> None:
    """Make sure that episodes come from the environment that is evaluated on: observations may differ by version.

    Raises:
        TaskError: they do not.
    """
    if recorded != asked:
        raise TaskError(
            f"the model has learned from episodes of {recorded}, but is to act in {asked}, whose observations and "
            f"rewards may differ: name --tasks {recorded}, or compare all the same with --other-version"
        )


def episode_seed(split: Split, index: int) -> int:
    """Seed of the environment in an episode."""
    return index + HELDOUT_SEEDS * (split == "heldout")


class Episodes:
    """Environments side by side, each with a seed of its own; an episode that has ended stands still."""

    def __init__(self, name: str, seeds: Sequence[int]) -> None:
        """Make them.

        Args:
            name: of the environment, with its version.
            seeds: of the episodes.

        Raises:
            TaskError: gymnasium or MuJoCo is not installed, or has no such environment.
        """
        self._environments = [make_environment(name) for _ in seeds]
        self._seeds = tuple(seeds)
        self.returns = np.zeros(len(seeds))
        """float64 ``[episodes]``: sum of rewards so far."""
        self.is_running = np.ones(len(seeds), bool)
        """Whether each episode goes on."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the environments."""
        for environment in self._environments:
            environment.close()

    def reset(self) -> npt.NDArray[np.float64]:
        """Begin; observations float64 ``[episodes, size]``."""
        self.returns[:] = 0.0
        self.is_running[:] = True
        pairs = zip(self._environments, self._seeds, strict=True)
        self._observations = np.stack([environment.reset(seed=seed)[0] for environment, seed in pairs])
        return self._observations.copy()

    def step(self, actions: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Act ``[episodes, actions]`` where episodes go on, clipped to what the environment takes.

        Returns:
            observations ``[episodes, size]`` and rewards ``[episodes]``, 0 where an episode had ended.
        """
        rewards = np.zeros(len(actions))
        for row in np.flatnonzero(self.is_running):
            space = self._environments[row].action_space
            action = np.clip(actions[row], space.low, space.high).astype(space.dtype)
            self._observations[row], reward, is_terminated, is_truncated, _ = self._environments[row].step(action)
            rewards[row] = float(reward)
            self.is_running[row] = not (is_terminated or is_truncated)
        self.returns += rewards
        return self._observations.copy(), rewards


def make_environment(name: str) -> Any:
    """An environment without pictures.

    Raises:
        TaskError: gymnasium or MuJoCo is not installed, or has no such environment.
    """
    os.environ.setdefault("MUJOCO_GL", "disable")  # no display is needed, and none may be looked for
    gymnasium = library("gymnasium", extra=EXTRA, what="control")
    library("mujoco", extra=EXTRA, what="control")
    try:
        return gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise TaskError(f"gymnasium {gymnasium.__version__} has no {name!r} ({error}): name another version") from error
    except ImportError as error:
        raise TaskError(f"{name} cannot be made ({error}): pip install 'namm-orchestrator[{EXTRA}]'") from error

"""Makes episodes to learn from where none can be downloaded: augmented random search on a linear policy.

arXiv 1803.07055, version V2: directions are tried in pairs, observations are normalised by what was seen so far, and
the step is divided by the spread of the returns. Episodes of all iterations make a data set of mixed quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.control import Episodes, make_environment
from tasks.control_data import Episode, Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How long, and how."""

    environment: str
    num_iterations: int = 40
    num_directions: int = 8
    """Each is tried forwards and backwards, one episode each."""
    num_best: int = 4
    """Directions that make up a step."""
    step_size: float = 0.02
    noise: float = 0.03
    kept_iterations: int = 10
    """The last ones, whose episodes are recorded."""
    seed: int = 0


def record(settings: SearchSettings, report: Callable[[int, float], None]) -> Recording:
    """Search, and keep the episodes of the last iterations; a function of the settings.

    Args:
        settings: of the search.
        report: told iteration and mean return after every iteration.

    Raises:
        TaskError: as ``Episodes``.
    """
    space = make_environment(settings.environment)
    shape = (space.action_space.shape[0], space.observation_space.shape[0])
    rng = np.random.default_rng(settings.seed)
    policy, moments = np.zeros(shape), _Moments(shape[1])
    kept: list[Episode] = []
    for iteration in range(settings.num_iterations):
        directions = rng.standard_normal((settings.num_directions, *shape))
        tried = settings.noise * np.concatenate([directions, -directions]) + policy
        first_seed = iteration * len(tried)
        episodes = _play(settings.environment, tried, moments, range(first_seed, first_seed + len(tried)))
        returns = np.array([episode.rewards.sum() for episode in episodes], np.float64)
        policy = policy + _step(settings, directions, returns)
        moments.take(np.concatenate([episode.observations for episode in episodes]))
        if iteration >= settings.num_iterations - settings.kept_iterations:
            kept += episodes
        report(iteration, float(returns.mean()))
    return Recording(settings.environment, tuple(kept))


def _step(
    settings: SearchSettings, directions: npt.NDArray[np.float64], returns: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    forwards, backwards = returns[: len(directions)], returns[len(directions) :]
    best = np.argsort(-np.maximum(forwards, backwards), kind="stable")[: settings.num_best]
    spread = np.concatenate([forwards[best], backwards[best]]).std() + 1e-6
    weighted = ((forwards - backwards)[best, None, None] * directions[best]).sum(axis=0)
    step: npt.NDArray[np.float64] = settings.step_size / (settings.num_best * spread) * weighted
    return step


class _Moments:
    """Running mean and variance of observations."""

    def __init__(self, size: int) -> None:
        self._count = 0
        self.mean = np.zeros(size)
        self._squares = np.ones(size)

    @property
    def deviation(self) -> npt.NDArray[np.float64]:
        """Of what was taken so far; 1 before."""
        variance = self._squares / max(1, self._count) if self._count else self._squares
        deviation: npt.NDArray[np.float64] = np.sqrt(variance) + 1e-6
        return deviation

    def take(self, observations: npt.NDArray[np.float32]) -> None:
        """Pool ``[n, size]``."""
        block = observations.astype(np.float64)
        count, mean = len(block), block.mean(axis=0)
        squares = ((block - mean) ** 2).sum(axis=0)
        total = self._count + count
        difference = mean - self.mean
        before = self._squares if self._count else np.zeros_like(self._squares)
        self._squares = before + squares + difference**2 * self._count * count / total
        self.mean = self.mean + difference * count / total
        self._count = total


def _play(environment: str, policies: npt.NDArray[np.float64], moments: _Moments, seeds: range) -> list[Episode]:
    """One episode under each policy ``[episodes, actions, observations]``."""
    seen, acted, rewarded = [], [], []
    with Episodes(environment, seeds) as episodes:
        observations = episodes.reset()
        lengths = np.zeros(len(policies), np.int64)
        while episodes.is_running.any():
            scaled = (observations - moments.mean) / moments.deviation
            actions = np.clip(np.einsum("eao,eo->ea", policies, scaled), -1.0, 1.0).astype(np.float32)
            seen.append(observations.astype(np.float32))
            acted.append(actions)
            lengths += episodes.is_running
            observations, rewards = episodes.step(actions)
            rewarded.append(rewards.astype(np.float32))
    by_step = np.stack(seen), np.stack(acted), np.stack(rewarded)
    return [Episode(*(values[:length, row] for values in by_step)) for row, length in enumerate(lengths)]

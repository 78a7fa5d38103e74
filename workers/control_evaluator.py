"""Scores units whose examples are episodes: a Decision Transformer acts under a block of candidates.

The score of an episode is its return on D4RL's normalised scale. All episodes of a unit run side by side.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.control import Episodes, environment_named, episode_seed
from workers.control_model import (
    TOKENS_PER_STEP,
    CachedController,
    ControlSettings,
    WindowController,
    load_controller,
)
from workers.decoding import Footprint
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.specs import MemorySpec, RivalSpec
from workers.unit import ScoredUnit, Unit
from workers.unit_memory import gathered, memory_of

Controller = CachedController | WindowController


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecipe:
    """All that a worker needs to know before its first episode."""

    path_or_id: str
    revision: str | None
    settings: ControlSettings
    environment: str
    """To act in, with its version; also the name of the task."""
    max_steps: int | None = None
    """Steps after which an episode is cut; None for the environment's own limit."""

    def build(self) -> ControlEvaluator:
        """Load the model.

        Raises:
            ModelError: it cannot be loaded.
        """
        torch.set_num_threads(1)
        model = load_controller(self.path_or_id, self.revision, is_local=self.revision is None)
        return ControlEvaluator(model, self.settings, self.environment, self.max_steps)


class ControlEvaluator:
    """Hosts a frozen Decision Transformer and scores units on it."""

    def __init__(self, model: Any, settings: ControlSettings, environment: str, max_steps: int | None = None) -> None:
        self.model = model
        self.settings = settings
        self.environment = environment
        self.max_steps = max_steps
        self.limits: MutableMapping[str, int] = {}

    def score(self, unit: Unit) -> ScoredUnit:
        """Play one shard of episodes under a block of candidates.

        Raises:
            ValueError: the unit is of another task.
        """
        if unit.task != self.environment:
            raise ValueError(f"unknown task {unit.task!r}: this worker plays {self.environment}")
        started = time.perf_counter()
        seeds = [episode_seed(unit.split, index) for index in unit.examples] * len(unit.candidates)
        memory, window = memory_of(unit), _window_steps(unit.memory)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            episodes = stack.enter_context(Episodes(self.environment, seeds))
            if window is not None:
                held = self._play(
                    WindowController(self.model, window), episodes, _WindowHeld(self.model, window, len(seeds))
                )
            else:
                cache = stack.enter_context(memory_attached(self.model.encoder, memory))
                held = self._play(CachedController(self.model, cache), episodes, _CacheHeld(cache))
        environment, _ = environment_named(self.environment)
        return ScoredUnit.of(
            unit,
            exact=environment.normalised(episodes.returns),
            graded=np.full(len(seeds), np.nan),
            seen_tokens=held.seen.numpy().astype(np.int32),
            held_tokens=held.held.numpy().astype(np.int32),
            mean_bytes=held.mean_bytes.numpy(),
            peak_bytes=held.peak_bytes.numpy(),
            state_bytes=held.state_bytes.numpy(),
            seconds=time.perf_counter() - started,
            statistics=gathered(memory),
        )

    def _play(self, controller: Controller, episodes: Episodes, held: _Held) -> Footprint:
        """Play all episodes to their ends; what each held when it ended."""
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32)
            for values in (self.settings.state_mean, self.settings.state_deviation)
        )
        environment, _ = environment_named(self.environment)
        observations = episodes.reset()
        footprint: Footprint | None = None
        for step in range(self.max_steps or environment.max_steps):
            states = (torch.from_numpy(observations).float() - mean) / deviation
            asked = (self.settings.target_return - episodes.returns) / self.settings.return_scale
            actions = controller.act(states, torch.from_numpy(asked).float(), step).clamp(-1.0, 1.0)
            controller.took(actions, step)
            was_running = torch.from_numpy(episodes.is_running.copy())
            observations, _ = episodes.step(actions.numpy())
            ended = was_running & ~torch.from_numpy(episodes.is_running)
            if bool(ended.any()):
                now = held.now(step + 1)
                footprint = now if footprint is None else footprint.updated(now, was_running)
            if not episodes.is_running.any():
                break
        else:
            now, running = held.now(step + 1), torch.from_numpy(episodes.is_running)
            footprint = now if footprint is None else footprint.updated(now, running)
        assert footprint is not None
        return footprint


class _CacheHeld:
    """What a cache holds."""

    def __init__(self, cache: MemoryCache) -> None:
        self._cache = cache

    def now(self, _steps: int) -> Footprint:
        """After so many steps."""
        return Footprint.of(self._cache)


class _WindowHeld:
    """What a window would hold if its keys and values were kept, which are computed anew at every step."""

    def __init__(self, model: Any, window_steps: int, num_rows: int) -> None:
        config = model.config
        self._shape = (config.num_hidden_layers, config.num_attention_heads)
        self._step_bytes = TOKENS_PER_STEP * config.num_hidden_layers * 2 * config.hidden_size * 4
        self._window = window_steps
        self._num_rows = num_rows

    def now(self, steps: int) -> Footprint:
        """After so many steps; every row alike."""
        held = min(steps, self._window)
        mean = (held * (held + 1) / 2 + (steps - held) * held) / steps
        rows = self._num_rows
        return Footprint(
            seen=torch.full((rows,), TOKENS_PER_STEP * steps),
            held=torch.full((rows, *self._shape), TOKENS_PER_STEP * held, dtype=torch.int32),
            mean_bytes=torch.full((rows,), mean * self._step_bytes, dtype=torch.float64),
            peak_bytes=torch.full((rows,), held * self._step_bytes),
            state_bytes=torch.zeros(rows, dtype=torch.int64),
        )


_Held = _CacheHeld | _WindowHeld


def _window_steps(memory: MemorySpec) -> int | None:
    """Steps of the window that ``truncation`` reads anew at every step; None for what uses a cache."""
    if isinstance(memory, RivalSpec) and memory.name == "truncation":
        return max(1, memory.budget[0][0] // TOKENS_PER_STEP)
    return None

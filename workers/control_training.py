"""Trains a small Decision Transformer on recorded episodes (arXiv 2106.01345, at the size of a laptop)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from tasks.control_data import Episode, Recording
from workers.control_model import ControlSettings
from workers.language_model import without_progress_bars

RETURN_SCALE = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How the model is made."""

    window_steps: int = 20
    num_layers: int = 2
    hidden_size: int = 64
    num_heads: int = 2
    num_steps: int = 600
    """Optimiser steps."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


def new_controller(settings: TrainingSettings, state_size: int, action_size: int) -> Any:
    """A fresh model, a function of the settings."""
    torch.manual_seed(settings.seed)
    return DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=state_size,
            act_dim=action_size,
            hidden_size=settings.hidden_size,
            n_layer=settings.num_layers,
            n_head=settings.num_heads,
            n_inner=4 * settings.hidden_size,
            max_ep_len=1000,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def train_controller(
    recording: Recording, settings: TrainingSettings, report: Callable[[int, float], None]
) -> tuple[Any, ControlSettings]:
    """A model that has learned to act as in the episodes, given what was still to be earned.

    Args:
        recording: what to learn from.
        settings: how.
        report: told step and loss (mean squared error of actions) after every step.

    Returns:
        the model in evaluation mode, and how it is to be used: asked for the best return that it has seen.
    """
    mean, deviation = recording.state_statistics()
    first = recording.episodes[0]
    model = new_controller(settings, first.observations.shape[1], first.actions.shape[1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    rng = np.random.default_rng(settings.seed)
    batches = _Batches(recording.episodes, mean, deviation, settings.window_steps)
    for step in range(settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / 50)
        batch = batches.draw(settings.batch_size, rng)
        wanted = batch.pop("wanted")
        mask = batch["attention_mask"].bool()
        predicted = model(**batch).action_preds
        loss = functional.mse_loss(predicted[mask], wanted[mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        report(step, loss.item())
    return model.eval(), ControlSettings(
        environment=recording.environment,
        state_mean=tuple(mean.tolist()),
        state_deviation=tuple(deviation.tolist()),
        return_scale=RETURN_SCALE,
        target_return=float(max(episode.rewards.sum() for episode in recording.episodes)),
        window_steps=settings.window_steps,
    )


def save_controller(model: Any, settings: ControlSettings, folder: Path) -> None:
    """Write weights, configuration and how the model is to be used."""
    with without_progress_bars():
        model.save_pretrained(folder)
    settings.save(folder)


class _Batches:
    """Windows of episodes, long ones drawn in proportion to their length."""

    def __init__(self, episodes: tuple[Episode, ...], mean: Any, deviation: Any, window: int) -> None:
        self._states = [((each.observations - mean) / deviation).astype(np.float32) for each in episodes]
        self._actions = [each.actions for each in episodes]
        self._to_go = [each.rewards[::-1].cumsum()[::-1] / RETURN_SCALE for each in episodes]
        lengths = np.array([len(each.rewards) for each in episodes], float)
        self._shares = lengths / lengths.sum()
        self._window = window

    def draw(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """What the model's forward pass takes, padded on the left, and the ``wanted`` actions."""
        rows = [self._row(int(index), rng) for index in rng.choice(len(self._shares), count, p=self._shares)]
        columns = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        columns["wanted"] = columns["actions"]
        return columns

    def _row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        length = len(self._actions[index])
        start = int(rng.integers(length))
        part = slice(start, min(length, start + self._window))
        size = part.stop - part.start

        def padded(values: Any) -> Any:
            empty = np.zeros((self._window - size, *values.shape[1:]), values.dtype)
            return np.concatenate([empty, values])

        return {
            "states": padded(self._states[index][part]),
            "actions": padded(self._actions[index][part]),
            "returns_to_go": padded(self._to_go[index][part].astype(np.float32)[:, None]),
            "timesteps": padded(np.arange(part.start, part.stop)),
            "attention_mask": padded(np.ones(size, np.int64)),
        }

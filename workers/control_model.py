"""A Decision Transformer with a cache that grows, and the window that is usually read anew at every step.

The model reads (return to go, state, action) tokens and says an action where it reads a state (arXiv 2106.01345).
transformers' own forward pass takes no cache, but its encoder does: here a step feeds it two tokens, then the action,
and a memory may evict between them. Position embeddings are always those of position 0, as in that forward pass: time
is told by an embedding of its own.

Shapes: B episodes side by side, K steps, S numbers in a state, A in an action, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DecisionTransformerModel

from workers.errors import ModelError
from workers.language_model import without_progress_bars
from workers.memory.cache import MemoryCache

TOKENS_PER_STEP = 3
SETTINGS_FILE = "control.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """What a Decision Transformer must be told besides its weights."""

    environment: str
    """That it has learned from, with its version."""
    state_mean: tuple[float, ...]
    state_deviation: tuple[float, ...]
    """States are given to the model as ``(state - mean) / deviation``."""
    return_scale: float
    """Returns to go are divided by this."""
    target_return: float
    """What is asked of the model."""
    window_steps: int
    """Steps that it was trained on at a time."""

    def save(self, folder: Path) -> None:
        """Write them beside the model."""
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> ControlSettings:
        """Read them.

        Raises:
            ModelError: they are missing or damaged.
        """
        path = folder / SETTINGS_FILE
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name in ("state_mean", "state_deviation"):
                values[name] = tuple(map(float, values[name]))
            return ControlSettings(**values)
        except FileNotFoundError as error:
            raise ModelError(
                f"{path} is missing, which says how states and returns are scaled: name the recorded episodes that "
                "the model has learned from with --data"
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path} does not say how states and returns are scaled ({error})") from error


def load_controller(folder: str | Path, revision: str | None = None, *, is_local: bool = True) -> Any:
    """A frozen Decision Transformer.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        with without_progress_bars():
            model = DecisionTransformerModel.from_pretrained(folder, revision=revision, local_files_only=is_local)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"cannot load the Decision Transformer {str(folder)!r}: {reason}") from error
    return model.eval().requires_grad_(False)


class CachedController:
    """Acts step by step on one cache."""

    def __init__(self, model: Any, cache: MemoryCache) -> None:
        """Begin an episode; ``cache`` must be empty, and the memory attached to ``model.encoder``."""
        self._model = model
        self._cache = cache
        self._seen = 0

    def act(self, states: Tensor, returns_to_go: Tensor, step: int) -> Tensor:
        """Action ``[B, A]`` from scaled states ``[B, S]`` and returns to go ``[B]``; reads two tokens, then the action.

        The action that is read back is the one returned: clip it before, or pass the clipped one to ``took``.
        """
        time = self._time(step)
        tokens = torch.stack(
            [self._model.embed_return(returns_to_go[:, None]) + time, self._model.embed_state(states) + time], dim=1
        )
        hidden = self._read(tokens)
        action: Tensor = self._model.predict_action(hidden[:, -1])
        return action

    def took(self, actions: Tensor, step: int) -> None:
        """Read the actions ``[B, A]`` that were taken."""
        self._read((self._model.embed_action(actions) + self._time(step))[:, None])

    def _time(self, step: int) -> Tensor:
        weights: Tensor = self._model.embed_timestep.weight
        return weights[step]

    def _read(self, tokens: Tensor) -> Tensor:
        rows, new = tokens.shape[:2]
        self._seen += new
        hidden: Tensor = self._model.encoder(
            inputs_embeds=self._model.embed_ln(tokens),
            # Without a mask, positions that are all 0 would be taken for many packed texts.
            attention_mask=torch.ones(rows, self._seen, dtype=torch.long),
            position_ids=torch.zeros(rows, new, dtype=torch.long),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


class WindowController:
    """Acts as Decision Transformers are published: the last steps are read anew at every step, without a cache."""

    def __init__(self, model: Any, window_steps: int) -> None:
        self._model = model
        self._window = window_steps
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._returns: list[Tensor] = []

    def act(self, states: Tensor, returns_to_go: Tensor, step: int) -> Tensor:
        """Action ``[B, A]`` from scaled states ``[B, S]`` and returns to go ``[B]``."""
        self._states.append(states)
        self._returns.append(returns_to_go)
        self._actions.append(torch.zeros(len(states), self._model.config.act_dim))
        first = max(0, len(self._states) - self._window)
        rows, steps = len(states), len(self._states) - first
        predicted: Tensor = self._model(
            states=_together(self._states, first),
            actions=_together(self._actions, first),
            returns_to_go=_together(self._returns, first)[..., None],
            timesteps=torch.arange(step - steps + 1, step + 1).expand(rows, steps),
            attention_mask=torch.ones(rows, steps, dtype=torch.long),
        ).action_preds
        return predicted[:, -1]

    def took(self, actions: Tensor, step: int) -> None:  # noqa: ARG002 (as the cached one has it)
        """Remember the actions ``[B, A]`` that were taken."""
        self._actions[-1] = actions


def _together(parts: Sequence[Tensor], first: int) -> Tensor:
    """``[B, K, …]`` of the parts from ``first`` on."""
    return torch.stack(list(parts[first:]), dim=1)

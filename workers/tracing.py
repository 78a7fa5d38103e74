"""What becomes of every token of a text that a model reads under a memory: importance at every update, when dropped.

Shapes: U updates, L layers, H KV heads, T tokens, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.decoding import prefill
from workers.language_model import LanguageModel
from workers.memory.attention import memory_attached
from workers.memory.memory import Decision, LayerView, Memory

HELD = -1
"""In place of an update: the token is still held after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What an update saw and decided, a row per token that a KV head held just before it; all arrays ``[R]``."""

    num_tokens: int
    num_layers: int
    num_kv_heads: int
    update_tokens: npt.NDArray[np.int32]
    """``[U]``: tokens read by each update."""
    update: npt.NDArray[np.int32]
    """0 for the first."""
    layer: npt.NDArray[np.int32]
    kv_head: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    """Place of the token in the text."""
    importance: npt.NDArray[np.float32]
    """What the memory thought of it; infinite where a rival keeps it in any case."""
    is_kept: npt.NDArray[np.bool_]

    @property
    def num_updates(self) -> int:
        """How often the memory chose; 0 for a text that is shorter than its first update."""
        return len(self.update_tokens)

    @property
    def num_judged(self) -> int:
        """Tokens that were there at the last update; those after it nobody has chosen from."""
        return int(self.update_tokens[-1]) if self.num_updates else 0

    def dropped_at(self) -> npt.NDArray[np.int32]:
        """``[L, H, T]``: the update at which each head dropped each token; ``HELD`` where it did not."""
        dropped = np.full((self.num_layers, self.num_kv_heads, self.num_tokens), HELD, np.int32)
        gone = ~self.is_kept
        dropped[self.layer[gone], self.kv_head[gone], self.position[gone]] = self.update[gone]
        return dropped

    def importances(self) -> npt.NDArray[np.float32]:
        """``[U, L, H, T]``: importance at each update; NaN where the head did not hold the token then."""
        shape = (self.num_updates, self.num_layers, self.num_kv_heads, self.num_tokens)
        dense = np.full(shape, np.nan, np.float32)
        dense[self.update, self.layer, self.kv_head, self.position] = self.importance
        return dense

    def held_tokens(self) -> npt.NDArray[np.int32]:
        """``[L, H]``: tokens held just after the last update."""
        dropped = self.dropped_at()[..., : self.num_judged]
        held: npt.NDArray[np.int32] = (dropped == HELD).sum(axis=-1, dtype=np.int32)
        return held


@torch.inference_mode()
def trace(language_model: LanguageModel, memory: Memory, ids: list[int]) -> Trace:
    """Read a text under a memory of one genome, and note every update.

    Args:
        language_model: the frozen model.
        memory: decides what is kept.
        ids: the text as token ids, at least one.
    """
    recorder = _Recorder()
    with memory_attached(language_model.model, memory, recorder.listen) as cache:
        prefill(language_model.model, cache, torch.tensor([ids], device=language_model.input_device))
    return recorder.trace(len(ids), language_model.num_layers, language_model.num_kv_heads)


class _Recorder:
    """Keeps what the updates of a single row tell, on the CPU."""

    def __init__(self) -> None:
        self._updates: dict[int, int] = {}
        """Number of an update by the tokens read: every layer has it."""
        self._pieces: list[dict[str, npt.NDArray[Any]]] = []

    def listen(self, view: LayerView, decision: Decision) -> None:
        """Take in one layer's update."""
        update = self._updates.setdefault(view.seen_tokens, len(self._updates))
        occupied = view.occupied[0].cpu().numpy()
        heads, slots = np.nonzero(occupied)
        self._pieces.append(
            {
                "update": np.full(len(heads), update, np.int32),
                "layer": np.full(len(heads), view.layer, np.int32),
                "kv_head": heads.astype(np.int32),
                "position": view.positions[0].cpu().numpy()[heads, slots].astype(np.int32),
                "importance": decision.importance[0].float().cpu().numpy()[heads, slots],
                "is_kept": decision.keep[0].cpu().numpy()[heads, slots],
            }
        )

    def trace(self, num_tokens: int, num_layers: int, num_kv_heads: int) -> Trace:
        """All of it, by update, layer, head and position."""
        dtypes = dict.fromkeys(("update", "layer", "kv_head", "position"), np.int32)
        empty: dict[str, npt.NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}
        empty |= {"importance": np.zeros(0, np.float32), "is_kept": np.zeros(0, np.bool_)}
        columns = {
            name: np.concatenate([zero, *(piece[name] for piece in self._pieces)]) for name, zero in empty.items()
        }
        order = np.lexsort(tuple(columns[name] for name in ("position", "kv_head", "layer", "update")))
        return Trace(
            num_tokens=num_tokens,
            num_layers=num_layers,
            num_kv_heads=num_kv_heads,
            update_tokens=np.array(list(self._updates), np.int32),
            **{name: column[order] for name, column in columns.items()},
        )

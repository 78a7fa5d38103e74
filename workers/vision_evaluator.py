"""Scores units whose examples are questions about clips, under a block of candidates."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.task import Split
from tasks.video import ClipQuestion
from tasks.video_frames import frame_times, read_frames
from tasks.video_shapes import ShapeClips
from workers.decoding import Footprint
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.memory import Memory
from workers.memory.specs import MemorySpec, RivalSpec
from workers.unit import ScoredUnit, Unit
from workers.unit_memory import gathered, memory_of
from workers.vision_model import VisionModel, letter_probabilities, load_vision_model


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedClips:
    """Questions of a suite, whose clips are decoded when they are asked."""

    name: str
    questions: Mapping[Split, tuple[ClipQuestion, ...]]
    num_frames: int

    def example(self, split: Split, index: int) -> tuple[npt.NDArray[np.uint8], ClipQuestion]:
        """Frames and question."""
        question = self.questions[split][index]
        return read_frames(question.video, self.num_frames), question


ClipTask = ShapeClips | StagedClips


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRecipe:
    """All that a worker needs to know before its first clip."""

    path_or_id: str
    revision: str | None
    tasks: tuple[ClipTask, ...]
    dtype: str = "float32"
    device: str = "cpu"

    def build(self) -> VisionEvaluator:
        """Load the model.

        Raises:
            ModelError: it cannot be loaded.
        """
        torch.set_num_threads(1)
        model = load_vision_model(self.path_or_id, self.revision, dtype=self.dtype, device=self.device)
        return VisionEvaluator(model, {task.name: task for task in self.tasks})


class VisionEvaluator:
    """Hosts a frozen vision-language model and scores units on it."""

    def __init__(self, vision: VisionModel, tasks: Mapping[str, ClipTask]) -> None:
        self.vision = vision
        self.tasks = tasks
        self.limits: MutableMapping[str, int] = {}

    def score(self, unit: Unit) -> ScoredUnit:
        """Ask about one shard of clips under a block of candidates.

        Raises:
            ValueError: the unit is of another task.
            TaskError: a clip cannot be decoded.
        """
        if unit.task not in self.tasks:
            raise ValueError(f"unknown task {unit.task!r}: this worker has {', '.join(sorted(self.tasks))}")
        started = time.perf_counter()
        copies, columns = len(unit.candidates), len(unit.examples)
        memory = memory_of(unit)
        examples = [example_of(self.tasks[unit.task], unit.split, index) for index in unit.examples]
        inputs = [self._inputs(unit.memory, *example) for example in examples]
        rows: dict[str, npt.NDArray[np.float64]] = {}
        for group in _groups_of_equal_shape(inputs):
            batch = {name: torch.cat([inputs[column][name] for column in group]) for name in inputs[0]}
            logits, held = self.read(memory, batch, copies)
            right = [examples[column][1].answer for column in group] * copies
            letters = self.vision.letter_ids(max(len(examples[column][1].choices) for column in group))
            probabilities = letter_probabilities(logits, letters)
            answered = _values(probabilities, torch.tensor(right), held)
            for name, values in answered.items():
                by_column = values.reshape(copies, len(group), *values.shape[1:])
                target = rows.setdefault(name, np.zeros((copies, columns, *values.shape[1:])))
                target[:, group] = by_column
        flat = {name: values.reshape(copies * columns, *values.shape[2:]) for name, values in rows.items()}
        return ScoredUnit.of(
            unit,
            exact=flat["exact"],
            graded=flat["graded"],
            seen_tokens=flat["seen"].astype(np.int32),
            held_tokens=flat["held"].astype(np.int32),
            mean_bytes=flat["mean_bytes"],
            peak_bytes=flat["peak_bytes"].astype(np.int64),
            state_bytes=flat["state_bytes"].astype(np.int64),
            seconds=time.perf_counter() - started,
            statistics=gathered(memory),
        )

    def _inputs(self, memory: MemorySpec, frames: npt.NDArray[np.uint8], question: ClipQuestion) -> dict[str, Tensor]:
        """What the model reads of an example: all of it, or for ``truncation`` as many frames as its bytes allow.

        They are evenly spread, and as many as end at what a memory of that budget holds after the question.
        """
        inputs = self.vision.inputs(frames, question)
        if not isinstance(memory, RivalSpec) or memory.name != "truncation":
            return inputs
        assert memory.budget is not None
        seen = inputs["input_ids"].shape[1]
        cut = seen - memory.budget[0][0] - seen % memory.update_every
        fewer = max(1, len(frames) - max(0, -(-cut // self.vision.tokens_per_frame)))
        return self.vision.inputs(frames[frame_times(len(frames), fewer)], question)

    def read(self, memory: Memory, batch: Mapping[str, Tensor], copies: int = 1) -> tuple[Tensor, Footprint]:
        """Logits after the last token ``[B, vocabulary]``, on the CPU, and what is held then."""
        logits, cache = self.read_into_cache(memory, batch, copies)
        return logits, Footprint.of(cache)

    def read_into_cache(
        self, memory: Memory, batch: Mapping[str, Tensor], copies: int = 1
    ) -> tuple[Tensor, MemoryCache]:
        """As ``read``, with the cache itself. Long inputs are swept in blocks inside the attention function."""
        repeated = {name: values.repeat(copies, *[1] * (values.ndim - 1)) for name, values in batch.items()}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            cache = stack.enter_context(memory_attached(self.vision.model, memory))
            output = self.vision.model(**repeated, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float().cpu(), cache

    def frames_kept(
        self, memory: Memory, task: ShapeClips, split: Split, indices: Sequence[int]
    ) -> tuple[float, float]:
        """Shares of the tokens of redundant frames, and of frames with a shape, that are held in the end.

        Mean over layers, KV heads and clips.
        """
        shares = []
        for index in indices:
            clip = task.clip(split, index)
            inputs = self.vision.inputs(clip.frames, clip.question)
            _, cache = self.read_into_cache(memory, inputs)
            by_column = _kept_by_column(cache, inputs["input_ids"].shape[1])
            by_frame = by_column[self.vision.frame_columns(inputs["input_ids"][0].cpu())].mean(dim=1).numpy()
            shares.append((by_frame[clip.is_redundant].mean(), by_frame[~clip.is_redundant].mean()))
        redundant, shown = np.mean(shares, axis=0)
        return float(redundant), float(shown)


def example_of(task: ClipTask, split: Split, index: int) -> tuple[npt.NDArray[np.uint8], ClipQuestion]:
    """Frames and question of an example."""
    if isinstance(task, StagedClips):
        return task.example(split, index)
    clip = task.clip(split, index)
    return clip.frames, clip.question


def _kept_by_column(cache: MemoryCache, num_columns: int) -> Tensor:
    """Float64 ``[n]``: share of layers and KV heads that hold each token of one row."""
    held = [layer.held.at_work() for layer in cache.layers if layer.held is not None]
    counts = torch.zeros(num_columns, dtype=torch.float64)
    for slots in held:
        positions = slots.positions[slots.positions >= 0].long().cpu()
        counts += torch.bincount(positions, minlength=num_columns)
    return counts / sum(slots.positions.shape[1] for slots in held)


def _values(probabilities: Tensor, right: Tensor, held: Footprint) -> dict[str, npt.NDArray[np.float64]]:
    graded = probabilities.gather(1, right[:, None])[:, 0]
    found = {
        "exact": (probabilities.argmax(-1) == right).double(),
        "graded": graded,
        "seen": held.seen,
        "held": held.held,
        "mean_bytes": held.mean_bytes,
        "peak_bytes": held.peak_bytes,
        "state_bytes": held.state_bytes,
    }
    return {name: values.double().numpy() for name, values in found.items()}


def _groups_of_equal_shape(inputs: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for column, each in enumerate(inputs):
        groups.setdefault(tuple(tuple(values.shape) for values in each.values()), []).append(column)
    return list(groups.values())

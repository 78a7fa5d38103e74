"""Scores units: one frozen model, one process. A plain class, tested without Ray.

The result of a unit depends on the unit alone, never on what ran before it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tasks.errors import TaskError
from tasks.identity import data_digest, data_source
from tasks.registry import TaskSettings, build_task
from tasks.task import CompletionExample, CompletionTask, Example, Task
from workers.decoding import Footprint, complete, score_answers
from workers.language_model import LanguageModel, load_language_model
from workers.memory.memory import Memory
from workers.memory.specs import MemorySpec, RivalSpec
from workers.prompts import EncodedExample, PromptEncoder, Span
from workers.settings import ModelSettings, PromptSettings
from workers.stopping import Stops
from workers.unit import FeatureStatistics, ScoredUnit, Unit, join, split
from workers.unit_memory import gathered, memory_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorRecipe:
    """All that a worker needs to know before its first unit."""

    model: ModelSettings
    tasks: tuple[TaskSettings, ...]
    prompts: PromptSettings = field(default_factory=PromptSettings)
    num_threads: int = 1
    """Threads of torch in this process; one, where several workers share a machine."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By task, what ``tasks.identity.data_digest`` says where the run is driven from: workers must have the same."""

    def build(self) -> Evaluator:
        """Load the model; takes seconds to minutes.

        Raises:
            ModelError: when the model cannot be loaded.
            TaskError: a suite is not staged on this machine, or other files of it are; a task cannot be built.
        """
        self._require_same_data()
        torch.set_num_threads(self.num_threads)
        language_model = load_language_model(self.model)
        tasks = {settings.name: build_task(settings, language_model.count_tokens) for settings in self.tasks}
        return Evaluator(language_model, tasks, self.prompts)

    def _require_same_data(self) -> None:
        for settings in self.tasks:
            digest = data_digest(settings)
            if self.digests.get(settings.name, digest) != digest:
                raise TaskError(
                    f"task {settings.name}: this machine has other examples than the driver, from "
                    f"{data_source(settings)}: stage the same files everywhere"
                )


class Evaluator:
    """Hosts a frozen model and scores units on it."""

    def __init__(
        self,
        language_model: LanguageModel,
        tasks: Mapping[str, Task | CompletionTask],
        prompts: PromptSettings | None = None,
    ) -> None:
        self.language_model = language_model
        self.tasks = tasks
        settings = prompts or PromptSettings()
        self.prompts = PromptEncoder(language_model.tokenizer, language_model.max_tokens, settings)
        self.limits: MutableMapping[str, int] = {}
        """Most (candidate, example) pairs at once, by task, where the accelerator had no room for a whole unit."""

    def score(self, unit: Unit) -> ScoredUnit:
        """Score one shard of examples under a block of candidates.

        Where the accelerator has no room for all of it at once, it is scored in pieces, and the size that fits is
        remembered in ``limits``. Scores may then differ in the last bits from those of an accelerator with more room.

        Raises:
            ValueError: the unit names an unknown task, or an example is too long for the model.
            torch.OutOfMemoryError: there is no room for one example under one candidate, or for a unit of which
                statistics are gathered; says what to change.
        """
        num_rows = len(unit.candidates) * len(unit.examples)
        while True:
            most_rows = min(self.limits.get(unit.task, num_rows), num_rows)
            is_whole = most_rows == num_rows or unit.record_statistics
            try:
                return join(unit, [self._score(piece) for piece in ([unit] if is_whole else split(unit, most_rows))])
            except torch.OutOfMemoryError as error:
                if most_rows == 1 or unit.record_statistics:
                    raise torch.OutOfMemoryError(_no_room(most_rows)) from error
                self.limits[unit.task] = most_rows // 2
            # Only now, without the exception, are the tensors of the attempt free.
            _logger.warning("%s: no room for %d rows at once; trying %d", unit.key, most_rows, most_rows // 2)
            torch.cuda.empty_cache()

    def _score(self, unit: Unit) -> ScoredUnit:
        started = time.perf_counter()
        examples = [self._task(unit).example(unit.split, index) for index in unit.examples]
        encoded = [_shortened(unit.memory, self._encoded(unit, example)) for example in examples]
        memory = memory_of(unit)
        result = _Rows(unit, self.language_model)
        for columns in _groups_of_equal_shape(encoded):
            chosen = [examples[column] for column in columns]
            shape = encoded[columns[0]]
            ids = torch.tensor([encoded[column].ids for column in columns], device=self.language_model.input_device)
            if shape.spans:
                self._answer(result, columns, chosen, memory, ids, shape.spans)
            else:
                self._complete(result, columns, cast("list[CompletionExample]", chosen), memory, ids)
        return result.scored(time.perf_counter() - started, gathered(memory))

    def _encoded(self, unit: Unit, example: Example | CompletionExample) -> EncodedExample:
        if isinstance(example, Example):
            return self.prompts.questions(example)
        return self.prompts.answered(example) if unit.score == "graded" else self.prompts.prompt(example)

    def _answer(
        self,
        result: _Rows,
        columns: Sequence[int],
        examples: Sequence[Example | CompletionExample],
        memory: Memory,
        ids: Tensor,
        spans: Sequence[Span],
    ) -> None:
        """Probabilities of gold answers; of a completion by the token, because it is long and may be put otherwise."""
        answers, cache = score_answers(self.language_model.model, memory, ids, spans, len(result.unit.candidates))
        held = Footprint.of(cache)
        if isinstance(examples[0], CompletionExample):
            graded = answers.mean_log_probability[:, 0].exp()
            result.fill(columns, torch.full_like(graded, math.nan), graded, held)
        else:
            result.fill(columns, answers.is_greedy.double().mean(1), answers.probability.mean(1), held)

    def _complete(
        self,
        result: _Rows,
        columns: Sequence[int],
        examples: list[CompletionExample],
        memory: Memory,
        ids: Tensor,
    ) -> None:
        """The task's score of what the model says itself."""
        task = cast(CompletionTask, self.tasks[result.unit.task])
        first, copies = examples[0], len(result.unit.candidates)
        stops = Stops(self.language_model, first.stop)
        completions, held = complete(
            self.language_model.model, memory, ids, copies, max_new_tokens=first.max_new_tokens, has_ended=stops
        )
        scores = [
            task.score(example, stops.text(completion))
            for example, completion in zip(examples * copies, completions, strict=True)
        ]
        exact = torch.tensor(scores, dtype=torch.float64)
        result.fill(columns, exact, torch.full_like(exact, math.nan), held)

    def _task(self, unit: Unit) -> Task | CompletionTask:
        if unit.task not in self.tasks:
            raise ValueError(f"unknown task {unit.task!r}: this worker has {', '.join(sorted(self.tasks))}")
        return self.tasks[unit.task]


class _Rows:
    """The arrays of a scored unit while they fill: one row per (candidate, example), candidate by candidate."""

    def __init__(self, unit: Unit, language_model: LanguageModel) -> None:
        self.unit = unit
        num_candidates, num_examples = len(unit.candidates), len(unit.examples)
        shape = (num_candidates, num_examples)
        self.exact, self.graded, self.mean_bytes = (np.zeros(shape) for _ in range(3))
        self.peak_bytes, self.state_bytes = (np.zeros(shape, np.int64) for _ in range(2))
        self.seen = np.zeros(shape, np.int32)
        self.held = np.zeros((*shape, language_model.num_layers, language_model.num_kv_heads), np.int32)

    def fill(self, columns: Sequence[int], exact: Tensor, graded: Tensor, held: Footprint) -> None:
        """Take in the B rows of one batch: all candidates on the examples at ``columns``."""
        block = (len(self.unit.candidates), len(columns))
        for target, values in (
            (self.exact, exact),
            (self.graded, graded),
            (self.seen, held.seen),
            (self.held, held.held),
            (self.mean_bytes, held.mean_bytes),
            (self.peak_bytes, held.peak_bytes),
            (self.state_bytes, held.state_bytes),
        ):
            target[:, columns] = values.numpy().reshape(*block, *values.shape[1:])

    def scored(self, seconds: float, statistics: FeatureStatistics | None) -> ScoredUnit:
        """The finished unit."""
        return ScoredUnit.of(
            self.unit,
            exact=self.exact.ravel(),
            graded=self.graded.ravel(),
            seen_tokens=self.seen.ravel(),
            held_tokens=self.held.reshape(-1, *self.held.shape[2:]),
            mean_bytes=self.mean_bytes.ravel(),
            peak_bytes=self.peak_bytes.ravel(),
            state_bytes=self.state_bytes.ravel(),
            seconds=seconds,
            statistics=statistics,
        )


def _no_room(num_rows: int) -> str:
    remedy = "use shorter examples, model.dtype bfloat16, model.quantization, or model.device auto on more accelerators"
    if num_rows == 1:
        return f"no room for a single example under a single candidate: {remedy}"
    return f"no room for {num_rows} examples of the full-cache pass at once: lower units.examples_per_unit, or {remedy}"


def _groups_of_equal_shape(examples: Sequence[EncodedExample]) -> list[list[int]]:
    """Columns of examples that fit into one batch without padding, in order of first appearance."""
    groups: dict[tuple[int, tuple[Span, ...]], list[int]] = {}
    for column, example in enumerate(examples):
        groups.setdefault((len(example.ids), example.spans), []).append(column)
    return list(groups.values())


def _shortened(memory: MemorySpec, example: EncodedExample) -> EncodedExample:
    """What the rival ``truncation`` reads of an example; every memory else reads all of it."""
    if isinstance(memory, RivalSpec) and memory.name == "truncation":
        return example.truncated(memory.budget[0][0], memory.update_every)
    return example

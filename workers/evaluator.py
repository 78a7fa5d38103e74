"""Scores units: one frozen model, one process. A plain class, tested without Ray.

The result of a unit depends on the unit alone, never on what ran before it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.registry import TaskSettings, build_task
from tasks.task import Example, Task
from workers.decoding import score_answers
from workers.language_model import LanguageModel, load_language_model
from workers.memory.build import build_memory
from workers.memory.cache import MemoryCache
from workers.memory.memory import Memory
from workers.memory.namm import StatisticsPass
from workers.memory.specs import MemorySpec, NammSpec, RivalSpec
from workers.settings import ModelSettings
from workers.unit import FeatureStatistics, ScoredUnit, Unit, join, split

_logger = logging.getLogger(__name__)

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorRecipe:
    """All that a worker needs to know before its first unit."""

    model: ModelSettings
    tasks: tuple[TaskSettings, ...]
    num_threads: int = 1
    """Threads of torch in this process; one, where several workers share a machine."""

    def build(self) -> Evaluator:
        """Load the model; takes seconds to minutes.

        Raises:
            ModelError: when the model cannot be loaded.
        """
        torch.set_num_threads(self.num_threads)
        tasks = {settings.name: build_task(settings) for settings in self.tasks}
        return Evaluator(load_language_model(self.model), tasks)


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as token ids: prompt, then each question with its gold answer."""

    prompt_tokens: int
    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """Where each answer stands in ``ids``."""

    def truncated(self, budget: int, update_every: int) -> EncodedExample:
        """With the middle of the prompt cut out, so that as much is cached in the end as under an evicting memory.

        Such a memory holds ``budget`` tokens after its last update and everything read since.
        """
        after_prompt = len(self.ids) - self.prompt_tokens
        keep = max(2, budget + len(self.ids) % update_every - after_prompt)
        if keep >= self.prompt_tokens:
            return self
        head, cut = (keep + 1) // 2, self.prompt_tokens - keep
        ids = self.ids[:head] + self.ids[head + cut :]
        return EncodedExample(keep, ids, tuple((start - cut, stop - cut) for start, stop in self.spans))


def encode(example: Example, language_model: LanguageModel) -> EncodedExample:
    """Token ids of an example; the pieces are encoded one by one and joined."""
    ids = language_model.prompt_ids(example.prompt)
    prompt_tokens = len(ids)
    spans = []
    for question in example.questions:
        ids += language_model.continuation_ids(question.text)
        answer = language_model.continuation_ids(question.answer)
        spans.append((len(ids), len(ids) + len(answer)))
        ids += answer
    if len(ids) > language_model.max_tokens:
        raise ValueError(
            f"example {example.index} of {example.task} has {len(ids)} tokens, the model takes "
            f"{language_model.max_tokens}: shorten the task's length"
        )
    return EncodedExample(prompt_tokens, tuple(ids), tuple(spans))


class Evaluator:
    """Hosts a frozen model and scores units on it."""

    def __init__(self, language_model: LanguageModel, tasks: dict[str, Task]) -> None:
        self.language_model = language_model
        self.tasks = tasks
        self.limits: MutableMapping[str, int] = {}
        """Most (candidate, example) pairs at once, by task, where the accelerator had no room for a whole unit."""

    def score(self, unit: Unit) -> ScoredUnit:
        """Score one shard of examples under a block of candidates.

        Where the accelerator has no room for all of it at once, it is scored in pieces, and the size that fits is
        remembered in ``limits``. Scores may then differ in the last bits from those of an accelerator with more room.

        Raises:
            ValueError: the unit names an unknown task, or an example is too long for the model.
            torch.OutOfMemoryError: there is no room for one example under one candidate, or for a unit of which
                statistics are gathered.
        """
        num_rows = len(unit.candidates) * len(unit.examples)
        while True:
            most_rows = min(self.limits.get(unit.task, num_rows), num_rows)
            is_whole = most_rows == num_rows or unit.record_statistics
            try:
                return join(unit, [self._score(piece) for piece in ([unit] if is_whole else split(unit, most_rows))])
            except torch.OutOfMemoryError:
                if most_rows == 1 or unit.record_statistics:
                    raise
                self.limits[unit.task] = most_rows // 2
            # Only now, without the exception, are the tensors of the attempt free.
            _logger.warning("%s: no room for %d rows at once; trying %d", unit.key, most_rows, most_rows // 2)
            torch.cuda.empty_cache()

    def _score(self, unit: Unit) -> ScoredUnit:
        started = time.perf_counter()
        examples = self._examples(unit)
        memory: Memory = (
            StatisticsPass(_namm(unit.memory).settings)
            if unit.record_statistics
            else build_memory(unit.memory, unit.genomes)
        )
        result = _Rows(unit, self.language_model)
        for columns in _groups_of_equal_shape(examples):
            ids = torch.tensor([examples[column].ids for column in columns], device=self.language_model.model.device)
            answers, cache = score_answers(
                self.language_model.model, memory, ids, examples[columns[0]].spans, copies=len(unit.candidates)
            )
            result.fill(columns, answers.is_greedy.double().mean(1), answers.probability.mean(1), cache)
        statistics = _statistics(memory) if isinstance(memory, StatisticsPass) else None
        return result.scored(time.perf_counter() - started, statistics)

    def _examples(self, unit: Unit) -> list[EncodedExample]:
        if unit.task not in self.tasks:
            raise ValueError(f"unknown task {unit.task!r}: this worker has {', '.join(sorted(self.tasks))}")
        task = self.tasks[unit.task]
        encoded = [encode(task.example(unit.split, index), self.language_model) for index in unit.examples]
        if isinstance(unit.memory, RivalSpec) and unit.memory.name == "truncation":
            budget = unit.memory.budget[0][0]
            return [example.truncated(budget, unit.memory.update_every) for example in encoded]
        return encoded


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

    def fill(self, columns: Sequence[int], exact: torch.Tensor, graded: torch.Tensor, cache: MemoryCache) -> None:
        """Take in the B rows of one batch: all candidates on the examples at ``columns``."""
        meter, seen, held = cache.meter, cache.get_seq_length(), cache.held_tokens()
        assert meter.area is not None
        assert meter.peak is not None
        block = (len(self.unit.candidates), len(columns))
        for target, values in (
            (self.exact, exact),
            (self.graded, graded),
            (self.mean_bytes, meter.area.double() / seen),
            (self.peak_bytes, meter.peak),
            (self.state_bytes, cache.row_state_bytes()),
        ):
            target[:, columns] = values.cpu().numpy().reshape(block)
        self.seen[:, columns] = seen
        self.held[:, columns] = held.numpy().reshape(*block, *held.shape[1:])

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


def _groups_of_equal_shape(examples: Sequence[EncodedExample]) -> list[list[int]]:
    """Columns of examples that fit into one batch without padding, in order of first appearance."""
    groups: dict[tuple[int, tuple[Span, ...]], list[int]] = {}
    for column, example in enumerate(examples):
        groups.setdefault((len(example.ids), example.spans), []).append(column)
    return list(groups.values())


def _namm(spec: MemorySpec) -> NammSpec:
    if not isinstance(spec, NammSpec):
        raise ValueError(f"statistics are gathered for an evolved memory, not for {spec.name!r}")
    return spec


def _statistics(memory: StatisticsPass) -> FeatureStatistics:
    moments = memory.moments
    return FeatureStatistics(moments.count, moments.mean.cpu().numpy(), moments.variance.cpu().numpy())

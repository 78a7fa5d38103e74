"""What a medium Llama is trained on: bare key-value lists first, then the tasks over real text, ever longer.

A row is a function of (seed, step, number of the row, level): it can be made in any process, in any order.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tasks.corpus import Corpus
from tasks.corpus_task import CorpusTask, CorpusTaskKind, CorpusTaskSettings
from tasks.documents import TextPool, Vocabulary, join_lines
from tasks.errors import TaskError
from tasks.text_facts import draw_value

Encode = Callable[[str], list[int]]

MASTERED_ACCURACY = 0.88
"""Share of answer tokens right at which training moves on to the next level."""
LATEST_SHARES = (0.02, 0.05, 0.10, 0.18, 0.27, 0.38, 0.75)
"""Share of the training after which a level is left at the latest."""
EARLIER_LEVEL_SHARE = 0.25
"""Share of batches drawn from levels that were left, so that they are not forgotten."""
LANGUAGE_SHARE, LANGUAGE_WEIGHT = 0.26, 0.5
"""Of rows of plain text in every batch over real text; and what their tokens count, where an answer's count 1."""
ATTEMPTS = 8
"""Draws of a document before plain text takes its place: long questions may not fit a short one."""
TRAINED_KINDS: tuple[CorpusTaskKind, ...] = (
    "text_fact_prose",
    "text_fact_code",
    "text_kv",
    "text_kvdense",
    "text_passkey",
    "text_variable",
    "text_passage_doc",
    "text_passage_line",
    "text_passage_prose",
    "text_next_line",
)


@dataclass(frozen=True, slots=True)
class Level:
    """One step of the curriculum."""

    length: int
    """Tokens of a row, at the most."""
    is_dense: bool
    """Bare pairs, without a text around them."""

    @property
    def name(self) -> str:
        """As the progress line shows it."""
        return f"{'dense' if self.is_dense else 'text'}-{self.length}"


LEVELS = (
    *(Level(length, is_dense=True) for length in (128, 256, 512)),
    *(Level(length, is_dense=False) for length in (512, 1024, 2048, 4096, 8192)),
)


@dataclass(frozen=True)
class Row:
    """Token ids, and what each counts in the loss as the next token of the one before it; arrays, as they are sent."""

    ids: array[int]
    weights: array[float]

    @classmethod
    def of(cls, ids: Iterable[int], weights: Iterable[float]) -> Row:
        """From any numbers."""
        return cls(array("i", ids), array("f", weights))


@dataclass(frozen=True)
class RowMaker:
    """Makes rows; plain values only, so that it can be sent to other processes."""

    corpus: Corpus
    encode: Encode
    """Without special tokens."""
    bos: int
    seed: int

    def rows(self, level: Level, step: int, numbers: Iterable[int]) -> list[Row]:
        """Some rows of a step."""
        return [self.row(level, step, number) for number in numbers]

    def row(self, level: Level, step: int, number: int) -> Row:
        """The row at a place."""
        rng = np.random.default_rng([self.seed, step, number])
        if level.is_dense:
            return self._dense(level.length, rng)
        if rng.random() < LANGUAGE_SHARE:
            return self._language(level.length, rng)
        for _ in range(ATTEMPTS):
            with suppress(TaskError):
                return self._asked(level.length, rng)
        return self._language(level.length, rng)

    def _asked(self, length: int, rng: np.random.Generator) -> Row:
        """A document with questions.

        Raises:
            TaskError: what was drawn does not fit the length.
        """
        kind = TRAINED_KINDS[int(rng.integers(len(TRAINED_KINDS)))]
        most = min(12, length // 96)
        asked = CorpusTaskSettings(kind=kind, length=length, num_questions=int(rng.integers(2, most + 1)))
        task = CorpusTask(asked, self.corpus, lambda text: len(self.encode(text)))
        example = task.example("train", int(rng.integers(2**31)))
        pieces = [(example.prompt, 0.0)]
        for question in example.questions:
            pieces += [(question.text, 0.0), (question.answer, 1.0)]
        return self._joined(pieces)

    def _dense(self, length: int, rng: np.random.Generator) -> Row:
        """Pairs, then some of the keys again, asked with replacement."""
        number = max(2, length // 24)
        words = self._vocabulary.shuffled(rng)
        pairs = [(key, draw_value(rng, self._vocabulary)) for key in words[:number]]
        text = join_lines([f"{key}: {value}" for key, value in pairs]) + "\n"
        pieces = [(text, 0.0)]
        for index in (rng.random(number) * number).astype(int).tolist():
            pieces += [(f"{pairs[index][0]}:", 0.0), (f" {pairs[index][1]}\n", 1.0)]
        row = self._joined(pieces)
        return Row(row.ids[:length], row.weights[:length])

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return TextPool(self.corpus, "train", 512).vocabulary("")

    def _language(self, length: int, rng: np.random.Generator) -> Row:
        text = join_lines(TextPool(self.corpus, "train", length).lines(rng))
        ids = self.encode(text[: 6 * length])[: length - 1]
        return Row.of([self.bos, *ids], [0.0] + [LANGUAGE_WEIGHT] * len(ids))

    def _joined(self, pieces: Sequence[tuple[str, float]]) -> Row:
        ids, weights = [self.bos], [0.0]
        for text, weight in pieces:
            encoded = self.encode(text)
            ids += encoded
            weights += [weight] * len(encoded)
        return Row.of(ids, weights)


@dataclass(slots=True)
class TextCurriculum:
    """Which level the next batch comes from."""

    reached: int = 0
    """Index in ``LEVELS`` of the hardest level so far."""
    recent: list[float] = field(default_factory=list)
    """Accuracies of the last batches of that level."""

    def next_level(self, rng: np.random.Generator, share: float) -> int:
        """The hardest level reached, or now and then an earlier one.

        Args:
            rng: decides.
            share: of the training that is done, 0 to 1; a level that was not mastered is left all the same in time.
        """
        while self.reached < len(LATEST_SHARES) and share >= LATEST_SHARES[self.reached]:
            self._move_on()
        if self.reached and rng.random() < EARLIER_LEVEL_SHARE:
            return int(rng.integers(self.reached))
        return self.reached

    def report(self, level: int, accuracy: float) -> None:
        """Move on when the last four batches of the hardest level were mastered on average."""
        if level != self.reached or self.reached == len(LEVELS) - 1:
            return
        self.recent = [*self.recent[-3:], accuracy]
        if len(self.recent) == 4 and sum(self.recent) / 4 >= MASTERED_ACCURACY:
            self._move_on()

    def _move_on(self) -> None:
        self.reached += 1
        self.recent = []

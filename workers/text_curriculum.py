"""What a medium Llama is trained on: bare key-value lists first, then the tasks over real text, ever longer.

A row is a function of (seed, step, number of the row, level): it can be made in any process, in any order.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np

from tasks.corpus import Corpus
from tasks.corpus_task import ANSWERED_AS_RECORDS, DRAFTS, CorpusTaskKind, questions
from tasks.documents import Document, TextPool, fit, join_lines
from tasks.errors import TaskError
from tasks.text_facts import draw_value

Encode = Callable[[str], list[int]]

SHORT, MASTERED_ACCURACY, MASTERED_SHORT = 512, 0.95, 0.88
"""Share of answer tokens right, line breaks not counted, at which training moves on to the next level, and the same for
levels of up to ``SHORT`` tokens. There 0.88 is what choosing among a document's values gives, as all but the first
token of an answer follow; but look-up is learned sooner from longer documents of more kinds than by staying."""
LATEST_SHARES = (0.05, 0.10, 0.18, 0.28, 0.42, 0.70)
"""Share of the training after which a level is left at the latest."""
EARLIER_LEVEL_SHARE = 0.25
"""Share of batches drawn from levels that were left, so that they are not forgotten."""
LANGUAGE_SHARE = 0.26
"""Of rows of plain text in every batch over real text."""
ANSWERS_WEIGHT, LANGUAGE_WEIGHT = 1.0, 0.5
"""What all answers of a batch count in its loss, and what all plain text: answers are one token in thirty, and would be
drowned if every token counted the same."""
BREAK_WEIGHT = 0.25
"""What the line break behind an answer counts, where a token of the answer counts 1."""
MOST_CROWDED = 8
"""A document may hold as many facts as one up to so many times as long: the more there are, the less is guessed."""
CROWDED_LENGTH = 2048
"""Tokens of the longest document whose facts are taken."""
CROWDED_KINDS: frozenset[CorpusTaskKind] = frozenset(
    {"text_fact_prose", "text_fact_code", "text_kv", "text_kvdense", "text_variable"}
)
MAX_QUESTIONS, TOKENS_PER_QUESTION = 24, 40
"""About a document, and the tokens of it that each must have."""
SHELF_CHARS = 2_000_000
"""Of text that one row is drawn from: enough for the longest, and few files."""
ATTEMPTS = 5
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

    @property
    def mastered(self) -> float:
        """Share of answer tokens right at which it is left."""
        return MASTERED_SHORT if self.length <= SHORT else MASTERED_ACCURACY


LEVELS = (
    Level(256, is_dense=True),
    *(Level(length, is_dense=False) for length in (256, 512, 1024, 2048, 4096, 8192)),
)


class Role(IntEnum):
    """What a token is in a row, as the next one of the token before it."""

    GIVEN = 0
    ANSWER = 1
    BREAK = 2
    """The line break behind an answer: always right soon, so it counts little and is not counted."""
    LANGUAGE = 3


@dataclass(frozen=True)
class Row:
    """Token ids and the role of each; arrays, as they are sent."""

    ids: array[int]
    roles: bytes

    @classmethod
    def of(cls, pieces: Iterable[tuple[Sequence[int], Role]]) -> Row:
        """From runs of tokens of one role."""
        ids, roles = array("i"), bytearray()
        for run, role in pieces:
            ids.extend(run)
            roles.extend([role] * len(run))
        return cls(ids, bytes(roles))

    def first(self, number: int) -> Row:
        """The row without what is too long."""
        return Row(self.ids[:number], self.roles[:number])


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
        shelf = self._shelves[int(np.searchsorted(self._ends, rng.random() * self._ends[-1], "right"))]
        if level.is_dense:
            return self._dense(shelf, level.length, rng)
        if rng.random() < LANGUAGE_SHARE:
            return self._language(shelf, level.length, rng)
        return self._asked(shelf, level.length, rng)

    @cached_property
    def _shelves(self) -> tuple[Corpus, ...]:
        return self.corpus.shelves(SHELF_CHARS)

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each shelf ends if all stand side by side: long ones are drawn more often."""
        return np.cumsum([sum(shelf.sizes("train")) for shelf in self._shelves])

    def _asked(self, shelf: Corpus, length: int, rng: np.random.Generator) -> Row:
        """A document with questions: a less crowded one if it does not fit, and plain text if none does."""
        kind = TRAINED_KINDS[int(rng.integers(len(TRAINED_KINDS)))]
        crowded = int(rng.integers(1, MOST_CROWDED + 1)) if kind in CROWDED_KINDS else 1
        for attempt in range(ATTEMPTS):
            times = max(1, crowded >> attempt)
            with suppress(TaskError):
                return self._document(shelf, kind, length, max(length, min(times * length, CROWDED_LENGTH)), rng)
        return self._language(shelf, length, rng)

    def _document(
        self, shelf: Corpus, kind: CorpusTaskKind, length: int, facts_length: int, rng: np.random.Generator
    ) -> Row:
        """One with the facts of a document of ``facts_length``.

        Raises:
            TaskError: what was drawn does not fit the length.
        """
        pool = TextPool(shelf, "train", facts_length)
        num_questions = int(rng.integers(2, 1 + min(MAX_QUESTIONS, length // TOKENS_PER_QUESTION)))
        draft, order = DRAFTS[kind](rng, pool), int(rng.integers(2**31))

        def pieces(document: Document) -> list[tuple[str, Role]]:
            # Without replacement: an answer that was given before is repeated, not looked up.
            drawn = np.random.default_rng(order).permutation(len(document.asked))[:num_questions]
            asked = questions([document.asked[i] for i in drawn], as_records=kind in ANSWERED_AS_RECORDS)
            parts = [(document.text, Role.GIVEN)]
            for question in asked:
                parts += [(question.text, Role.GIVEN), (question.answer[:-1], Role.ANSWER), ("\n", Role.BREAK)]
            return parts

        def tokens_of(document: Document) -> int:
            return 1 + len(self.encode("".join(text for text, _ in pieces(document))))

        document = fit(draft, length, tokens_of)
        if not document.asked:
            raise TaskError(f"length is {length}; too short for a question of {kind}: ask for more")
        return self._joined(pieces(document))

    def _dense(self, shelf: Corpus, length: int, rng: np.random.Generator) -> Row:
        """Pairs, then some of the keys again, asked with replacement."""
        number = max(2, length // 16)
        vocabulary = TextPool(shelf, "train", length).vocabulary("")
        pairs = [(key, draw_value(rng, vocabulary)) for key in vocabulary.shuffled(rng)[:number]]
        pieces = [(join_lines([f"{key}: {value}" for key, value in pairs]) + "\n", Role.GIVEN)]
        for index in (rng.random(number) * number).astype(int).tolist():
            key, value = pairs[index]
            pieces += [(f"{key}:", Role.GIVEN), (f" {value}", Role.ANSWER), ("\n", Role.BREAK)]
        return self._joined(pieces).first(length)

    def _language(self, shelf: Corpus, length: int, rng: np.random.Generator) -> Row:
        text = join_lines(TextPool(shelf, "train", length).lines(rng))
        return self._joined([(text[: 6 * length], Role.LANGUAGE)]).first(length)

    def _joined(self, pieces: Sequence[tuple[str, Role]]) -> Row:
        begin = ([self.bos], Role.GIVEN)
        return Row.of([begin, *((self.encode(text), role) for text, role in pieces)])


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
        if len(self.recent) == 4 and sum(self.recent) / 4 >= LEVELS[level].mastered:
            self._move_on()

    def _move_on(self) -> None:
        self.reached += 1
        self.recent = []

"""What the small Llama is trained on: documents of ``tasks.generated``, from short and dense to 1,024 tokens.

Retrieval does not appear by itself in long documents, so training starts with bare key-value lists and moves on to the
next level whenever the model has mastered the current one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tasks.generated import TOKENS_PER_QUESTION, Document, DocumentKind, ask, draw_facts, write_document
from tasks.task import Question
from tasks.words import ASK, BOS, NEWLINE, VALUES, split_text
from workers.word_tokenizer import TOKEN_IDS

TOKENS_PER_STEP = 4096
MASTERED_ACCURACY = 0.9
"""Share of answers right at which training moves on to the next level."""
COPYING_SHARE = 0.1
"""Share of rows that repeat a list of words instead of answering questions; the rest is half prose, half code."""
EARLIER_LEVEL_SHARE = 0.25
"""Share of batches drawn from levels that are already mastered, so that they are not forgotten."""


@dataclass(frozen=True, slots=True)
class Level:
    """One step of the curriculum."""

    name: str
    length: int
    """Tokens of a document, the beginning-of-sequence token included."""
    max_facts: int
    num_questions: int
    is_dense: bool = False
    """Facts only, without filler."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a document with its questions and answers."""
        return self.length + TOKENS_PER_QUESTION * self.num_questions


LEVELS = (
    *(Level(f"dense-{2 * n + 1}", length=2 * n + 1, max_facts=n, num_questions=n, is_dense=True) for n in (8, 16, 32)),
    Level("mixed-64", length=64, max_facts=8, num_questions=8),
    *(Level(f"mixed-{n}", length=n, max_facts=min(32, n // 8), num_questions=16) for n in (128, 256, 512, 1024)),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length."""

    ids: torch.Tensor
    """int64 ``[rows, tokens]``"""
    is_answer: torch.Tensor
    """bool ``[rows, tokens]``: the tokens that the model is to predict; no other token enters the loss."""


def draw_batch(level: Level, rng: np.random.Generator) -> Batch:
    """Draws about ``TOKENS_PER_STEP`` tokens of a level."""
    num_rows = max(1, TOKENS_PER_STEP // level.row_tokens)
    rows = [_draw_row(level, rng) for _ in range(num_rows)]
    return Batch(
        ids=torch.tensor([[TOKEN_IDS[word] for word in words] for words, _ in rows]),
        is_answer=torch.tensor([is_answer for _, is_answer in rows]),
    )


_Row = tuple[list[str], list[bool]]


def _draw_row(level: Level, rng: np.random.Generator) -> _Row:
    if level.is_dense:
        return _dense_row(level, rng)
    kind: DocumentKind = "facts_prose" if rng.random() < 0.5 else "facts_code"
    if rng.random() < COPYING_SHARE:
        return _copying_row(level, kind, rng)
    num_facts = int(rng.integers(min(4, level.max_facts), level.max_facts + 1))
    document = write_document(kind, level.length, draw_facts(rng, num_facts, split=None), rng)
    return _row_with_questions(document.words, ask(document, level.num_questions, rng))


def _dense_row(level: Level, rng: np.random.Generator) -> _Row:
    facts = draw_facts(rng, level.max_facts, split=None)
    document = Document(words=tuple(word for fact in facts.items() for word in fact), facts=facts)
    return _row_with_questions(document.words, ask(document, level.num_questions, rng))


def _row_with_questions(document: Sequence[str], questions: Sequence[Question]) -> _Row:
    words, is_answer = [BOS, *document], [False] * (1 + len(document))
    for question in questions:
        asked = split_text(question.text)
        words += [*asked, question.answer]
        is_answer += [*(False for _ in asked), True]
    return words, is_answer


def _copying_row(level: Level, kind: DocumentKind, rng: np.random.Generator) -> _Row:
    """A list of distinct words somewhere in the filler, to be repeated after its first word."""
    listed = [VALUES[i] for i in rng.permutation(len(VALUES))[: TOKENS_PER_QUESTION * level.num_questions - 2]]
    filler = write_document(kind, level.length - len(listed), {}, rng).words
    place = int(rng.integers(len(filler) + 1))
    words = [BOS, *filler[:place], *listed, *filler[place:], NEWLINE, ASK, *listed]
    num_given = len(words) - len(listed) + 1
    return words, [False] * num_given + [True] * (len(listed) - 1)


@dataclass(slots=True)
class Curriculum:
    """Which level the next batch comes from."""

    num_levels: int = len(LEVELS)
    reached: int = 0
    """Index of the hardest level so far."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=4))

    def next_level(self, rng: np.random.Generator) -> int:
        """The hardest level reached, or now and then an earlier one."""
        if self.reached and rng.random() < EARLIER_LEVEL_SHARE:
            return int(rng.integers(self.reached))
        return self.reached

    def report(self, level: int, accuracy: float) -> None:
        """Moves on when the last four batches of the hardest level were mastered on average."""
        if level != self.reached or self.reached == self.num_levels - 1:
            return
        self._recent.append(accuracy)
        if len(self._recent) == self._recent.maxlen and sum(self._recent) / len(self._recent) >= MASTERED_ACCURACY:
            self.reached += 1
            self._recent.clear()

"""Documents made of real text with something to ask about, cut to a length in tokens.

Whoever writes a document draws all that is random first and returns a *draft*: a function from a size (lines of text,
mostly) to the document of that size. ``fit`` then finds the largest size that is not too long, whatever the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np

from tasks.corpus import Corpus, CorpusSplit, Source, SourceKind
from tasks.errors import TaskError

CountTokens = Callable[[str], int]
"""Tokens of a text, special tokens not counted."""

_CHARS_PER_TOKEN = 8
"""More than any tokenizer's average on code or prose: text is drawn by this, and only then cut."""
_MAX_LINE_CHARS = 200
_PIECES = re.compile(r"\d|[A-Za-z]{1,6}|[^\sA-Za-z\d]{1,2}|\n| {2,}|[^\x00-\x7f]")
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """Something that can be asked about a document."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document, ending in a line break, and all that can be asked about it."""

    text: str
    asked: tuple[Asked, ...]


Drafted = TypeVar("Drafted")

Draft = Callable[[int], Document]
"""The document of a size, in lines or whatever the draft is made of; longer ones begin like shorter ones, or nearly."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What keys and values are made of."""

    words: tuple[str, ...]
    present: frozenset[str]
    """Words and numbers of the text that keys and values will stand in: none of them may be a value."""

    def shuffled(self, rng: np.random.Generator) -> list[str]:
        """All words in random order."""
        return [self.words[i] for i in rng.permutation(len(self.words))]

    def without(self, words: Collection[str]) -> Vocabulary:
        """The same without some words."""
        return Vocabulary(tuple(word for word in self.words if word not in words), self.present)


@dataclass(frozen=True)
class TextPool:
    """What a document may be made of: one split of a corpus, and the most text that is needed."""

    corpus: Corpus
    split: CorpusSplit
    target_tokens: int
    """Length that the document will be cut to."""

    @cached_property
    def max_chars(self) -> int:
        """Characters that are surely enough for the length."""
        return _CHARS_PER_TOKEN * self.target_tokens

    @property
    def max_asked_chars(self) -> int:
        """Longest line of the text that a question or an answer may repeat: short documents have room for little."""
        return min(100, self.target_tokens // 6)

    @property
    def max_passage_chars(self) -> int:
        """Longest passage of which there are several."""
        return max(200, self.target_tokens // 2)

    def order(self, rng: np.random.Generator, *kinds: SourceKind) -> list[Source]:
        """All sources of these kinds in random order, long ones earlier in proportion to their length."""
        sources = self.corpus.of(self.split, *kinds)
        sizes = np.array(self.corpus.sizes(self.split, *kinds), float)
        return [sources[i] for i in rng.choice(len(sources), len(sources), replace=False, p=sizes / sizes.sum())]

    def lines(self, rng: np.random.Generator, *kinds: SourceKind) -> list[str]:
        """Consecutive lines of a file from a random place on, then of further files, enough for the length."""
        sources, places = self.order(rng, *kinds), rng.random(len(self.corpus.of(self.split, *kinds)))
        lines: list[str] = []
        num_chars = 0
        for source, place in zip(sources, places, strict=True):
            run = readable_lines(source)
            for line in run[int(place * 0.8 * len(run)) :]:
                lines.append(line)
                num_chars += len(line) + 1
                if num_chars >= self.max_chars:
                    return lines
        return lines

    def vocabulary(self, text: str) -> Vocabulary:
        """Words of the split that do not stand in ``text``.

        Raises:
            TaskError: fewer than fifty are left.
        """
        present = words_of(text)
        left = tuple(word for word in self.corpus.words(self.split) if word not in present)
        if len(left) < 50:
            raise TaskError(
                f"corpus {self.corpus.name!r} has {len(left)} words left for keys and values in split {self.split!r}, "
                "50 are needed: give a folder with more text, or ask for shorter documents"
            )
        return Vocabulary(left, frozenset(present))


@lru_cache(maxsize=4096)
def readable_lines(source: Source) -> Sequence[str]:
    """Lines without very long ones (tables of data), no more than one blank line in a row."""
    lines: list[str] = []
    for line in source.text.split("\n"):
        if len(line) <= _MAX_LINE_CHARS and (line.strip() or (lines and lines[-1])):
            lines.append(line.rstrip())
    return lines


def words_of(text: str) -> set[str]:
    """Words and numbers of a text in lower case; ``_`` parts words."""
    return set(_WORDS.findall(text.lower()))


def count_pieces(text: str) -> int:
    """About as many tokens as a byte-pair tokenizer trained on code would make of the text."""
    return len(_PIECES.findall(text))


def fit(draft: Callable[[int], Drafted], target_tokens: int, tokens_of: Callable[[Drafted], int]) -> Drafted:
    """The largest document (or whatever is drafted) of at most ``target_tokens``.

    Raises:
        TaskError: not even the smallest fits, or there is not enough text for the length.
    """
    low, low_tokens = 0, tokens_of(draft(0))
    if low_tokens > target_tokens:
        raise TaskError(
            f"length is {target_tokens}; such a document takes at least {low_tokens} tokens, so ask for more"
        )
    high, high_tokens = max(1, target_tokens // 8), 0
    while (high_tokens := tokens_of(draft(high))) <= target_tokens:
        if high_tokens <= low_tokens and draft(2 * high) == draft(high):
            raise _too_short(high_tokens, target_tokens)
        low, low_tokens, high = high, high_tokens, 2 * high
    while high - low > 1:
        share = (target_tokens - low_tokens) / max(1, high_tokens - low_tokens)
        middle = min(high - 1, max(low + 1, low + round(share * (high - low))))
        tokens = tokens_of(draft(middle))
        if tokens <= target_tokens:
            low, low_tokens = middle, tokens
        else:
            high, high_tokens = middle, tokens
    return draft(low)


def _too_short(tokens: int, target_tokens: int) -> TaskError:
    return TaskError(
        f"length is {target_tokens}; the corpus has text for about {tokens} tokens only: ask for shorter documents, or "
        "give a folder with more text"
    )


def join_lines(lines: Sequence[str]) -> str:
    """Lines with a line break behind each."""
    return "".join(f"{line}\n" for line in lines)


def pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    """One of ``items``."""
    return str(items[int(rng.integers(len(items)))])


def draw(asked: Sequence[Asked], fractions: Iterable[float]) -> tuple[Asked, ...]:
    """What the fractions (0 to 1) point at; drawn with replacement, so a key may be asked again."""
    return tuple(asked[int(fraction * len(asked))] for fraction in fractions)

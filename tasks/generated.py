"""Generated tasks: facts hidden in a document that looks like prose or like code, then questions about them.

A prose-like document of 31 tokens with two facts, and one question::

    the old lantern follows this river. every miller captain=amber closes the quiet door near a bridge,
    a wheel turns. beacon=otter the rope holds
    ask captain=                                     (the answer is ``amber``)

and a code-like one::

    # paints the lantern
    # captain=amber
    def follows(river):
        door = closes(river)
        beacon=otter
        return door

Each document has exactly the number of tokens asked for, so the examples of a task need no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from tasks.task import Example, Question, Split
from tasks.words import (
    ADJECTIVES,
    ADVERBS,
    ASK,
    DETERMINERS,
    INDENT,
    KEYS,
    NEWLINE,
    NOUNS,
    PREPOSITIONS,
    VALUES,
    VERBS,
    join_words,
)

DocumentKind = Literal["facts_prose", "facts_code"]

MIN_TOKENS_PER_FACT = 4
"""The longest form of a fact: two layout words, key, value."""
TOKENS_PER_QUESTION = 4
"""Line break, ``ask``, key, and the answer's one token."""

_SPLIT_NUMBERS: Mapping[Split, int] = MappingProxyType({"train": 0, "heldout": 1})
_KIND_NUMBERS: Mapping[DocumentKind, int] = MappingProxyType({"facts_prose": 0, "facts_code": 1})


@dataclass(frozen=True, slots=True)
class Document:
    """A document and the facts in it."""

    words: tuple[str, ...]
    """One token each; the beginning-of-sequence token is not among them."""
    facts: Mapping[str, str]
    """Value word by key word, in order of appearance."""

    @property
    def text(self) -> str:
        """The document as the model's tokenizer gets it."""
        return join_words(self.words)


@dataclass(frozen=True, slots=True)
class GeneratedTask:
    """Facts hidden in generated documents of one kind and one length; see the module's docstring."""

    name: str
    kind: DocumentKind
    length: int
    """Tokens of a document, the beginning-of-sequence token included."""
    num_facts: int
    num_questions: int
    seed: int

    def num_examples(self, split: Split) -> None:
        """As many as one likes."""

    def example(self, split: Split, index: int) -> Example:
        """The example at ``index``: a function of seed, kind, split and index alone."""
        rng = np.random.default_rng([self.seed, _KIND_NUMBERS[self.kind], _SPLIT_NUMBERS[split], index])
        document = write_document(self.kind, self.length, draw_facts(rng, self.num_facts, split), rng)
        questions = ask(document, self.num_questions, rng)
        return Example(task=self.name, split=split, index=index, prompt=document.text, questions=questions)


def draw_facts(rng: np.random.Generator, num_facts: int, split: Split | None) -> dict[str, str]:
    """Draws ``num_facts`` values by key, no key twice.

    A pair of key and value belongs to one split only (by the parity of their places in the vocabulary), so the splits
    share no document and not even a fact. ``None`` draws from both: what the model is trained on must not tell it that
    half of the values are impossible.
    """
    keys = rng.permutation(len(KEYS))[:num_facts]
    parities = rng.integers(2, size=num_facts) if split is None else (keys + _SPLIT_NUMBERS[split]) % 2
    values = 2 * rng.integers(len(VALUES) // 2, size=num_facts) + parities
    return {KEYS[key]: VALUES[value] for key, value in zip(keys, values, strict=True)}


def write_document(kind: DocumentKind, length: int, facts: Mapping[str, str], rng: np.random.Generator) -> Document:
    """Hides ``facts`` in filler: a document of ``length`` tokens, the beginning-of-sequence token included."""
    style = _STYLES[kind]
    hidden = [style.fact(rng, key, value) for key, value in facts.items()]
    filler = _cut(style.paragraph, length - 1 - sum(map(len, hidden)), rng)
    gaps = style.gaps(filler)
    places = sorted(gaps[i] for i in rng.integers(len(gaps), size=len(hidden)))
    words: list[str] = []
    start = 0
    for place, fact in zip(places, hidden, strict=True):
        words += [*filler[start:place], *fact]
        start = place
    return Document(words=(*words, *filler[start:]), facts=MappingProxyType(dict(facts)))


def ask(document: Document, num_questions: int, rng: np.random.Generator) -> tuple[Question, ...]:
    """Questions about facts drawn with replacement.

    With replacement because a model that is never asked twice learns to rule out the values that it has already given
    instead of looking them up.
    """
    facts = tuple(document.facts.items())
    drawn = rng.integers(len(facts), size=num_questions)
    return tuple(Question(text=join_words((NEWLINE, ASK, facts[i][0])), answer=facts[i][1]) for i in drawn)


# What documents look like --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Style:
    paragraph: Callable[[np.random.Generator], list[str]]
    """Some filler."""
    fact: Callable[[np.random.Generator, str, str], list[str]]
    """The words that hide a fact."""
    gaps: Callable[[Sequence[str]], list[int]]
    """Places in the filler where a fact may stand."""


def _cut(paragraph: Callable[[np.random.Generator], list[str]], num_words: int, rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    while len(words) < num_words:
        words += paragraph(rng)
    return words[:num_words]


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _thing(rng: np.random.Generator) -> list[str]:
    adjective = [_pick(rng, ADJECTIVES)] if rng.random() < 0.4 else []
    return [_pick(rng, DETERMINERS), *adjective, _pick(rng, NOUNS)]


def _clause(rng: np.random.Generator) -> list[str]:
    adverb = [_pick(rng, ADVERBS)] if rng.random() < 0.3 else []
    where = [_pick(rng, PREPOSITIONS), *_thing(rng)] if rng.random() < 0.5 else []
    return [*_thing(rng), *adverb, _pick(rng, VERBS), *_thing(rng), *where]


def _prose_paragraph(rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    for _ in range(int(rng.integers(2, 6))):
        second = [",", *_clause(rng)] if rng.random() < 0.25 else []
        words += [*_clause(rng), *second, "."]
    return [*words, NEWLINE]


def _prose_fact(rng: np.random.Generator, key: str, value: str) -> list[str]:  # noqa: ARG001
    return [key, value]


def _anywhere(filler: Sequence[str]) -> list[int]:
    return list(range(len(filler) + 1))


def _comment(rng: np.random.Generator) -> list[str]:
    return ["#", _pick(rng, VERBS), *_thing(rng), NEWLINE]


def _statement(rng: np.random.Generator, argument: str) -> list[str]:
    if rng.random() < 0.25:
        return _comment(rng)
    if rng.random() < 0.25:
        return [_pick(rng, NOUNS), "=", _pick(rng, NOUNS), NEWLINE]
    return [_pick(rng, NOUNS), "=", _pick(rng, VERBS), "(", argument, ")", NEWLINE]


def _function(rng: np.random.Generator) -> list[str]:
    argument = _pick(rng, NOUNS)
    words = _comment(rng) if rng.random() < 0.4 else []
    words += ["def", _pick(rng, VERBS), "(", argument, ")", ":", NEWLINE]
    for _ in range(int(rng.integers(1, 5))):
        words += [INDENT, *_statement(rng, argument)]
    return [*words, INDENT, "return", _pick(rng, NOUNS), NEWLINE, NEWLINE]


def _code_fact(rng: np.random.Generator, key: str, value: str) -> list[str]:
    before = ([], ["#"], [INDENT])[int(rng.integers(3))]
    return [*before, key, value, NEWLINE]


def _line_starts(filler: Sequence[str]) -> list[int]:
    return [0, *(i + 1 for i, word in enumerate(filler) if word == NEWLINE)]


_STYLES: Mapping[DocumentKind, _Style] = MappingProxyType(
    {
        "facts_prose": _Style(paragraph=_prose_paragraph, fact=_prose_fact, gaps=_anywhere),
        "facts_code": _Style(paragraph=_function, fact=_code_fact, gaps=_line_starts),
    }
)

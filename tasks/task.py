"""What is asked of a language model, and what counts as an answer.

A task knows text only: tokenizers, models and memories live in ``workers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Split = Literal["train", "heldout"]
"""``train`` examples enter the fitness; ``heldout`` ones are only ever reported."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a document: ``text`` is appended to the prompt, ``answer`` is the gold continuation."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its questions, asked one after the other on the same cache.

    ``task``, ``split`` and ``index`` identify the example for ever: the same three always give the same text.
    """

    task: str
    split: Split
    index: int
    prompt: str
    questions: tuple[Question, ...]


@runtime_checkable
class Task(Protocol):
    """A source of examples; every example is a function of the task's settings, the split and the index."""

    @property
    def name(self) -> str:
        """Name of the task in tables and file names: letters, digits, ``_`` and ``-``."""
        ...

    def example(self, split: Split, index: int) -> Example:
        """The example at ``index`` (0 or more) of ``split``."""
        ...


def exact_match(completion: str, answers: Sequence[str]) -> float:
    """1.0 when the completion equals any gold answer up to surrounding white space, else 0.0."""
    return float(any(completion.strip() == answer.strip() for answer in answers))

"""What is asked of a language model, and what counts as an answer.

A task knows text only: tokenizers, models and memories live in ``workers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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


@dataclass(frozen=True, slots=True)
class CompletionExample:
    """One prompt that the model goes on from in its own words; the task scores the completion.

    ``task``, ``split`` and ``index`` identify the example for ever, as those of an ``Example`` do.
    """

    task: str
    split: Split
    index: int
    prompt: str
    answers: tuple[str, ...]
    """Gold answers; the best of them counts."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion, as the end-of-sequence token does; they are cut off."""
    is_chat: bool = True
    """Whether the prompt is a request, that a chat template may be put around; not so for code to be continued."""


class Task(Protocol):
    """A source of examples with questions; every example is a function of the settings, the split and the index."""

    @property
    def name(self) -> str:
        """Name of the task in tables and file names: letters, digits, ``_`` and ``-``."""
        ...

    def num_examples(self, split: Split) -> int | None:
        """How many examples there are; None for as many as one likes."""
        ...

    def example(self, split: Split, index: int) -> Example:
        """The example at ``index`` (0 or more) of ``split``."""
        ...


class CompletionTask(Protocol):
    """A source of prompts to be completed freely, and the judge of the completions."""

    @property
    def name(self) -> str:
        """As ``Task.name``."""
        ...

    def num_examples(self, split: Split) -> int | None:
        """As ``Task.num_examples``."""
        ...

    def example(self, split: Split, index: int) -> CompletionExample:
        """As ``Task.example``."""
        ...

    def score(self, example: CompletionExample, completion: str) -> float:
        """The task's own score of a completion, 0 to 1."""
        ...


def exact_match(completion: str, answers: Sequence[str]) -> float:
    """1.0 when the completion equals any gold answer up to surrounding white space, else 0.0."""
    return float(any(completion.strip() == answer.strip() for answer in answers))

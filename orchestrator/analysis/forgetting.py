"""What is forgotten by kind of token: a memory beside rivals that hold exactly as many tokens in every head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.analysis.traced_text import (
    TracedText,
    equal_rival,
    read_under,
    survival_table,
    tokens_table,
    trace_table,
)
from orchestrator.errors import InputError
from tasks.token_kinds import Language, guess_language
from workers.language_model import LanguageModel
from workers.memory.build import build_memory
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalName

MEMORY = "namm"
RIVALS: tuple[RivalName, ...] = ("random", "h2o")
"""What a memory's choice is compared with: chance, and attention received so far."""
MARKED_TEXTS = 3
"""Texts whose tokens are kept one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToRead:
    """A text and where it comes from."""

    task: str
    """Name of the task, or of the file."""
    example: int
    text: str
    language: Language

    @classmethod
    def of(cls, task: str, example: int, text: str, language: Language | None = None) -> TextToRead:
        """A text whose language is guessed unless it is known."""
        return cls(task=task, example=example, text=text, language=language or guess_language(text))


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What came of some texts: three tables, as ``schemas.py`` has them."""

    survival: pa.Table
    traces: pa.Table
    traced_tokens: pa.Table


def forgetting(
    language_model: LanguageModel, memory: PretrainedMemory, texts: Sequence[TextToRead], seed: int = 0
) -> Forgetting:
    """Read texts under a memory and its rivals, and count which tokens survive.

    Args:
        language_model: the frozen model.
        memory: whose choice is in question.
        texts: at least one; tokens are followed one by one in the first of each task, ``MARKED_TEXTS`` in all.
        seed: of the random rival.

    Raises:
        InputError: no text is as long as the memory's first update, or one is longer than the model can read.
    """
    policy, every = memory.build(), memory.spec.settings.update_every
    found: list[tuple[str, str, int, TracedText]] = []
    for one in texts:
        read = read_under(language_model, policy, one.text, one.language)
        found.append((MEMORY, one.task, one.example, read))
        for rival in RIVALS if read.trace.num_updates else ():
            spec = equal_rival(rival, read.trace, every, seed)
            other = build_memory(spec, np.zeros((1, 0), np.float32))
            found.append((rival, one.task, one.example, read_under(language_model, other, one.text, one.language)))
    if not any(read.trace.num_updates for _, _, _, read in found):
        raise InputError(
            f"every text is shorter than the memory's first update, after {every} tokens: take longer ones"
        )
    marked = [read for name, _, _, read in found if name == MEMORY]
    chosen = [marked[place] for place in _first_of_each([one.task for one in texts])]
    return Forgetting(
        survival=survival_table(found),
        traces=pa.concat_tables([trace_table(read, number) for number, read in enumerate(chosen)]),
        traced_tokens=pa.concat_tables([tokens_table(read, number) for number, read in enumerate(chosen)]),
    )


def _first_of_each(tasks: Sequence[str]) -> list[int]:
    """Places of ``MARKED_TEXTS`` texts: the first of each task, then the second, and so on."""
    turns = [tasks[:place].count(task) for place, task in enumerate(tasks)]
    order = sorted(range(len(tasks)), key=lambda place: (turns[place], place))
    return order[:MARKED_TEXTS]


def renumbered(texts: Sequence[TextToRead]) -> list[TextToRead]:
    """Texts that have no number of their own, as files, numbered as they come."""
    return [dataclasses.replace(one, example=number) for number, one in enumerate(texts)]

"""LongBench's few-shot tasks in the 256 words of the small Llama: prompts that end in a question which it can answer.

The document is one of ``tasks.generated``, with facts hidden in prose or code, and the question asks for one of them.
All other prompts go on behind the question, in words that the small Llama does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tasks.documents import TextPool
from tasks.generated import MIN_TOKENS_PER_FACT, DocumentKind, GeneratedTask
from tasks.words import NEWLINE, VALUES
from tasks.writers.rows import Row, RowDraft, RowMaker

NUM_FACTS = 8


def facts(kind: DocumentKind, classes: tuple[str, ...] | None = None) -> RowMaker:
    """Rows that ask for one fact of a generated document; its size is its words."""

    def make(rng: np.random.Generator, _pool: TextPool) -> RowDraft:
        seed = int(rng.integers(2**31))

        def row(size: int) -> Row:
            length = 2 + MIN_TOKENS_PER_FACT * NUM_FACTS + size
            task = GeneratedTask("words", kind, length, NUM_FACTS, num_questions=1, seed=seed)
            example = task.example("heldout", 0)
            (question,) = example.questions
            return Row(example.prompt.rstrip(), question.text.removeprefix(NEWLINE), (question.answer,), classes)

        return row

    return make


TASKS: Mapping[str, RowMaker] = MappingProxyType(
    {
        "trec": facts("facts_prose", classes=VALUES),
        "triviaqa": facts("facts_code"),
        "samsum": facts("facts_prose"),
    }
)
"""By LongBench's names."""

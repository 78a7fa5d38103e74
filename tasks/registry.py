"""From a task's settings to the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["facts_prose", "facts_code"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """One generated task."""

    kind: TaskKind
    """What the documents look like."""
    length: int = 256
    """Tokens of the document, the beginning-of-sequence token included, questions not."""
    num_facts: int = 8
    """Facts hidden in a document."""
    num_questions: int = 4
    """Questions asked about a document, drawn with replacement among its facts."""
    seed: int = 0
    """Decides every example together with split and index."""

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.kind}-{self.length}"

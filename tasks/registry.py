"""From a task's settings to the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tasks.errors import TaskError
from tasks.generated import MIN_TOKENS_PER_FACT, GeneratedTask
from tasks.task import Task
from tasks.words import KEYS

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

    def __post_init__(self) -> None:
        """Refuses settings that no document can satisfy.

        Raises:
            TaskError: names the key, what came, what is allowed and what to do.
        """
        if self.kind not in get_args(TaskKind):
            raise TaskError(f"kind is {self.kind!r}; known kinds are {', '.join(get_args(TaskKind))}")
        for key, value in (("num_facts", self.num_facts), ("num_questions", self.num_questions)):
            if value < 1:
                raise TaskError(f"{key} is {value}; ask for at least 1")
        if self.seed < 0:
            raise TaskError(f"seed is {self.seed}; choose 0 or more")
        if self.num_facts > len(KEYS):
            raise TaskError(f"num_facts is {self.num_facts}; there are {len(KEYS)} keys, so ask for at most that many")
        shortest = 2 + MIN_TOKENS_PER_FACT * self.num_facts
        if self.length < shortest:
            raise TaskError(
                f"num_facts is {self.num_facts}, too many for documents of length {self.length}; "
                f"set length to at least {shortest}, or num_facts to at most {(self.length - 2) // MIN_TOKENS_PER_FACT}"
            )

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.kind}-{self.length}"


def build_task(settings: TaskSettings) -> Task:
    """The task that ``settings`` describe."""
    return GeneratedTask(
        name=settings.name,
        kind=settings.kind,
        length=settings.length,
        num_facts=settings.num_facts,
        num_questions=settings.num_questions,
        seed=settings.seed,
    )

"""From a task's settings to the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, overload

from tasks.corpus_task import CorpusTaskKind, CorpusTaskSettings, build_corpus_task
from tasks.documents import CountTokens
from tasks.errors import TaskError
from tasks.generated import MIN_TOKENS_PER_FACT, GeneratedTask
from tasks.profiles import Profile
from tasks.suites import SuiteKind, check_task, suite_named
from tasks.task import CompletionTask, Task
from tasks.words import KEYS

TaskKind = Literal["facts_prose", "facts_code"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedTaskSettings:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteTaskSettings:
    """One task of a published suite, from staged files (``namm tasks fetch``, ``namm tasks generate``)."""

    kind: SuiteKind
    """The suite."""
    task: str
    """Name of the task in the suite."""
    profile: Profile = "lm_eval"
    """``lm_eval``: prompts, stops and scores as that library has them. ``paper``: as the published runs have them."""
    data: str | None = None
    """Folder that suites are staged in; None for ``$NAMM_TASKS``, or else ``~/.cache/namm/tasks``."""
    length: int | None = None
    """RULER's context length in tokens; None for all other suites."""

    def __post_init__(self) -> None:
        """Refuses what is not in the catalogue.

        Raises:
            TaskError: names the key, what came, what is allowed.
        """
        if self.profile not in get_args(Profile):
            raise TaskError(f"profile is {self.profile!r}; known profiles are {', '.join(get_args(Profile))}")
        check_task(suite_named(self.kind), self.task, self.length)

    @property
    def name(self) -> str:
        """Name in tables and files."""
        length = f"-{self.length}" if self.length else ""
        return f"{self.kind}-{self.task}{length}"


TaskSettings = GeneratedTaskSettings | CorpusTaskSettings | SuiteTaskSettings

SIZED = (GeneratedTaskSettings, CorpusTaskSettings)
"""Settings of tasks whose examples are made up, at any length."""


def task_settings(values: Mapping[str, Any]) -> TaskSettings:
    """The settings that a plain dictionary holds, as ``dataclasses.asdict`` made it.

    Raises:
        TaskError: as the settings' own checks.
    """
    if values["kind"] in get_args(TaskKind):
        return GeneratedTaskSettings(**values)
    return CorpusTaskSettings(**values) if values["kind"] in get_args(CorpusTaskKind) else SuiteTaskSettings(**values)


@overload
def build_task(
    settings: GeneratedTaskSettings | CorpusTaskSettings, count_tokens: CountTokens | None = None
) -> Task: ...


@overload
def build_task(settings: TaskSettings, count_tokens: CountTokens | None = None) -> Task | CompletionTask: ...


def build_task(settings: TaskSettings, count_tokens: CountTokens | None = None) -> Task | CompletionTask:
    """The task that ``settings`` describe.

    Args:
        settings: which task.
        count_tokens: of the model that will be asked; tasks over real text that say ``tokenizer: model`` need it.

    Raises:
        TaskError: a published suite is not staged, or not as it was, or a package that it needs is missing; a corpus
            is missing or not the expected one.
    """
    if isinstance(settings, CorpusTaskSettings):
        return build_corpus_task(settings, count_tokens)
    if isinstance(settings, SuiteTaskSettings):
        from tasks.lm_eval_adapter import suite_task

        return suite_task(settings.name, **asdict(settings))
    return GeneratedTask(
        name=settings.name,
        kind=settings.kind,
        length=settings.length,
        num_facts=settings.num_facts,
        num_questions=settings.num_questions,
        seed=settings.seed,
    )

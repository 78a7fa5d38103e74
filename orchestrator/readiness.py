"""Whether the examples that a run is to ask are there, and fit into the model's window: found out before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.errors import ConfigError
from tasks.registry import GeneratedTaskSettings, TaskSettings, build_task
from tasks.task import CompletionTask, Example, Split, Task
from workers.language_model import load_tokenizer
from workers.prompts import PromptEncoder
from workers.settings import ModelSettings, PromptSettings

Wanted = Mapping[str, Mapping[Split, Sequence[int]]]
"""By task and split, the examples that will be asked."""


def available(tasks: Iterable[TaskSettings], split: Split, most: int) -> dict[str, tuple[int, ...]]:
    """The first examples of every task: ``most``, or as many as there are.

    Raises:
        TaskError: a suite is not staged, or its files are not as they should be.
    """
    counts = {settings.name: build_task(settings).num_examples(split) for settings in tasks}
    return {name: tuple(range(most if count is None else min(most, count))) for name, count in counts.items()}


def require_pool(tasks: Iterable[TaskSettings], pool: int) -> None:
    """Make sure that every task has so many training examples.

    Raises:
        ConfigError: names the task, and how many it has.
        TaskError: as ``available``.
    """
    for name, examples in available(tasks, "train", pool).items():
        if len(examples) < pool:
            raise ConfigError(
                f"examples.pool is {pool}, but task {name} has {len(examples)} training examples: "
                f"set it to at most {len(examples)}"
            )


def require_room(model: ModelSettings, prompts: PromptSettings, tasks: Iterable[TaskSettings], wanted: Wanted) -> None:
    """Make sure that every prompt fits into the model's window, or may be cut; needs the tokenizer, no weights.

    Raises:
        PromptError: names the first example that does not fit.
        ModelError: the tokenizer cannot be loaded.
        TaskError: as ``available``.
    """
    encoder = PromptEncoder(*load_tokenizer(model), prompts)
    for settings in tasks:
        task = build_task(settings)
        for split, examples in wanted.get(settings.name, {}).items():
            # Generated documents are all of one length, and what may be cut always fits once one does.
            is_one_enough = isinstance(settings, GeneratedTaskSettings) or prompts.truncation != "refuse"
            for index in examples[:1] if is_one_enough else examples:
                _encode(encoder, task, split, index)


def _encode(encoder: PromptEncoder, task: Task | CompletionTask, split: Split, index: int) -> None:
    example = task.example(split, index)
    if isinstance(example, Example):
        encoder.questions(example)
    else:
        encoder.prompt(example)

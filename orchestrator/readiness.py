"""Whether the examples that a run is to ask are there, and fit into the model's window: found out before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator.errors import ConfigError
from tasks.corpus_task import MODEL_TOKENIZER, CorpusTaskSettings
from tasks.documents import count_pieces
from tasks.registry import SIZED, TaskSettings, build_task
from tasks.task import CompletionTask, Example, Split, Task
from workers.language_model import cache_layout, count_tokens, load_tokenizer
from workers.memory.specs import NammSettings
from workers.prompts import PromptEncoder
from workers.settings import ModelSettings, PromptSettings

Wanted = Mapping[str, Mapping[Split, Sequence[int]]]
"""By task and split, the examples that will be asked."""


def available(tasks: Iterable[TaskSettings], split: Split, most: int) -> dict[str, tuple[int, ...]]:
    """The first examples of every task: ``most``, or as many as there are.

    Raises:
        TaskError: a suite is not staged, or its files are not as they should be.
    """
    # Counting pieces of words is enough here: how many examples there are has nothing to do with their length.
    counts = {settings.name: build_task(settings, count_pieces).num_examples(split) for settings in tasks}
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


def require_layout(memory: NammSettings, model: ModelSettings) -> None:
    """Make sure that a memory with genes for each layer and KV head is attached to a model that has just these.

    Raises:
        ConfigError: names both.
        ModelError: the model's configuration cannot be read.
    """
    if memory.layout is not None and memory.layout != (found := cache_layout(model)):
        raise ConfigError(
            f"memory.layout is {list(memory.layout)}, but {model.path_or_id!r} has {found[0]} layers of {found[1]} KV "
            f"heads: set it to {list(found)}; a genome that knows heads apart serves no other model"
        )


def require_room(model: ModelSettings, prompts: PromptSettings, tasks: Iterable[TaskSettings], wanted: Wanted) -> None:
    """Make sure that every prompt fits into the model's window, or may be cut; needs the tokenizer, no weights.

    Raises:
        PromptError: names the first example that does not fit.
        ConfigError: the model's tokenizer is not the one that a task's documents were cut for.
        ModelError: the tokenizer cannot be loaded.
        TaskError: as ``available``.
    """
    tokenizer, max_tokens = load_tokenizer(model)
    encoder = PromptEncoder(tokenizer, max_tokens, prompts)
    for settings in tasks:
        task = build_task(settings, partial(count_tokens, tokenizer))
        for split, examples in wanted.get(settings.name, {}).items():
            # Made-up documents are all of one length, and what may be cut always fits once one does.
            is_one_enough = isinstance(settings, SIZED) or prompts.truncation != "refuse"
            for index in examples[:1] if is_one_enough else examples:
                if isinstance(settings, CorpusTaskSettings):
                    _require_tokenizer(settings, model.path_or_id, tokenizer, task.example(split, index))
                _encode(encoder, task, split, index)


def _require_tokenizer(settings: CorpusTaskSettings, model: str, tokenizer: Any, example: Any) -> None:
    """Make sure that the model's tokenizer knows real text, and is the one that the documents were cut for."""
    text = example.prompt + "".join(question.text + question.answer for question in example.questions)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    num_unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if num_unknown > len(ids) // 100 or len(ids) < len(text) // 100:
        raise ConfigError(
            f"tasks: the tokenizer of {model!r} does not know the text of {settings.name} ({num_unknown} of "
            f"{len(ids)} tokens stand for unknown words): choose a model that reads real text, or the generated tasks"
        )
    if settings.tokenizer in (None, MODEL_TOKENIZER):
        return
    theirs = build_task(settings).count_tokens(text)  # type: ignore[attr-defined]  # of a corpus task
    if theirs != len(ids):
        raise ConfigError(
            f"tasks: {settings.name} is cut to its length by the tokenizer in {settings.tokenizer!r}, which is not "
            f"that of {model!r} ({theirs} and {len(ids)} tokens of one document): set the task's tokenizer to 'model', "
            "or choose the model that it belongs to"
        )


def _encode(encoder: PromptEncoder, task: Task | CompletionTask, split: Split, index: int) -> None:
    example = task.example(split, index)
    if isinstance(example, Example):
        encoder.questions(example)
    else:
        encoder.prompt(example)

"""What a memory is compared on in a language model."""

from __future__ import annotations

import dataclasses

from orchestrator.commands.tasks_named import overrides_for
from orchestrator.config import RunConfig, load_config
from orchestrator.readiness import Wanted as WantedExamples
from orchestrator.readiness import available, require_room
from orchestrator.run import evaluation_plan, evaluation_tasks, table_lengths, worker_recipe
from orchestrator.transfer import EXACT, GRADED, Target, Wanted
from workers.errors import ModelError
from workers.language_model import model_folder
from workers.local_llamas import LLAMAS
from workers.local_models import Say, local_model

PRESET = "small"
"""Whose tasks, examples and cluster are used where nothing else is asked for."""


def language_target(model: str, wanted: Wanted, say: Say) -> Target:
    """What to compare a memory on; a model of this project's own is trained first, where that was not done yet.

    Raises:
        InputError, ConfigError, ModelError, TaskError, PromptError: what the user can mend.
    """
    config = settings_for(str(local_model(LLAMAS[model], say)) if model in LLAMAS else model, wanted)
    examples = available(evaluation_tasks(config), "heldout", config.examples.heldout)
    plan = dataclasses.replace(evaluation_plan(config), examples=examples)
    wants: WantedExamples = {task: {"heldout": indices} for task, indices in examples.items()}
    require_room(config.model, config.prompts, evaluation_tasks(config), wants)
    return Target(
        model=model,
        recipe=worker_recipe(config),
        plan=plan,
        lengths=table_lengths(config),
        cluster=config.cluster,
        figure=GRADED if config.fitness.score == "graded" else EXACT,
        statistics_examples=plan.control_examples,
        settings={"tasks": list(plan.tasks), "path_or_id": config.model.path_or_id, "revision": config.model.revision},
    )


def require_pinned(path: str, revision: str | None) -> None:
    """Make sure that a model from the hub can be had again as it is.

    Raises:
        ModelError: it names no commit.
    """
    if model_folder(path) is None and not revision:
        raise ModelError(
            f"--to {path}: pin the commit of the hub model, as in {path}@COMMIT, so that it can be repeated"
        )


def settings_for(path_or_id: str, wanted: Wanted) -> RunConfig:
    """A run's settings with the model and the tasks that were asked for.

    Raises:
        InputError, ConfigError, TaskError: something has no such name.
    """
    name, _, revision = path_or_id.partition("@")
    settings = [f"model.path_or_id={name}", f"model.revision={revision or 'null'}"]
    if wanted.tasks is not None:
        settings += overrides_for(wanted.tasks, data=wanted.data, profile="lm_eval")
    if wanted.examples is not None:
        settings.append(f"examples.heldout={wanted.examples}")
    if wanted.rivals is not None:
        settings.append(f"evaluation.rivals=[{','.join(wanted.rivals)}]")
    return load_config(wanted.preset or PRESET, [*settings, *wanted.overrides])

"""What a memory is compared on in a vision-language model: letters chosen about clips."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from orchestrator.config import UnitSettings, load_config
from orchestrator.errors import InputError
from orchestrator.evaluation import EvaluationPlan
from orchestrator.targets_language import PRESET, require_pinned
from orchestrator.transfer import EXACT, SearchThere, Target, Wanted
from tasks.rows import cache_root
from tasks.task import Split
from tasks.video import ClipQuestion, VideoSuite, clip_tasks, read_suite
from tasks.video_frames import require_clips, require_decoder
from tasks.video_shapes import ShapeClips
from workers.local_models import Say, local_model
from workers.local_vision import WATCHERS
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalName
from workers.survey import load_config as model_config
from workers.vision_evaluator import ClipTask, StagedClips, VisionRecipe
from workers.vision_model import require_known

EXAMPLES = 128
STATISTICS_EXAMPLES = 16
REMARK_CLIPS = 32
"""Clips in which the forgotten frames are counted."""
FRAMES = 32
"""Of a clip of a suite, as LLaVA-NeXT-Video was published with."""
RIVALS: tuple[RivalName, ...] = ("recent", "random", "h2o", "snapkv", "tova", "l2norm", "truncation")
EXAMPLES_PER_UNIT = 16


def vision_target(model: str, wanted: Wanted, say: Say) -> Target:
    """What to compare a memory on.

    Raises:
        InputError, ConfigError, ModelError, TaskError: what the user can mend, found before any worker starts.
    """
    if model not in WATCHERS:
        require_known(model_config(model), model)
    tasks = _tasks(model, wanted)
    path, _, revision = (str(local_model(WATCHERS[model], say)) if model in WATCHERS else model).partition("@")
    require_pinned(path, revision)
    config = load_config(wanted.preset or PRESET, wanted.overrides)
    most = wanted.examples or EXAMPLES
    examples = {
        task.name: tuple(range(most if isinstance(task, ShapeClips) else min(most, len(task.questions["heldout"]))))
        for task in tasks
    }
    plan = EvaluationPlan(
        generation=0,
        examples=examples,
        control_examples=tuple(range(min(_num_training(task) for task in tasks))),
        rivals=RIVALS if wanted.rivals is None else wanted.rivals,
        units=UnitSettings(
            candidates_per_unit=1,
            examples_per_unit=EXAMPLES_PER_UNIT if isinstance(tasks[0], ShapeClips) else 1,
        ),
        seed=config.seed,
    )
    recipe = VisionRecipe(
        path_or_id=path,
        revision=revision or None,
        tasks=tasks,
        dtype=config.model.dtype,
        device=config.model.device,
    )
    is_ours = all(isinstance(task, ShapeClips) for task in tasks)
    return Target(
        model=model,
        recipe=recipe,
        plan=plan,
        lengths=dict.fromkeys(plan.tasks),
        cluster=config.cluster,
        figure=EXACT,
        statistics_examples=plan.control_examples,
        settings={"tasks": list(plan.tasks), "path_or_id": path, "revision": revision or None},
        remarks=(lambda memory: _forgotten(recipe, memory)) if is_ours else None,
        search_there=SearchThere() if is_ours else None,
    )


def _num_training(task: ClipTask) -> int:
    """Clips that statistics are re-estimated on, and the control's head is chosen."""
    if isinstance(task, ShapeClips):
        return STATISTICS_EXAMPLES
    return min(STATISTICS_EXAMPLES, len(task.questions["train"]))


def _forgotten(recipe: VisionRecipe, memory: PretrainedMemory) -> Mapping[str, str]:
    """Shares of frames' tokens that a memory has forgotten in the end: those that say nothing, and those that do."""
    evaluator = recipe.build()
    (task,) = (task for task in recipe.tasks if isinstance(task, ShapeClips))
    redundant, shown = evaluator.frames_kept(memory.build(), task, "heldout", range(REMARK_CLIPS))
    return {"redundant forgotten": f"{1 - redundant:.1%}", "shapes forgotten": f"{1 - shown:.1%}"}


def _tasks(model: str, wanted: Wanted) -> tuple[ClipTask, ...]:
    if wanted.tasks is None:
        if model not in WATCHERS:
            raise InputError(f"--to {model}: say with --tasks what to ask: {_known()}")
        return (ShapeClips(),)
    tasks: list[ClipTask] = []
    for name in wanted.tasks.split(","):
        tasks += _named(name.strip(), wanted)
    return tuple(tasks)


def _named(name: str, wanted: Wanted) -> list[ClipTask]:
    kind, _, length = name.partition("-")
    if kind == "shapes" and (not length or length.isdecimal()):
        return [ShapeClips(num_frames=int(length))] if length else [ShapeClips()]
    for suite in get_args(VideoSuite):
        if name == suite or name in clip_tasks(suite):
            require_decoder()
            found = read_suite(suite, _staged(wanted))
            chosen = {task: questions for task, questions in found.items() if name in (suite, task)}
            require_clips(question.video for questions in chosen.values() for question in questions)
            return [_split(task, questions) for task, questions in chosen.items()]
    raise InputError(f"--tasks: there is no {name!r} to ask about clips: {_known()}")


def _split(task: str, questions: tuple[ClipQuestion, ...]) -> StagedClips:
    """Every fourth question is for statistics and controls, the others are reported."""
    by_split: dict[Split, tuple[ClipQuestion, ...]] = {
        "train": questions[::4],
        "heldout": tuple(question for index, question in enumerate(questions) if index % 4) or questions,
    }
    return StagedClips(name=task, questions=by_split, num_frames=FRAMES)


def _staged(wanted: Wanted) -> Path:
    return Path(wanted.data or os.environ.get("NAMM_TASKS") or cache_root() / "tasks").expanduser()


def _known() -> str:
    return f"name shapes, shapes-24, {', '.join(get_args(VideoSuite))}, or a task such as mlvu-2_needle"

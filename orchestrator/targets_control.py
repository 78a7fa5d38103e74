"""What a memory is compared on in a Decision Transformer: returns of whole episodes in a MuJoCo environment."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config import UnitSettings, load_config
from orchestrator.errors import InputError
from orchestrator.evaluation import EvaluationPlan
from orchestrator.report import TableRow
from orchestrator.targets_language import PRESET, require_pinned
from orchestrator.transfer import Cell, Figure, Target, Wanted
from tasks.control import ENVIRONMENTS, VERSION, Environment, environment_named, make_environment, require_same_version
from tasks.control_data import PUBLISHED, REPLAY_HUB_ID, Recording, read_recording
from workers.control_evaluator import ControlRecipe
from workers.control_model import TOKENS_PER_STEP, ControlSettings
from workers.control_training import RETURN_SCALE
from workers.errors import ModelError
from workers.local_control import CONTROLLERS
from workers.local_models import Say, local_model
from workers.memory.specs import RivalName, RivalSpec

EPISODES = 24
"""Held-out episodes of each memory, unless told otherwise."""
STATISTICS_EPISODES = 4
WINDOW_STEPS = 20
"""Of the published models."""
RIVALS: tuple[RivalName, ...] = ("recent", "random", "h2o", "tova", "l2norm")


def control_target(model: str, wanted: Wanted, say: Say) -> Target:
    """What to compare a memory on.

    Raises:
        InputError, ConfigError, ModelError, TaskError: what the user can mend, found before any worker starts.
    """
    if model in CONTROLLERS:
        make_environment(_only(wanted.tasks or f"HalfCheetah-{VERSION}"))  # a missing extra, before minutes of training
        path, revision = str(local_model(CONTROLLERS[model], say)), None
    else:
        path, _, commit = model.partition("@")
        revision = commit or None
    require_pinned(path, revision)
    settings = settings_of(path, wanted)
    asked = _only(wanted.tasks or _current(settings.environment))
    environment, _ = environment_named(asked)
    if not wanted.other_version:
        require_same_version(settings.environment, asked)
    _require_shapes(asked, settings)
    config = load_config(wanted.preset or PRESET, wanted.overrides)
    episodes = tuple(range(wanted.examples or EPISODES))
    plan = EvaluationPlan(
        generation=0,
        examples={asked: episodes},
        control_examples=(),
        rivals=RIVALS if wanted.rivals is None else wanted.rivals,
        units=UnitSettings(candidates_per_unit=1, examples_per_unit=len(episodes)),
        seed=config.seed,
        allocations=("head",),
    )
    window = RivalSpec(name="truncation", budget=((TOKENS_PER_STEP * settings.window_steps,),))
    return Target(
        model=model,
        recipe=ControlRecipe(
            path_or_id=path,
            revision=revision,
            settings=settings,
            environment=asked,
            max_steps=wanted.max_steps,
        ),
        plan=plan,
        lengths={asked: None},
        cluster=config.cluster,
        figure=_return_in(environment),
        statistics_examples=tuple(range(STATISTICS_EPISODES)),
        baselines={f"window-{settings.window_steps}": window},
        settings={
            "tasks": [asked],
            "path_or_id": path,
            "revision": revision,
            "learned_from": settings.environment,
            "target_return": settings.target_return,
            "max_steps": wanted.max_steps or environment.max_steps,
        },
    )


def settings_of(path: str, wanted: Wanted) -> ControlSettings:
    """How a model is to be used: as is said beside it, or from the episodes that it has learned from.

    Raises:
        ModelError, InputError, TaskError: neither is there.
    """
    if wanted.data is None and (Path(path).is_dir() or path not in PUBLISHED):
        return ControlSettings.load(Path(path))
    if wanted.data is None:
        raise InputError(
            f"--to {path} needs the episodes that it has learned from, for the scale of its states: stage "
            f"{PUBLISHED[path]} of {REPLAY_HUB_ID} and name its folder with --data"
        )
    place = Path(wanted.data)
    within = place / PUBLISHED[path] if path in PUBLISHED and (place / PUBLISHED[path]).is_dir() else place
    return settings_from(read_recording(within))


def settings_from(recording: Recording) -> ControlSettings:
    """As the published models are used (arXiv 2106.01345, appendix A)."""
    mean, deviation = recording.state_statistics()
    environment, _ = environment_named(recording.environment)
    return ControlSettings(
        environment=recording.environment,
        state_mean=tuple(mean.tolist()),
        state_deviation=tuple(deviation.tolist()),
        return_scale=RETURN_SCALE,
        target_return=environment.target_return,
        window_steps=WINDOW_STEPS,
    )


def _current(recorded: str) -> str:
    """The environment of the version that there is, for one that a model has learned from."""
    return f"{environment_named(recorded)[0].name}-{VERSION}"


def _only(tasks: str) -> str:
    if "," in tasks:
        raise InputError(f"--tasks {tasks}: a Decision Transformer acts in the one environment it has learned from")
    environment_named(tasks)
    return tasks


def _require_shapes(environment: str, settings: ControlSettings) -> None:
    size = make_environment(environment).observation_space.shape[0]
    if size != len(settings.state_mean):
        raise ModelError(
            f"the model reads states of {len(settings.state_mean)} numbers, but {environment} has {size}: name its own "
            f"environment, one of {', '.join(f'{name}-{VERSION}' for name in ENVIRONMENTS)}"
        )


def _return_in(environment: Environment) -> Figure:
    def of(row: TableRow) -> Cell:
        return Cell(*(environment.raw(value) for value in (row.exact, row.exact_low, row.exact_high)))

    return Figure(f"return in {environment.name}", of, digits=0)

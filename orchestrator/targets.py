"""From the name of a model to what a memory is compared on there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from orchestrator.errors import InputError
from orchestrator.targets_control import control_target
from orchestrator.targets_language import language_target
from orchestrator.targets_vision import vision_target
from orchestrator.transfer import Target, Wanted
from workers.local_control import CONTROLLERS
from workers.local_llamas import LLAMAS
from workers.local_models import Say
from workers.local_vision import WATCHERS
from workers.survey import is_for_pictures
from workers.survey import load_config as model_config

Kind = Literal["language", "vision", "control"]

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"language": tuple(LLAMAS), "vision": tuple(WATCHERS), "control": tuple(CONTROLLERS)}
)
"""Names that stand for all models of a kind that this project trains by itself: each makes a table of the README."""

TARGETS: Mapping[Kind, Callable[[str, Wanted, Say], Target]] = MappingProxyType(
    {"language": language_target, "vision": vision_target, "control": control_target}
)


def models_named(what: str) -> tuple[str, ...]:
    """The models that a name stands for."""
    return GROUPS.get(what, (what,))


def kind_of(model: str) -> Kind:
    """What a model is, by its name or its configuration; nothing is trained, and no weights are read.

    Raises:
        InputError: no memory can be carried to it by this command.
        ModelError: there is no such model.
    """
    for kind, models in GROUPS.items():
        if model in models:
            return kind  # type: ignore[return-value]  # groups are named after kinds
    config = model_config(model)
    if config.is_encoder_decoder:
        raise InputError(f"--to {model}: a {config.model_type} has an encoder beside its decoder: name a decoder")
    if config.model_type == "decision_transformer":
        return "control"
    return "vision" if is_for_pictures(config) else "language"


def target_for(model: str, wanted: Wanted, say: Say) -> Target:
    """What to compare a memory on; a model of this project's own is trained first, where that was not done yet.

    Raises:
        InputError, ConfigError, ModelError, TaskError, PromptError: what the user can mend.
    """
    return TARGETS[kind_of(model)](model, wanted, say)

"""A small vision-language model for made-up clips, trained where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tasks.video_shapes import ShapeClips
from workers.errors import ModelError
from workers.local_models import LocalRecipe, Say, by_name
from workers.memory.specs import RivalSpec
from workers.unit import Unit
from workers.vision_evaluator import VisionEvaluator
from workers.vision_model import VisionModel
from workers.vision_training import (
    VisionProgress,
    VisionTrainingSettings,
    new_vision_model,
    save_vision,
    train_vision,
)

SAY_EVERY_STEPS = 50
LEAST_ACCURACY = 0.8


def vision_recipe(name: str, settings: VisionTrainingSettings) -> LocalRecipe:
    """Trains the model and writes it."""

    def make(folder: Path, say: Say) -> None:
        def report(progress: VisionProgress) -> None:
            if progress.step % SAY_EVERY_STEPS == 0:
                done = f"step {progress.step:,} of {settings.num_steps:,}"
                say(
                    f"training {name}: {done}, {progress.frames} frames, loss {progress.loss:.3f}, "
                    f"accuracy {progress.accuracy:.2f}"
                )

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the weights must not depend on the machine's cores, and more threads are slower
        try:
            vision = new_vision_model(settings.seed)
            train_vision(vision, settings, report)
        finally:
            torch.set_num_threads(threads)
        require_answers(name, vision, settings)
        save_vision(vision, folder)

    return LocalRecipe(name=name, settings=repr(settings), version=2, train=make)


def require_answers(name: str, vision: VisionModel, settings: VisionTrainingSettings) -> None:
    """Make sure that a model answers: memories are not compared on one that guesses.

    Raises:
        ModelError: too few held-out questions are answered rightly.
    """
    accuracy = heldout_accuracy(vision, settings.levels[-1][0])
    if accuracy < LEAST_ACCURACY:
        raise ModelError(
            f"{name} has not learned to answer: {accuracy:.0%} of held-out questions are right, {LEAST_ACCURACY:.0%} "
            "are needed to compare memories on it; name a vision-language model of your own with --to"
        )


def heldout_accuracy(vision: VisionModel, num_frames: int, num_clips: int = 64) -> float:
    """Share of held-out questions about made-up clips that a model answers rightly with its full cache."""
    clips = ShapeClips(num_frames=num_frames)
    unit = Unit(
        generation=0,
        memory_name="full",
        memory=RivalSpec(name="full"),
        task=clips.name,
        split="heldout",
        examples=tuple(range(num_clips)),
        candidates=(0,),
        genomes=np.zeros((1, 0), np.float32),
    )
    return float(VisionEvaluator(vision, {clips.name: clips}).score(unit).exact.mean())


WATCHERS: Mapping[str, LocalRecipe] = by_name(vision_recipe("shapes-vlm", VisionTrainingSettings()))
"""By name."""

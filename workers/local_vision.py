"""A small vision-language model for made-up clips, trained where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from workers.local_models import LocalRecipe, Say, by_name
from workers.vision_training import VisionTrainingSettings, new_vision_model, save_vision, train_vision

SAY_EVERY_STEPS = 50


def vision_recipe(name: str, settings: VisionTrainingSettings) -> LocalRecipe:
    """Trains the model and writes it."""

    def make(folder: Path, say: Say) -> None:
        def report(step: int, frames: int, loss: float, accuracy: float) -> None:
            if step % SAY_EVERY_STEPS == 0:
                done = f"step {step:,} of {settings.num_steps:,}"
                say(f"training {name}: {done}, {frames} frames, loss {loss:.3f}, accuracy {accuracy:.2f}")

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the weights must not depend on the machine's cores, and more threads are slower
        try:
            vision = new_vision_model(settings.seed)
            train_vision(vision, settings, report)
        finally:
            torch.set_num_threads(threads)
        save_vision(vision, folder)

    return LocalRecipe(name=name, settings=repr(settings), version=1, train=make)


WATCHERS: Mapping[str, LocalRecipe] = by_name(vision_recipe("shapes-vlm", VisionTrainingSettings()))
"""By name."""

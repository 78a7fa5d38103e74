"""A Decision Transformer for HalfCheetah, from nothing: episodes are made by random search, then learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.control import VERSION
from tasks.control_data import write_parquet
from tasks.control_search import SearchSettings, record
from workers.control_training import TrainingSettings, save_controller, train_controller
from workers.local_models import LocalRecipe, Say, by_name

SAY_EVERY_STEPS = 100


def controller_recipe(name: str, search: SearchSettings, training: TrainingSettings) -> LocalRecipe:
    """Makes episodes, keeps them as ``episodes.parquet`` beside the model, and trains it."""

    def make(folder: Path, say: Say) -> None:
        def told(iteration: int, mean_return: float) -> None:
            say(
                f"recording {search.environment}: iteration {iteration + 1} of {search.num_iterations}, "
                f"mean return {mean_return:,.0f}"
            )

        def learned(step: int, loss: float) -> None:
            if step % SAY_EVERY_STEPS == 0:
                say(f"training {name}: step {step:,} of {training.num_steps:,}, loss {loss:.4f}")

        recording = record(search, told)
        write_parquet(folder / "episodes.parquet", recording.episodes)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the weights must not depend on the machine's cores, and more threads are slower
        try:
            save_controller(*train_controller(recording, training, learned), folder)
        finally:
            torch.set_num_threads(threads)

    return LocalRecipe(name=name, settings=f"{search!r} {training!r}", version=1, train=make)


CONTROLLERS: Mapping[str, LocalRecipe] = by_name(
    controller_recipe("cheetah-dt", SearchSettings(environment=f"HalfCheetah-{VERSION}"), TrainingSettings())
)
"""By name."""

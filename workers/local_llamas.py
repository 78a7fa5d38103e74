"""Small Llamas of other shapes than the shipped one, for a memory to be carried over to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from workers.local_models import LocalRecipe, Say, by_name
from workers.shapes import SHAPES, SMALL_LLAMA
from workers.training import Progress, new_model, save, train

SEED = 1
SAY_EVERY_STEPS = 50


def _recipe(name: str) -> LocalRecipe:
    shape = SHAPES[name]

    def make(folder: Path, say: Say) -> None:
        def report(progress: Progress) -> None:
            if progress.step % SAY_EVERY_STEPS == 0:
                done = f"step {progress.step:,} of {shape.num_steps:,}"
                say(f"training {name} ({shape}): {done}, {progress.level}, accuracy {progress.accuracy:.2f}")

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the weights must not depend on the machine's cores, and more threads are slower
        try:
            model = new_model(SEED, shape)
            train(model, SEED, shape.num_steps, report, shape.peak_learning_rate)
        finally:
            torch.set_num_threads(threads)
        save(model, folder)

    return LocalRecipe(name=name, settings=f"{shape!r} seed {SEED}", version=1, train=make)


LLAMAS: Mapping[str, LocalRecipe] = by_name(*(_recipe(name) for name in SHAPES if name != SMALL_LLAMA))
"""By name: ``deep-llama`` and so on."""

"""Models that this project trains by itself where they are needed, and keeps in the user's cache folder.

A folder is named after the recipe that decides its weights, so another recipe never finds an old model. It is made
under another name and renamed when it is whole: an interrupted training leaves nothing that could be taken for a model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.rows import CACHE_VARIABLE, cache_root
from workers.errors import ModelError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LocalRecipe:
    """How to make one model."""

    name: str
    settings: str
    """All that decides the weights, besides the code of ``version``."""
    version: int
    """Counted up by whoever changes what the same settings give."""
    train: Callable[[Path, Say], None]
    """Writes the model to an empty folder, telling how far it is."""

    @property
    def folder(self) -> Path:
        """Where the model is, or will be."""
        digest = hashlib.sha256(f"{self.settings} {self.version}".encode()).hexdigest()[:12]
        return cache_root() / "models" / f"{self.name}-{digest}"


def local_model(recipe: LocalRecipe, say: Say) -> Path:
    """The folder of a model; trained now if it is not there.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    folder = recipe.folder
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{recipe.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"{folder.parent} cannot be written ({error.strerror or error}): "
            f"name another folder for trained models with the environment variable {CACHE_VARIABLE}"
        ) from error
    try:
        recipe.train(unfinished, say)
        unfinished.chmod(0o755)
        try:
            os.replace(unfinished, folder)
        except OSError:  # somebody else has trained the same model meanwhile
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def by_name(*recipes: LocalRecipe) -> Mapping[str, LocalRecipe]:
    """Recipes under their names."""
    return {recipe.name: recipe for recipe in recipes}

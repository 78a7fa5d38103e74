"""Which weights a folder holds, as one number: for models that are not kept with the code."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from workers.errors import ModelError
from workers.settings import ModelSettings


@cache
def weights_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of the ``.safetensors`` files in a folder, in hexadecimal digits.

    Raises:
        ModelError: there is none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"model.sha256: there are no .safetensors files in {str(folder)!r}: fetch the model again")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def require_checksum(settings: ModelSettings, folder: Path | None) -> None:
    """Make sure that the weights are the expected ones, where the settings say which.

    Args:
        settings: of the model.
        folder: where it lies; None for a model on the hub.

    Raises:
        ModelError: they are others, or the model is on the hub.
    """
    if settings.sha256 is None:
        return
    if folder is None:
        raise ModelError(
            f"model.sha256 is for folders, but {settings.path_or_id!r} is on the hub: name its commit in "
            "model.revision, and leave model.sha256 out"
        )
    found = weights_sha256(folder.resolve())
    if not found.startswith(settings.sha256.lower()):
        raise ModelError(
            f"model.sha256 is {settings.sha256!r}, but the weights in {str(folder)!r} have {found}: get the "
            "checkpoint that is meant, or set model.sha256 to what is there"
        )

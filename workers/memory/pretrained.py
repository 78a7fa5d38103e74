"""A finished memory as files: ``config.json`` and ``model.safetensors``, a few kilobytes. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from workers.memory.build import build_memory
from workers.memory.errors import MemoryFileError
from workers.memory.memory import Memory
from workers.memory.specs import NammSettings, NammSpec, Normalisation

FORMAT = "namm-memory"
FORMAT_VERSION = 1

KEYS = {"format", "version", "settings", "normalisation", "origin"}
"""What ``config.json`` holds."""
RECOPY = "copy both files of the memory again"


@dataclass(frozen=True, slots=True, eq=False)
class PretrainedMemory:
    """An evolved memory: architecture, statistics and genome, with the story of where it came from."""

    spec: NammSpec
    genome: npt.NDArray[np.float32]
    """``[genome_size]``"""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Free JSON-like facts: run, model, tasks, hashes, scores."""

    def __post_init__(self) -> None:
        expected = self.spec.settings.genome_size
        if self.genome.shape != (expected,):
            raise MemoryFileError(
                f"the genome has {self.genome.size} numbers, its settings need {expected}: "
                "use the settings (hidden_size, window, recency_size) that it was evolved with"
            )
        if not np.isfinite(self.genome).all():
            raise MemoryFileError(f"the genome holds numbers that are not finite: {RECOPY}")

    def build(self) -> Memory:
        """The memory itself, to attach to a model."""
        return build_memory(self.spec, self.genome[None])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write both files; an existing memory in ``folder`` is replaced once both are safely on disk.

        Raises:
            MemoryFileError: they cannot be written there; what was there before is left as it was.
        """
        target = Path(folder)
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "settings": dataclasses.asdict(self.spec.settings),
            "normalisation": dataclasses.asdict(self.spec.normalisation) if self.spec.normalisation else None,
            "origin": dict(self.origin),
        }
        contents = {
            target / "model.safetensors": save({"genome": self.genome}),
            target / "config.json": (json.dumps(document, indent=2) + "\n").encode(),
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            _replace_together(contents)
        except OSError as error:
            reason = error.strerror or error
            raise MemoryFileError(f"cannot write {target} ({reason}): choose another folder, or make room") from error

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str]) -> PretrainedMemory:
        """Read a memory.

        Raises:
            MemoryFileError: a file is missing, damaged, of another format, version or architecture.
        """
        config, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        document = _read_config(config)
        try:
            settings = _settings(document["settings"])
            normalisation = _normalisation(document["normalisation"], settings.num_bins)
            origin = dict(document["origin"])
        except (KeyError, TypeError, ValueError) as error:
            raise MemoryFileError(f"{config} does not describe a memory ({error}): {RECOPY}") from error
        genome = _read_genome(weights)
        try:
            return PretrainedMemory(NammSpec(settings=settings, normalisation=normalisation), genome, origin)
        except MemoryFileError as error:
            raise MemoryFileError(f"{weights}: {error}") from error


def _replace_together(contents: Mapping[Path, bytes]) -> None:
    """Write all of the files or none: a full disk must not leave the new genome beside the old settings."""
    written = {path: path.with_name(f"{path.name}.tmp") for path in contents}
    try:
        for path, temporary in written.items():
            temporary.write_bytes(contents[path])
        for path, temporary in written.items():
            os.replace(temporary, path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MemoryFileError(
            f"there is no memory in {path.parent}, because {path} is missing: "
            "name a folder with config.json and model.safetensors"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MemoryFileError(f"cannot read {path} ({error}): {RECOPY}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not a saved memory (format {FORMAT!r} expected): is it a model's folder?")
    if document.get("version") != FORMAT_VERSION:
        raise MemoryFileError(
            f"{path} has version {document.get('version')!r}, this program reads {FORMAT_VERSION}: "
            "install a matching one"
        )
    if document.keys() != KEYS:
        missing, unknown = sorted(KEYS - document.keys()), sorted(document.keys() - KEYS)
        raise MemoryFileError(f"{path} lacks the keys {missing} and has the unknown {unknown}: {RECOPY}")
    return document


def _settings(values: Mapping[str, Any]) -> NammSettings:
    settings = NammSettings(**values)
    for key in dataclasses.fields(settings):
        value = getattr(settings, key.name)
        if isinstance(key.default, int) and not isinstance(value, int):
            raise ValueError(f"{key.name} must be a whole number, got {value!r}")
    return settings


def _normalisation(values: Mapping[str, Any] | None, num_bins: int) -> Normalisation | None:
    if values is None:
        return None
    mean, variance = (tuple(map(float, values[name])) for name in ("mean", "variance"))
    if not len(mean) == len(variance) == num_bins or not np.isfinite(mean + variance).all() or min(variance) < 0:
        raise ValueError(f"normalisation must have {num_bins} finite means and variances of at least 0")
    return Normalisation(mean, variance)


def _read_genome(path: Path) -> npt.NDArray[np.float32]:
    try:
        genome = load_file(path)["genome"]
    except FileNotFoundError as error:
        raise MemoryFileError(f"{path} is missing: copy it beside config.json") from error
    except (OSError, SafetensorError, KeyError, TypeError) as error:  # numpy has no bfloat16: that is a TypeError
        raise MemoryFileError(f"{path} is damaged or holds no genome ({error}): {RECOPY}") from error
    return np.ascontiguousarray(genome, dtype=np.float32).reshape(-1)

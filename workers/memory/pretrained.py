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
from safetensors.numpy import load_file, save_file

from workers.memory.build import build_memory
from workers.memory.errors import MemoryFileError
from workers.memory.memory import Memory
from workers.memory.specs import NammSettings, NammSpec, Normalisation

FORMAT = "namm-memory"
FORMAT_VERSION = 1


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
                "it belongs to another architecture (hidden_size, window, recency_size)"
            )
        if not np.isfinite(self.genome).all():
            raise MemoryFileError("the genome holds numbers that are not finite: the file is damaged")

    def build(self) -> Memory:
        """The memory itself, to attach to a model."""
        return build_memory(self.spec, self.genome[None])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write both files; an existing memory in ``folder`` is replaced, each file in one step."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        statistics = self.spec.normalisation
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "settings": dataclasses.asdict(self.spec.settings),
            "normalisation": dataclasses.asdict(statistics) if statistics else None,
            "origin": dict(self.origin),
        }
        weights = target / "model.safetensors.tmp"
        save_file({"genome": self.genome}, weights)
        os.replace(weights, target / "model.safetensors")
        config = target / "config.json.tmp"
        config.write_text(json.dumps(document, indent=2) + "\n")
        os.replace(config, target / "config.json")

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str]) -> PretrainedMemory:
        """Read a memory.

        Raises:
            MemoryFileError: a file is missing, damaged, of another format, version or architecture.
        """
        source = Path(folder)
        document = _read_config(source)
        try:
            settings = NammSettings(**document["settings"])
            statistics = document["normalisation"]
            normalisation = statistics and Normalisation(
                mean=tuple(statistics["mean"]), variance=tuple(statistics["variance"])
            )
            if normalisation and not len(normalisation.mean) == len(normalisation.variance) == settings.num_bins:
                raise ValueError(f"normalisation must have {settings.num_bins} means and variances")
        except (KeyError, TypeError, ValueError) as error:
            raise MemoryFileError(f"{source / 'config.json'} does not describe a memory: {error}") from error
        return PretrainedMemory(
            spec=NammSpec(settings=settings, normalisation=normalisation),
            genome=_read_genome(source / "model.safetensors"),
            origin=document.get("origin", {}),
        )


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MemoryFileError(f"no memory in {source}: expected config.json and model.safetensors there") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MemoryFileError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not a saved memory (format {FORMAT!r} expected): is it a model's folder?")
    if document.get("version") != FORMAT_VERSION:
        raise MemoryFileError(
            f"{path} has version {document.get('version')!r}, this program reads {FORMAT_VERSION}: "
            "install a matching one"
        )
    return document


def _read_genome(path: Path) -> npt.NDArray[np.float32]:
    try:
        genome = load_file(path)["genome"]
    except FileNotFoundError as error:
        raise MemoryFileError(f"{path} is missing: copy it beside config.json") from error
    except (OSError, SafetensorError, KeyError) as error:
        raise MemoryFileError(f"{path} is damaged or holds no genome: {error}") from error
    return np.ascontiguousarray(genome, dtype=np.float32).reshape(-1)

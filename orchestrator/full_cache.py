"""Full-cache scores that runs share: what a model does with its whole cache on an example does not change.

They are kept beside the run folders, as the very units that were scored, a small Parquet file each, task by task under
a hash of all that decides them: model, prompts, task, profile, the hash of the data, how the work was cut, the code and
the libraries. A run that finds its own takes them over bit for bit: its trajectory is the same with and without.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig, config_to_dict
from orchestrator.errors import NammError
from orchestrator.provenance import code_hash
from orchestrator.storage import Folder
from orchestrator.store import Store
from tasks.identity import data_digest
from tasks.registry import TaskSettings
from workers.language_model import model_folder
from workers.settings import ModelSettings
from workers.unit import ScoredUnit, Unit

_logger = logging.getLogger(__name__)

NAME = "full-cache"
"""Folder beside the run folders."""

LIBRARIES = ("torch", "transformers")
WHOLE_FILE_BYTES = 64 * 2**20
EDGE_BYTES = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class FullCacheLibrary:
    """Units that earlier runs have scored, by task; of tasks without a store there are none, and none are kept."""

    stores: Mapping[str, Store] = dataclasses.field(default_factory=dict)

    @classmethod
    def beside(cls, folder: Folder, config: RunConfig) -> FullCacheLibrary:
        """The library of the runs beside a run folder, for one configuration."""
        root = folder.beside(NAME)  # with the credentials and options of the run folder's own address
        if root is None:
            return cls()
        shared, first = full_cache_settings(config), config.tasks_at(0)
        hashes = {task.name: full_cache_hash(shared, task, has_statistics=task.name in first) for task in config.tasks}
        return cls({name: Store(root.within(digest[:16])) for name, digest in hashes.items()})

    def through(self, own: Store, units: Sequence[Unit], score: Callable[[], list[ScoredUnit]]) -> list[ScoredUnit]:
        """What ``score`` returns, after the library's units were put into the run's own store; new ones are kept.

        A library that cannot be read or written costs a warning, and the time to score what it would have saved.
        """
        known = self._known(units)
        there = own.get_units(list(known)) if known else {}
        for key, unit in known.items():
            if key not in there:
                own.put_unit(unit)
        scored = score()
        self._keep([unit for unit in scored if unit.key not in known])
        return scored

    def _known(self, units: Sequence[Unit]) -> dict[str, ScoredUnit]:
        keys: dict[str, list[str]] = {}
        for unit in units:
            keys.setdefault(unit.task, []).append(unit.key)
        known: dict[str, ScoredUnit] = {}
        try:
            for task, store in self.stores.items():
                known |= store.get_units(keys.get(task, []))
        except NammError as error:
            _logger.warning("full-cache scores of earlier runs are not used: %s", error)
        return known

    def _keep(self, scored: Sequence[ScoredUnit]) -> None:
        try:
            for unit in scored:
                if unit.task in self.stores:
                    self.stores[unit.task].put_unit(unit)
        except NammError as error:
            _logger.warning("full-cache scores are not kept for later runs: %s", error)


def full_cache_settings(config: RunConfig) -> dict[str, Any]:
    """All that decides what the full cache scores on any task, and what statistics are gathered there."""
    settings = config_to_dict(config)
    deciding = {key: settings[key] for key in ("model", "prompts", "memory", "units")}
    return deciding | {"score": settings["fitness"]["score"]} | scored_by(config.model)


def scored_by(model: ModelSettings) -> dict[str, Any]:
    """What no setting names and every score depends on: our code, the libraries, and the weights of a local model.

    Raises:
        ModelError: there is no such model.
    """
    folder = model_folder(model.path_or_id)
    return {
        "code": code_hash(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        **({"weights": folder_digest(folder)} if folder else {}),
    }


def full_cache_hash(shared: Mapping[str, Any], task: TaskSettings, *, has_statistics: bool) -> str:
    """SHA-256 (hex) that names the scores of one task.

    Args:
        shared: what ``full_cache_settings`` returned.
        task: the task.
        has_statistics: whether feature statistics are gathered on it.

    Raises:
        TaskError: a suite is not staged.
    """
    deciding = {**shared, "task": data_digest(task), "has_statistics": has_statistics}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over the files of a model; of large ones over the size, the first and the last mebibyte."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(file.read(WHOLE_FILE_BYTES if size <= WHOLE_FILE_BYTES else EDGE_BYTES))
            if size > WHOLE_FILE_BYTES:
                file.seek(-EDGE_BYTES, 2)
                digest.update(file.read())
    return digest.hexdigest()

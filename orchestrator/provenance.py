"""What a saved memory says about where it came from: enough to make it again, and what its card shows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from orchestrator.config import RunConfig, config_hash
from orchestrator.evaluation import CONTROL, FULL, MEMORY
from orchestrator.report import TableRow

PACKAGES = ("orchestrator", "tasks", "workers")
"""Whose source decides what a run finds."""

TOLD = (
    *(
        "task",
        "name",
        "length",
        "exact",
        "exact_low",
        "exact_high",
        "graded_ratio",
        "graded_ratio_low",
        "graded_ratio_high",
        "exact_ratio",
        "exact_ratio_low",
        "exact_ratio_high",
    ),
    *("kept_ratio", "mean_bytes", "state_bytes", "num_examples"),
)
"""Columns of the table that a memory carries with it."""
DIGITS = 6


def origin_of(config: RunConfig, population_hash: str) -> dict[str, Any]:
    """Model, tasks, settings and hashes of a run's champion."""
    return {
        "model": config.model.path_or_id,
        "model_revision": config.model.revision,
        "tasks": [task.name for task in config.tasks],
        "generations": config.search.generations,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "code_hash": code_hash(),
        "population_hash": population_hash,
    }


def best_rivals(table: Sequence[TableRow]) -> list[dict[str, Any]]:
    """The table with the best split of each rival at each length, as a memory carries it: few columns, few digits."""
    seen: set[tuple[str, int, str]] = set()
    rows = []
    for row in table:  # of one length, the best come first
        rival = row.name if row.name in (CONTROL, FULL, MEMORY) else row.name.partition("-")[0]
        if (row.task, row.length, rival) not in seen:
            seen.add((row.task, row.length, rival))
            rows.append({key: _short(value) for key, value in row.document().items() if key in TOLD})
    return rows


def code_hash() -> str:
    """SHA-256 (hex) over the names and contents of our Python files: the same in a checkout, a wheel and an image."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for name, content in sorted(_sources(files(package), package)):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _sources(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            found.append((f"{name}/{entry.name}", entry.read_bytes()))
    return found


def _short(value: Any) -> Any:
    return round(value, DIGITS) if isinstance(value, float) else value

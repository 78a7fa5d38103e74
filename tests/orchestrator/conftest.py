"""What the tests of several commands share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main

TINY = (
    "cluster.address=in-process",
    "tracking.enabled=false",
    "report.enabled=false",
    "search.generations=2",
    "search.population=4",
    "examples.pool=4",
    "examples.per_generation=2",
    "examples.heldout=2",
    "evaluation.lengths=[256]",
    "evaluation.rivals=[recent]",
)
"""Settings with which a whole run takes seconds, on the small Llama of this repository."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that the ``namm`` command has carried to its end."""

    folder: Path
    summary: dict[str, Any]

    @property
    def champion(self) -> Path:
        return self.folder / "champion"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> FinishedRun:
    """A tiny run; tests only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["evolve", "small", *TINY, "--run", str(folder), "--quiet"]) == 0
    return FinishedRun(folder, json.loads((folder / "summary.json").read_text()))

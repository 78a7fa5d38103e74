"""What MLflow is told about a run besides its metrics: settings, tags, tasks, pictures, surroundings, a description."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml

from orchestrator import presets
from orchestrator.config import RunConfig, config_hash, config_to_dict
from orchestrator.credentials import without_credentials
from orchestrator.data_record import DataRecord
from orchestrator.files import write_atomic
from orchestrator.history import GenerationRecord
from orchestrator.provenance import code_hash
from orchestrator.store import Store
from tasks.registry import TaskSettings

log = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, as Markdown."""

CONFIG, ENVIRONMENT = "config.yaml", "environment.txt"


class Tracks(Protocol):
    """The part of a tracker that is needed here."""

    def log_image(self, key: str, generation: int, path: Path, timestamp_ms: int) -> None:
        """Show a picture."""

    def log_dataset(self, name: str, digest: str, source: str, context: str = "train") -> None:
        """Name a task."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file."""


def tracked_settings(config: RunConfig, place: str, attempt: int) -> dict[str, dict[str, Any]]:
    """``params`` and ``tags`` of the run in MLflow.

    Args:
        config: of the attempt.
        place: of the run folder.
        attempt: opening of the run by a driver, from 1.
    """
    stages = [f"{stage.from_generation}: {', '.join(stage.adds)}" for stage in config.stages]
    return {
        "params": presets.flatten(config_to_dict(config)),
        "tags": {
            "config_hash": config_hash(config),
            "code_hash": code_hash(),
            "model": config.model.path_or_id,
            "attempt": str(attempt),
            "stages": "; ".join([f"0: {', '.join(config.tasks_at(0))}", *stages]),
            DESCRIPTION: description(config, place),
        },
    }


def description(config: RunConfig, place: str) -> str:
    """What the run is, where its parts are, and questions to begin with."""
    tasks = ", ".join(task.name for task in config.tasks)
    shown = without_credentials(place)
    queries = (
        ("fitness", "SELECT * FROM fitness ORDER BY generation"),
        ("against the rivals", "SELECT * FROM comparison ORDER BY benchmark, ratio DESC"),
        ("kept by layer", "SELECT generation, layer, kept_ratio FROM kept_by_layer WHERE memory_name = 'namm'"),
        ("forgotten by kind", "SELECT * FROM survival_by_kind ORDER BY language, kind, memory_name"),
    )
    return "\n".join(
        [
            f"A memory for **{config.model.path_or_id}**, evolved on {tasks}: {config.search.generations} generations "
            f"of {config.search.population} candidates, seed {config.seed}.",
            "",
            f"- run folder: `{shown}`; its tables are described in `tables/README.md`",
            "- artifacts: `report.html` (everything on one page), `summary.json`, `config.yaml`, `environment.txt`, "
            "`champion/`",
            "- the memory: registered model, alias `champion`",
            "- pictures by generation: `images/`, with a slider",
            "",
            *(f'```sh\n# {title}\nnamm query {shown} "{sql}"\n```' for title, sql in queries),
            "",
            f"Again: keep `config.yaml`, then `namm evolve config.yaml --run runs/again`; live: `namm watch {shown}`.",
        ]
    )


def log_tasks(
    data: DataRecord, train: Sequence[TaskSettings], heldout: Sequence[TaskSettings], tracker: Tracks
) -> None:
    """Say what the examples are made of, with a hash that names them, and what they are used for."""
    names = {"train": {task.name for task in train}, "heldout": {task.name for task in heldout}}
    for task, facts in data.items():
        used = [context for context, tasks in names.items() if task in tasks]
        if used:
            tracker.log_dataset(task, facts["digest"][:32], source=facts["source"], context=" and ".join(used))


def log_surroundings(config: RunConfig, tracker: Tracks, desk: Path) -> None:
    """Settings and environment as artifacts; ``desk`` is where they wait until they are sent."""
    write_atomic(desk / CONFIG, settings_file(config_to_dict(config)).encode())
    write_atomic(desk / ENVIRONMENT, environment().encode())
    for name in (CONFIG, ENVIRONMENT):
        tracker.log_artifact(desk / name)


def settings_file(settings: dict[str, Any]) -> str:
    """The settings as a file that ``namm evolve`` takes; passwords in addresses are left out."""
    plain = json.loads(without_credentials(json.dumps(settings)))
    text: str = yaml.safe_dump(plain, sort_keys=False, width=100)
    return text


def environment() -> str:
    """Python, machine and every installed package, as ``pip`` takes them."""
    found = {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}
    packages = sorted(f"{name}=={version}" for name, version in found.items())
    head = [f"# Python {platform.python_version()} on {platform.platform()}", f"# code {code_hash()}"]
    return "\n".join([*head, *packages]) + "\n"


class Pictures:
    """Draws the pictures of some generations beside a run, in a thread that costs it nothing but a little of the CPU.

    A generation is drawn when the next one has ended, because its last table is written while that is scored.
    """

    def __init__(self, config: RunConfig, store: Store, tracker: Tracks, desk: Path) -> None:
        """Prepare to draw into ``desk``, where pictures wait until they are sent."""
        self._config = config
        self._store = store
        self._tracker = tracker
        self._desk = desk
        self._waiting: list[GenerationRecord] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def __enter__(self) -> Pictures:
        """Nothing to do yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being drawn; what has not begun is left out after an error."""
        self._thread.shutdown(cancel_futures=kind is not None)

    def take(self, record: GenerationRecord) -> None:
        """A generation has ended."""
        self.draw_waiting()
        from orchestrator.analysis.pictures import is_pictured

        if is_pictured(record.generation, self._config.search.generations):
            self._waiting.append(record)

    def draw_waiting(self) -> None:
        """All tables of the generations so far are written."""
        for record in self._waiting:
            self._thread.submit(draw_and_log, self._store, record, self._config, self._tracker, self._desk)
        self._waiting.clear()


def draw_and_log(store: Store, record: GenerationRecord, config: RunConfig, tracker: Tracks, desk: Path) -> None:
    """Draw a generation's pictures and show them; a picture that fails is told in the log, and costs no run."""
    from orchestrator.analysis.pictures import draw

    try:
        for key, path in draw(store, record.generation, config.memory, desk).items():
            tracker.log_image(key, record.generation, path, record.timestamp_ms)
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        log.warning("the pictures of generation %d were not drawn: %s", record.generation, told)

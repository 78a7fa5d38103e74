"""What ``namm track`` does: show a whole run in MLflow, from its folder alone.

The journal has every point with its time, and the settings name the tasks, so that a server that was lost, or never was
there, can be given what the run's driver would have sent it. MLflow finds the run by the tag that its driver gives it:
doing it twice, or for a server that has the run already, adds nothing.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress

from orchestrator.analysis.pictures import is_pictured
from orchestrator.commands.status import standing
from orchestrator.config import TrackingSettings, config_from_dict
from orchestrator.credentials import without_credentials
from orchestrator.data_record import recorded
from orchestrator.errors import TrackingError
from orchestrator.history import JournalContents, read_journal
from orchestrator.outbox import MOST_ITEMS, Item
from orchestrator.run import CHAMPION, REPORT, SUMMARY, evaluation_tasks
from orchestrator.storage import Folder, Place, folder_at
from orchestrator.store import Store
from orchestrator.terminal import Answer, facts
from orchestrator.tracked import draw_and_log, log_surroundings, log_tasks, tracked_settings
from orchestrator.tracking import Tracker, check_tracking
from orchestrator.tracking_mlflow import MlflowRun
from orchestrator.tracking_server import how_to_look, tracking_uri

MOST_FAILURES = 3
"""Deliveries that may fail in a row; each pause after one is a second longer."""

ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "dead": "KILLED"}
"""State of a run -> how MLflow shows it; where a driver is at work, it has the say itself."""


def track(place: Place, *, uri: str | None, experiment: str | None, stream: TextIO, quiet: bool) -> Answer:
    """Show a run in MLflow.

    Args:
        place: path or address of the run folder.
        uri: address of the server; None for the run's own ``tracking.uri``.
        experiment: to list the run under; None for the run's own.
        stream: where to show how far it is.
        quiet: show nothing.

    Raises:
        RunFolderError: there is no run, a damaged one, or one of another version.
        TrackingError: the server does not answer, or does not take it.
    """
    folder = folder_at(place)
    contents = read_journal(folder)
    own = config_from_dict(contents.attempts[-1].config).tracking
    settings = dataclasses.replace(own, uri=uri or own.uri, experiment=experiment or own.experiment, enabled=True)
    check_tracking(settings)
    address = tracking_uri(settings, folder.desk)
    with tempfile.TemporaryDirectory() as desk, _bar(stream, quiet=quiet) as report:
        items = [*_settings_and_points(contents, settings, folder, Path(desk)), *_files(folder, Path(desk))]
        items += _ending(standing(folder, contents))
        run_id = _Post(items, settings, address, folder.name).send(Path(desk), contents, report)
    document = {
        "folder": str(folder),
        "mlflow": how_to_look(address),
        "experiment": settings.experiment,
        "run_id": run_id,
        "generations": len(contents.generations),
        "points": sum(len(record.metrics) for record in contents.generations),
    }
    pairs = [
        ("run", f"{folder}: {document['generations']} generations, {document['points']} points"),
        ("MLflow", f"{document['mlflow']}, experiment {settings.experiment}, run {run_id}"),
    ]
    return Answer(document, [facts(pairs)])


# --- what there is to send --------------------------------------------------------------------------------------------


class _Script(Tracker):
    """A tracker that writes down what it would send."""

    def __init__(
        self, settings: TrackingSettings, folder: Folder, desk: Path, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        super().__init__(settings, folder.name, desk, params, tags)
        self.items: list[Item] = []

    def _put(self, item: Item) -> None:
        self.items.append(item)


def _settings_and_points(
    contents: JournalContents, settings: TrackingSettings, folder: Folder, desk: Path
) -> list[Item]:
    """As the drivers of all attempts would have sent them: settings that one of them changed become tags."""
    items: list[Item] = []
    data = recorded(folder)  # the suites themselves may be on other machines
    for attempt in contents.attempts:
        config = config_from_dict(attempt.config)
        script = _Script(settings, folder, desk, **tracked_settings(config, str(folder), attempt.attempt))
        script.begin()
        log_tasks(data, config.tasks, evaluation_tasks(config), script)
        items += script.items
    script.items.clear()
    for record in contents.generations:
        script.log_metrics(record.generation, record.metrics, record.timestamp_ms)
    log_surroundings(config, script, desk)
    store = Store(folder)
    whole = set(store.generations("evictions"))
    for record in contents.generations:
        if is_pictured(record.generation, config.search.generations) and record.generation in whole:
            draw_and_log(store, record, config, script, desk)
    return items + script.items


def _files(folder: Folder, desk: Path) -> list[Item]:
    """What came of the run, as far as it is there; copied to ``desk``, because the run may live on an object store."""
    items: list[Item] = []
    if folder.exists(SUMMARY):
        (desk / SUMMARY).write_bytes(folder.read(SUMMARY))
        items.append({"kind": "artifact", "path": SUMMARY, "folder": ""})
    if folder.exists(REPORT):
        (desk / REPORT).write_bytes(folder.read(REPORT))
        items.append({"kind": "artifact", "path": REPORT, "folder": ""})
    names = folder.names(CHAMPION)
    if f"{CHAMPION}/config.json" in names:  # written last: without it the memory is not whole
        (desk / CHAMPION).mkdir()
        for name in names:
            (desk / name).write_bytes(folder.read(name))
        items.append({"kind": "champion", "folder": CHAMPION})
    return items


def _ending(run: Mapping[str, Any]) -> list[Item]:
    if run["state"] not in ENDINGS:
        return []
    return [{"kind": "end", "status": ENDINGS[run["state"]], "ended_ms": run["last_generation_ms"]}]


# --- sending it -------------------------------------------------------------------------------------------------------


class _Post:
    """Items on their way to a MLflow run, sent while one waits."""

    def __init__(self, items: Sequence[Item], settings: TrackingSettings, address: str, run_name: str) -> None:
        self.items = items
        self.num_sent = 0
        self._settings = settings
        self._address = address
        self._run_name = run_name

    def send(self, desk: Path, contents: JournalContents, report: Callable[[int, int], None]) -> str:
        """Send everything; returns MLflow's id of the run."""
        run = MlflowRun(
            self._address,
            self._settings.experiment,
            self._run_name,
            desk,
            contents.names[0].removesuffix(".jsonl").rpartition("-")[2],  # as ``Journal.run_id``
            self._rewind,
            contents.attempts[0].opened_ms,
        )
        failures = 0
        while self.num_sent < len(self.items):
            try:
                num_sent = run.deliver(self.items[self.num_sent : self.num_sent + MOST_ITEMS])
            except Exception as error:  # whatever a server or its libraries raise
                failures += 1
                self._give_up_after(failures, error)
            else:
                failures = 0
                self.num_sent += num_sent
            report(self.num_sent, len(self.items))
        return run.run_id

    def _rewind(self) -> None:
        """Somebody deletes the run while we fill it."""
        self.num_sent = 0

    def _give_up_after(self, failures: int, error: Exception) -> None:
        if failures < MOST_FAILURES:
            time.sleep(failures)
            return
        told = without_credentials(" ".join(str(error).split()))[:300]
        raise TrackingError(
            f"MLflow at {without_credentials(self._address)} does not take the run ({told}): {self.num_sent} of "
            f"{len(self.items)} items are there; mend it and repeat the command, which adds what is missing"
        ) from error


@contextmanager
def _bar(stream: TextIO, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """What to call with how much is sent and how much there is."""
    with Progress(console=Console(file=stream), transient=True, disable=quiet or not stream.isatty()) as progress:
        task = progress.add_task("sending", total=None)
        yield lambda sent, total: progress.update(task, completed=sent, total=total)

"""MLflow as a view of the journal: never on the critical path, and it can be built again.

Every call puts an item into the outbox under ``<run folder>/tracking/`` and returns. A thread imports MLflow, creates
the run when the server first answers, and sends. The MLflow run is kept in the run folder, so that a resumed run goes
on in it. What is sent twice shows once: equal points are one point to MLflow, the run is found again by a tag, images,
datasets and model versions are looked up before they are added. A run that was deleted in MLflow, or another address,
means a new run that everything is sent to again.

====================  ===============================================================================================
in MLflow             what it is
====================  ===============================================================================================
run                   one search; metrics by generation (their step), grouped by ``/``; non-finite values are left out
``images/``           pictures of about eight generations, with a slider (``analysis/pictures.py``)
dataset inputs        the tasks, by digest
artifacts             ``report.html``, ``summary.json``, ``config.yaml``, ``environment.txt``
description, tags     what the run is, where its parts are, questions to begin with; attempt, stages, hashes
``champion/<digest>`` the evolved memory as it was saved
registered model      ``<experiment>-<run name>``: a version per champion, the newest under the alias ``champion``;
                      ``mlflow.artifacts.download_artifacts("models:/<name>@champion")`` gives its folder
====================  ===============================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from orchestrator.config import TrackingSettings
from orchestrator.credentials import without_credentials
from orchestrator.files import tree_digest, write_atomic
from orchestrator.outbox import Courier, Item, Outbox
from orchestrator.tracking_mlflow import MlflowRun
from orchestrator.tracking_server import check_tracking, how_to_look, tracking_uri

__all__ = ["Tracker", "check_tracking"]

log = logging.getLogger(__name__)

CLOSING_SECONDS = 60.0
"""How long the end of a run waits for a server that answers; one that does not is asked once more."""


class Tracker:
    """Shows a run in MLflow; every call returns at once, whatever the server does."""

    def __init__(
        self,
        settings: TrackingSettings,
        run_name: str,
        run_folder: Path,
        params: Mapping[str, str | int | float],
        tags: Mapping[str, str],
        tracking_id: str | None = None,
    ) -> None:
        """Prepare to track; nothing is written before the tracker is entered.

        Args:
            settings: where to, and whether at all.
            run_name: name of the run in MLflow.
            run_folder: holds the outbox, and the pictures and artifacts until they are sent.
            params: settings of the run; those that a resumed run changes become tags ``changed.<key>``.
            tags: whatever else describes it.
            tracking_id: by which the run is found again from another machine; None for one that only this folder has.
        """
        self._settings = settings
        self._run_name = run_name
        self._run_folder = run_folder.resolve()
        self._params = {key: without_credentials(str(value)) for key, value in params.items()}
        self._tags = {key: without_credentials(value) for key, value in tags.items()}
        self._uri = tracking_uri(settings, run_folder)
        self._tracking_id = tracking_id or uuid4().hex
        self._outbox: Outbox | None = None
        self._courier: Courier | None = None

    def __enter__(self) -> Tracker:
        """Start to send, first what a former attempt left in the outbox."""
        if self._settings.enabled:
            self._outbox = Outbox(self._run_folder / "tracking")
            run = MlflowRun(
                self._uri,
                self._settings.experiment,
                self._run_name,
                self._run_folder,
                self._tracking_id,
                self._outbox.rewind,
            )
            self._courier = Courier(self._outbox, run.deliver, to=f"MLflow at {without_credentials(self._uri)}")
            self.begin()
            self._courier.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Note how the run ended and give a server that answers the time to take the rest."""
        if self._courier is None or self._outbox is None:
            return
        was_interrupted = kind is not None and not issubclass(kind, Exception)
        self._put({"kind": "end", "status": "KILLED" if was_interrupted else "FAILED" if kind else "FINISHED"})
        if not self._courier.flush(CLOSING_SECONDS, is_patient=False):
            log.warning(
                "MLflow at %s has not taken everything: the rest waits in %s and is sent when the run is resumed",
                without_credentials(self._uri),
                self._outbox.path,
            )
        self._courier.stop()
        self._outbox.close()

    def begin(self) -> None:
        """Name the run's settings; entering does it."""
        self._put({"kind": "begin", "params": self._params, "tags": self._tags})

    @property
    def address(self) -> str:
        """What a person does to see the run."""
        return how_to_look(self._uri)

    def log_metrics(self, generation: int, metrics: Mapping[str, float], timestamp_ms: int) -> None:
        """Add a point to each metric's curve; the same point may be sent again."""
        values = {key: float(value) for key, value in metrics.items()}
        self._put({"kind": "metrics", "generation": generation, "metrics": values, "timestamp_ms": timestamp_ms})

    def log_image(self, key: str, generation: int, path: Path, timestamp_ms: int) -> None:
        """Show a picture under ``key`` at ``generation``; the file must stay until it is sent."""
        place = self._place(path)
        self._put({"kind": "image", "key": key, "generation": generation, "path": place, "timestamp_ms": timestamp_ms})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file or folder, as it is when it is sent, into ``folder`` of the run's artifacts."""
        self._put({"kind": "artifact", "path": self._place(path), "folder": folder})

    def log_dataset(self, name: str, digest: str, source: str, context: str = "train") -> None:
        """Name a task as an input of the run.

        Args:
            name: of the task.
            digest: identifies its content, at most 36 characters.
            source: where the content comes from.
            context: what it was used for: ``train``, ``heldout``, or ``train and heldout``.
        """
        self._put({"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context})

    def register_champion(self, folder: Path) -> None:
        """Register a saved memory, as it is now, as a model version under the alias ``champion``."""
        if self._courier is None:
            return
        kept = self._run_folder / "tracking" / "champions" / tree_digest(folder)
        for path in folder.iterdir():  # a copy: a resumed run writes ``folder`` again while this may still wait
            write_atomic(kept / path.name, path.read_bytes())
        self._put({"kind": "champion", "folder": self._place(kept)})

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything is sent; False when it was not in time. What remains waits in the run folder."""
        return self._courier is None or self._courier.flush(timeout_seconds)

    def _put(self, item: Item) -> None:
        if self._courier is not None:
            self._courier.put(item)

    def _place(self, path: Path) -> str:
        """Relative to the run folder where possible, because a resumed run may find it elsewhere."""
        resolved = path.resolve()
        is_inside = resolved.is_relative_to(self._run_folder)
        return str(resolved.relative_to(self._run_folder) if is_inside else resolved)

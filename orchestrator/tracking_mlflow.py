"""A run in MLflow, as the thread that sends to it sees it; ``tracking.py`` says what MLflow shows of a run."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.credentials import without_credentials
from orchestrator.files import read_json, tree_digest, write_json_atomic
from orchestrator.outbox import Item

log = logging.getLogger(__name__)

_MOST_METRICS, _MOST_OTHERS = 1000, 100  # MLflow's limits for one batch
_RUN_TAG = "namm.tracking_id"

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the courier has its own patience; the default blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""How MLflow behaves in this process, where the user has not said otherwise."""


class MlflowRun:
    """The run in MLflow, as the thread that sends sees it; nobody else may touch it."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_folder: Path,
        tracking_id: str,
        rewind: Callable[[], None],
        started_ms: int | None = None,
    ) -> None:
        """Remember which run; nobody is asked before the first delivery.

        Args:
            uri: where MLflow is.
            experiment: that the run is listed under.
            run_name: name of the run.
            run_folder: where artifacts are, and ``tracking/run.json``, which remembers the run.
            tracking_id: by which the run is found again.
            rewind: called when everything must be delivered again, to a new run.
            started_ms: when the run began, since 1970; None for now.
        """
        self._uri = uri
        self._experiment = experiment
        self._run_name = run_name
        self._run_folder = run_folder
        self._tracking_id = tracking_id
        self._rewind = rewind
        self._started_ms = started_ms
        self._state_path = run_folder / "tracking" / "run.json"
        self._client: Any = None
        self._run_id = ""
        self._senders: dict[str, Callable[[Item], None]] = {
            "begin": self._send_begin,
            "image": self._send_image,
            "artifact": self._send_artifact,
            "dataset": self._send_dataset,
            "champion": self._send_champion,
            "end": lambda item: self._client.set_terminated(self._run_id, item["status"], item.get("ended_ms")),
        }

    def deliver(self, items: Sequence[Item]) -> int:
        """Send the first item, or all metrics that stand first; an item that MLflow refuses is given up."""
        if not self._run_id:
            self._open()
            return 0  # everything may wait again now
        batch = _leading_metrics(items) or items[:1]
        try:
            self._send(batch)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if not self._is_active(self._run_id):
                self._run_id = ""
                return 0
            if len(batch) > 1:
                return self.deliver(batch[:1])
            log.warning("MLflow refuses %s: %s", _name(batch[0]), without_credentials(" ".join(str(error).split())))
        return len(batch)

    def _send(self, batch: Sequence[Item]) -> None:
        kind = str(batch[0].get("kind"))
        if kind == "metrics":
            self._send_metrics(batch)
        elif kind in self._senders:
            self._senders[kind](batch[0])
        else:
            raise ValueError(f"there is no kind {kind}")

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty before the first delivery."""
        return self._run_id

    # The run itself

    def _open(self) -> None:
        """Find the run that belongs to the run folder, or create it."""
        client = self._connected()
        state = self._state()
        if state["run_id"] and not self._is_active(state["run_id"]):
            log.warning("run %s is no longer in MLflow; everything is sent again to a new one", state["run_id"])
            self._rewind()
            state["run_id"] = ""
        if not state["run_id"]:
            experiment_id = self._experiment_id()
            tags = {_RUN_TAG: state["tracking_id"]}
            # A server that died between creating the run and telling so has it already.
            found = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{state['tracking_id']}'", max_results=1)
            run = found[0] if found else client.create_run(experiment_id, self._started_ms, tags, self._run_name)
            state["run_id"] = run.info.run_id
            write_json_atomic(self._state_path, state)
        self._run_id = state["run_id"]

    def _is_active(self, run_id: str) -> bool:
        from mlflow import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return bool(run.info.lifecycle_stage == "active")

    def _state(self) -> dict[str, str]:
        """Which MLflow run this is; another address means a new run, and everything is sent again."""
        uri = without_credentials(self._uri)
        state: dict[str, str] = read_json(self._state_path) or {"tracking_id": self._tracking_id}
        if state.get("uri") != uri:
            self._rewind()
            state |= {"uri": uri, "run_id": ""}
            write_json_atomic(self._state_path, state)
        return state

    def _connected(self) -> Any:
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the courier tells of failures, once
            from mlflow import MlflowClient

            # MLflow reads the variable when it is first imported, which another part of the program may have done.
            logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
            self._client = MlflowClient(self._uri)
        return self._client

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        # Without it MLflow puts artifacts of a database file into whatever folder the process was started from.
        place = Path(self._uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
        location = place.resolve().as_uri() if self._uri.startswith("sqlite:///") else None
        return str(self._client.create_experiment(self._experiment, artifact_location=location))

    # What is sent to it

    def _send_begin(self, item: Item) -> None:
        from mlflow.entities import Param, RunTag

        run = self._client.get_run(self._run_id)
        known, params, tags = run.data.params, item["params"], dict(item["tags"])
        tags |= {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for some in _chunks(new, _MOST_OTHERS):
            self._client.log_batch(self._run_id, params=some)
        for some in _chunks([RunTag(key, value) for key, value in tags.items()], _MOST_OTHERS):
            self._client.log_batch(self._run_id, tags=some)
        if run.info.status != "RUNNING":
            self._client.update_run(self._run_id, "RUNNING")

    def _send_metrics(self, batch: Iterable[Item]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(key, value, item["timestamp_ms"], item["generation"])
            for item in batch
            for key, value in item["metrics"].items()
            if math.isfinite(value)
        ]
        for some in _chunks(points, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=some)

    def _send_image(self, item: Item) -> None:
        from mlflow import Image

        # As ``MlflowClient.log_image`` names its files; the small copy is the last one it writes.
        prefix = f"images/{item['key'].replace('/', '~')}+step+{item['generation']}+"
        there = (artifact.path for artifact in self._client.list_artifacts(self._run_id, "images"))
        if not any(path.startswith(prefix) and path.endswith("+compressed.webp") for path in there):
            where = {"key": item["key"], "step": item["generation"], "timestamp": item["timestamp_ms"]}
            path = self._existing(item["path"])
            try:
                image = Image(str(path))
            except OSError as error:
                raise ValueError(f"{path} is no picture: {error}") from error
            self._client.log_image(self._run_id, image, **where)

    def _send_artifact(self, item: Item) -> None:
        self._client.log_artifact(self._run_id, str(self._existing(item["path"])), item["folder"] or None)

    def _send_dataset(self, item: Item) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=item["name"], digest=item["digest"], source_type="code", source=item["source"])
        context = InputTag("mlflow.data.context", item["context"])
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, [context])])

    def _send_champion(self, item: Item) -> None:
        from mlflow import MlflowException

        folder = self._existing(item["folder"])
        digest = tree_digest(folder)
        artifact_folder = f"champion/{digest}"
        self._client.log_artifacts(self._run_id, str(folder), artifact_folder)
        name = re.sub("[/:]", "-", f"{self._experiment}-{self._run_name}")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"runs:/{self._run_id}/{artifact_folder}"
        found = [
            version for version in self._client.search_model_versions(f"name='{name}'") if version.source == source
        ]
        version = found[0] if found else self._create_version(name, source, digest)
        self._client.set_registered_model_alias(name, "champion", version.version)

    def _create_version(self, name: str, source: str, digest: str) -> Any:
        tags = {"digest": digest}
        return self._client.create_model_version(name, source, self._run_id, tags, await_creation_for=0)

    def _existing(self, place: str) -> Path:
        path = self._run_folder / place
        if not path.exists():
            raise ValueError(f"{path} is not there any more")
        return path


def _is_refusal(error: Exception) -> bool:
    """Whether sending the same again would fail the same way; everything else is worth another try."""
    from mlflow import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code()) in (400, 404, 409, 413, 422)
    return isinstance(error, ValueError | TypeError | KeyError)


def _leading_metrics(items: Sequence[Item]) -> list[Item]:
    return list(itertools.takewhile(lambda item: item.get("kind") == "metrics", items))


def _name(item: Item) -> str:
    told = [str(item[name]) for name in ("kind", "generation", "key", "name", "path", "folder") if item.get(name)]
    return " ".join(told)


def _chunks(values: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config import TrackingSettings
from orchestrator.tracking import Tracker, check_tracking
from tests.orchestrator.test_tracking_server import free_port

SECONDS_AWAY = 60.0
"""How long the server of a test is dead."""

FLUSH_SECONDS = 120.0
"""Generous, because the machine may be busy; a test waits that long only when something is broken."""

QUIET_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """MLflow is told how to behave through the environment of the process."""
    before = dict(os.environ)
    os.environ.update(QUIET_MLFLOW)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database; creating one takes seconds, so tests copy it."""
    os.environ.update(QUIET_MLFLOW)
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run_folder(empty_database: Path, tmp_path: Path) -> Path:
    """A run folder with a database where a run without ``tracking.uri`` looks for it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    (tmp_path / "first").mkdir()
    return tmp_path / "first"


def tracker(
    run_folder: Path,
    params: Mapping[str, str | int | float] = {"search.population": 8},
    uri: str | None = None,
) -> Tracker:
    settings = TrackingSettings(uri=uri, experiment="tests")
    return Tracker(settings, run_folder.name, run_folder, params, {"preset": "small"})


class Seen:
    """What MLflow shows of the only run of the experiment."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        self.experiment = self.client.get_experiment_by_name("tests")
        (self.run,) = self.client.search_runs([self.experiment.experiment_id])
        self.run_id = self.run.info.run_id

    def points(self, key: str) -> list[tuple[int, float, int]]:
        history = self.client.get_metric_history(self.run_id, key)
        return sorted((point.step, point.value, point.timestamp) for point in history)

    def artifacts(self, folder: str = "") -> list[str]:
        return sorted(artifact.path for artifact in self.client.list_artifacts(self.run_id, folder))

    def versions(self, name: str) -> list[Any]:
        return sorted(self.client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))


def seen(run_folder: Path) -> Seen:
    return Seen(f"sqlite:///{run_folder.parent / 'mlflow.db'}")


def save_champion(run_folder: Path, content: str = "weights") -> Path:
    folder = run_folder / "champion"
    folder.mkdir(exist_ok=True)
    (folder / "memory.safetensors").write_text(content)
    (folder / "config.json").write_text("{}")
    return folder


def save_picture(run_folder: Path) -> Path:
    from PIL import Image

    path = run_folder / "kept.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def log_everything(run: Tracker, run_folder: Path) -> None:
    run.log_metrics(0, {"fitness/best": 0.5, "cache/kept_ratio": 0.25}, 1000)
    run.log_image("kept/by layer", 0, save_picture(run_folder), 1000)
    (run_folder / "report.html").write_text("<p>table</p>")
    run.log_artifact(run_folder / "report.html", "report")
    run.log_dataset("facts_prose-256", "0123456789ab", "tasks.generated")
    run.register_champion(save_champion(run_folder))


# A run as MLflow shows it


def test_a_run_shows_its_settings_and_every_point_once(run_folder: Path) -> None:
    with tracker(run_folder) as run:
        for generation in range(3):
            run.log_metrics(generation, {"fitness/best": generation / 10, "search/sigma": 0.065}, 1000 + generation)
    shown = seen(run_folder)
    assert shown.points("fitness/best") == [(0, 0.0, 1000), (1, 0.1, 1001), (2, 0.2, 1002)]
    assert len(shown.points("search/sigma")) == 3
    assert shown.run.data.params == {"search.population": "8"}
    assert shown.run.data.tags["preset"] == "small"
    assert (shown.run.info.run_name, shown.run.info.status) == ("first", "FINISHED")


def test_everything_a_run_logs_is_there_and_sending_it_all_again_adds_nothing(run_folder: Path) -> None:
    with tracker(run_folder) as run:
        log_everything(run, run_folder)
    before = seen(run_folder)
    (run_folder / "tracking" / "delivered.json").unlink()
    with tracker(run_folder) as run:
        assert run.flush(FLUSH_SECONDS)

    shown = seen(run_folder)
    assert shown.run_id == before.run_id
    assert shown.points("fitness/best") == [(0, 0.5, 1000)]
    assert len(shown.artifacts("images")) == 2
    assert shown.artifacts("images") == before.artifacts("images")
    assert shown.artifacts("images")[0].startswith("images/kept~by layer+step+0+timestamp+1000+")
    assert shown.artifacts("report") == ["report/report.html"]
    (dataset,) = shown.run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("facts_prose-256", "0123456789ab")
    assert [tag.value for tag in dataset.tags] == ["train"]
    assert len(shown.versions("tests-first")) == 1


def test_the_champion_is_sent_as_it_was_however_late(run_folder: Path) -> None:
    """A resumed run begins by writing it again, while that of the attempt before it may still wait."""
    with tracker(run_folder) as run:
        run.register_champion(save_champion(run_folder, "whole"))
    (run_folder / "tracking" / "delivered.json").unlink()
    save_champion(run_folder, "not evaluated yet")
    with tracker(run_folder) as run:
        assert run.flush(FLUSH_SECONDS)
        run.register_champion(save_champion(run_folder, "whole"))
    assert len(seen(run_folder).versions("tests-first")) == 1


def test_artifacts_lie_beside_the_database_wherever_the_process_was_started(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with tracker(run_folder) as run:
        run.log_artifact(save_picture(run_folder))
    assert [path.name for path in (tmp_path / "mlflow-artifacts").rglob("*.png")] == ["kept.png"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_champion_is_a_model_version_that_downloads_as_it_was_saved(run_folder: Path, tmp_path: Path) -> None:
    with tracker(run_folder) as run:
        run.register_champion(save_champion(run_folder, "first"))
        assert run.flush(FLUSH_SECONDS)
        run.register_champion(save_champion(run_folder, "second"))
    shown = seen(run_folder)
    first, second = shown.versions("tests-first")
    assert shown.client.get_model_version_by_alias("tests-first", "champion").version == second.version
    assert first.run_id == second.run_id == shown.run_id

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{run_folder.parent / 'mlflow.db'}")
    for name, content in (("@champion", "second"), (f"/{first.version}", "first")):
        folder = mlflow.artifacts.download_artifacts(f"models:/tests-first{name}", dst_path=tmp_path / content)
        assert (Path(folder) / "memory.safetensors").read_text() == content


def test_values_that_are_not_finite_stay_out_of_the_curves(run_folder: Path) -> None:
    with tracker(run_folder) as run:
        run.log_metrics(0, {"a": float("nan"), "b": float("inf"), "c": 1.0}, 1000)
    assert seen(run_folder).run.data.metrics == {"c": 1.0}


def test_more_metrics_and_settings_than_a_batch_takes_arrive_whole(run_folder: Path) -> None:
    with tracker(run_folder, params={f"p{number}": number for number in range(250)}) as run:
        for generation in range(5):
            run.log_metrics(generation, {f"m{number}": float(number) for number in range(450)}, 1000 + generation)
    shown = seen(run_folder)
    assert len(shown.run.data.params) == 250
    assert len(shown.run.data.metrics) == 450
    assert len(shown.points("m449")) == 5


def test_a_run_that_fails_or_is_interrupted_says_so(run_folder: Path) -> None:
    for error, status in ((RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with pytest.raises(type(error)), tracker(run_folder):
            raise error
        assert seen(run_folder).run.info.status == status


def test_a_run_that_is_not_tracked_writes_nothing(tmp_path: Path) -> None:
    settings = TrackingSettings(enabled=False)
    with Tracker(settings, "first", tmp_path / "first", {}, {}) as run:
        run.log_metrics(0, {"fitness/best": 1.0}, 1000)
        assert run.flush(0.0)
    assert list(tmp_path.iterdir()) == []


def test_mlflow_is_not_imported_before_a_run_is_tracked() -> None:
    code = "import sys, orchestrator.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# Going on with a run


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(run_folder: Path) -> None:
    with tracker(run_folder) as run:
        run.log_metrics(0, {"fitness/best": 0.5}, 1000)
    first = seen(run_folder).run_id
    with tracker(run_folder, params={"search.population": 8, "cluster.workers": 64}) as run:
        run.log_metrics(0, {"fitness/best": 0.5}, 1000)
        run.log_metrics(1, {"fitness/best": 0.6}, 1001)
        assert run.flush(FLUSH_SECONDS)
        assert seen(run_folder).run.info.status == "RUNNING"
    with tracker(run_folder, params={"search.population": 8, "cluster.workers": 2}):
        pass
    shown = seen(run_folder)
    assert shown.run_id == first
    assert shown.points("fitness/best") == [(0, 0.5, 1000), (1, 0.6, 1001)]
    assert shown.run.data.params == {"search.population": "8", "cluster.workers": "64"}
    assert shown.run.data.tags["changed.cluster.workers"] == "2"


def test_a_run_that_mlflow_created_without_being_able_to_say_so_is_found_again(run_folder: Path) -> None:
    with tracker(run_folder):
        pass
    state = run_folder / "tracking" / "run.json"
    state.write_text(state.read_text().replace(seen(run_folder).run_id, ""))
    with tracker(run_folder) as run:
        run.log_metrics(0, {"fitness/best": 0.5}, 1000)
    assert seen(run_folder).points("fitness/best") == [(0, 0.5, 1000)]


@pytest.mark.parametrize("moment", ["between attempts", "in mid-run"])
def test_a_run_deleted_in_mlflow_is_built_again_from_the_outbox(
    moment: str, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(run_folder) as run:
        log_everything(run, run_folder)
        if moment == "in mid-run":
            assert run.flush(FLUSH_SECONDS)
            deleted = seen(run_folder)
            deleted.client.delete_run(deleted.run_id)
            run.log_metrics(1, {"fitness/best": 0.6}, 1001)
    if moment == "between attempts":
        deleted = seen(run_folder)
        deleted.client.delete_run(deleted.run_id)
        with tracker(run_folder) as run:
            run.log_metrics(1, {"fitness/best": 0.6}, 1001)
    shown = seen(run_folder)
    assert shown.run_id != deleted.run_id
    assert shown.points("fitness/best") == [(0, 0.5, 1000), (1, 0.6, 1001)]
    assert len(shown.artifacts("images")) == 2
    assert f"run {deleted.run_id} is no longer in MLflow; everything is sent again to a new one" in caplog.text


def test_another_address_gets_the_whole_run(run_folder: Path, empty_database: Path, tmp_path: Path) -> None:
    with tracker(run_folder) as run:
        run.log_metrics(0, {"fitness/best": 0.5}, 1000)
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other.db')}"
    with tracker(run_folder, uri=other) as run:
        run.log_metrics(1, {"fitness/best": 0.6}, 1001)
    assert Seen(other).points("fitness/best") == [(0, 0.5, 1000), (1, 0.6, 1001)]


def test_what_mlflow_refuses_is_told_and_does_not_hold_up_the_rest(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(run_folder) as run:
        run.log_metrics(0, {"good": 1.0}, 1000)
        run.log_metrics(1, {"bad$name": 1.0}, 1001)
        run.log_metrics(2, {"good": 3.0}, 1002)
        run.log_artifact(run_folder / "gone.html")
        (run_folder / "torn.png").write_bytes(b"no picture")
        run.log_image("kept", 3, run_folder / "torn.png", 1003)
        run.log_metrics(4, {"good": 5.0}, 1004)
    assert [step for step, _, _ in seen(run_folder).points("good")] == [0, 2, 4]
    assert "MLflow refuses metrics 1: " in caplog.text
    assert "gone.html is not there any more" in caplog.text
    assert "torn.png is no picture" in caplog.text


# A server that is away


def test_a_run_without_its_server_goes_on_ends_and_keeps_what_it_had_to_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://someone:secret-word@more@127.0.0.1:{free_port()}"
    folder = tmp_path / "first"
    durations = []
    with tracker(folder, params={"tracking.uri": uri}, uri=uri) as run:
        for generation in range(200):
            start = time.perf_counter()
            run.log_metrics(generation, {f"cache/layer {layer}": 0.5 for layer in range(60)}, 1000 + generation)
            durations.append(time.perf_counter() - start)
        assert not run.flush(0.5)
        assert "secret-word" not in run.address
    # One call to a dead server takes 246 s with MLflow's defaults; two hundred of ours together are to take seconds.
    assert sum(durations) < 60
    assert len((folder / "tracking" / "outbox.jsonl").read_text().splitlines()) == 1 + 200 + 1
    assert "the rest waits in" in caplog.text
    assert "secret-word" not in caplog.text
    assert not any("secret-word" in path.read_text() for path in folder.rglob("*") if path.is_file())


# A real server


class MlflowServer:
    """``mlflow server`` on loopback, with all its processes."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        self._log = folder / "server.log"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        self._command += ["--port", self.uri.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{database}"]
        self._command += ["--artifacts-destination", str(folder / "served-artifacts")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    served = MlflowServer(tmp_path, Path(shutil.copy(empty_database, tmp_path / "server.db")))
    yield served
    served.kill()


def wait_for_points(uri: str, at_least: int) -> None:
    deadline = time.monotonic() + FLUSH_SECONDS
    while time.monotonic() < deadline:
        try:
            if len(Seen(uri).points("fitness/best")) >= at_least:
                return
        except (AttributeError, ValueError):  # no experiment or no run yet
            pass
        time.sleep(0.1)
    raise AssertionError("no points arrived")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_and_restarted_in_mid_run_loses_and_doubles_no_point(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.start()
    durations = []

    def log_metrics(run: Tracker, generations: range) -> None:
        for generation in generations:
            start = time.perf_counter()
            run.log_metrics(generation, {"fitness/best": generation / 7, "fitness/mean": 0.5}, 1000 + generation)
            durations.append(time.perf_counter() - start)
            time.sleep(0.01)

    with tracker(tmp_path / "first", uri=server.uri) as run:
        log_metrics(run, range(50))
        wait_for_points(server.uri, at_least=1)
        log_metrics(run, range(50, 100))
        server.kill()
        killed_at = time.monotonic()
        log_metrics(run, range(100, 200))
        assert not run.flush(1.0)
        time.sleep(max(0.0, SECONDS_AWAY - (time.monotonic() - killed_at)))  # pauses between attempts grow meanwhile
        server.start()
        log_metrics(run, range(200, 250))
        assert run.flush(FLUSH_SECONDS)
    shown = Seen(server.uri)
    assert shown.points("fitness/best") == [(step, step / 7, 1000 + step) for step in range(250)]
    assert len(shown.points("fitness/mean")) == 250
    assert shown.run.info.status == "FINISHED"
    print(f"slowest call {max(durations) * 1000:.1f} ms, all {sum(durations) * 1000:.1f} ms")
    assert sum(durations) < 30, "a call to a server that is away takes minutes"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_was_never_there_gets_the_run_when_it_is_resumed(server: MlflowServer, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    with tracker(folder, uri=server.uri) as run:
        log_everything(run, folder)
        assert not run.flush(1.0)
    server.start()
    check_tracking(TrackingSettings(uri=server.uri))
    with tracker(folder, uri=server.uri) as run:
        run.log_metrics(1, {"fitness/best": 0.6}, 1001)
        assert run.flush(FLUSH_SECONDS)
        run.register_champion(save_champion(folder, "second"))
    shown = Seen(server.uri)
    assert shown.points("fitness/best") == [(0, 0.5, 1000), (1, 0.6, 1001)]
    assert len(shown.artifacts("images")) == 2
    assert shown.artifacts("report") == ["report/report.html"]
    assert len(shown.run.inputs.dataset_inputs) == 1

    import mlflow

    mlflow.set_tracking_uri(server.uri)
    downloaded = mlflow.artifacts.download_artifacts("models:/tests-first@champion", dst_path=tmp_path / "downloaded")
    assert (Path(downloaded) / "memory.safetensors").read_text() == "second"
    shown.client.delete_run(shown.run_id)
    with tracker(folder, uri=server.uri):
        pass
    assert Seen(server.uri).run_id != shown.run_id
    assert Seen(server.uri).points("fitness/best") == [(0, 0.5, 1000), (1, 0.6, 1001)]

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import tracking_server
from orchestrator.config import TrackingSettings
from orchestrator.errors import TrackingError
from orchestrator.tracking_server import check_tracking, how_to_look, tracking_uri


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def http_server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_server_that_answers_passes_the_check_also_behind_a_gateway(status: int) -> None:
    with http_server(status) as uri:
        check_tracking(TrackingSettings(uri=uri))
        check_tracking(TrackingSettings(uri=f"{uri}/"))
        check_tracking(TrackingSettings(uri=uri.replace("://", "://someone:word@")))


@pytest.mark.parametrize("status", [500, 502])
def test_a_server_that_fails_does_not_pass_the_check(status: int) -> None:
    with (
        http_server(status) as uri,
        pytest.raises(TrackingError, match=f"no MLflow server answers at .*status {status}"),
    ):
        check_tracking(TrackingSettings(uri=uri))


def test_nobody_at_the_address_is_told_in_one_line_with_the_remedy() -> None:
    port = free_port()
    with pytest.raises(TrackingError) as caught:
        check_tracking(TrackingSettings(uri=f"http://someone:secret-word@more@127.0.0.1:{port}"))
    assert str(caught.value) == (
        f"no MLflow server answers at http://***@127.0.0.1:{port} ([Errno 111] Connection refused): start it, "
        "correct tracking.uri, or track into a file with tracking.uri=null, or not at all with tracking.enabled=false"
    )


def test_an_address_where_nobody_speaks_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_server, "ANSWER_SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start = time.perf_counter()
        with pytest.raises(TrackingError, match=r"no MLflow server answers at .*(silent for 1 seconds|timed out)"):
            check_tracking(TrackingSettings(uri=f"http://127.0.0.1:{listener.getsockname()[1]}"))
        assert time.perf_counter() - start < 30


@pytest.mark.parametrize("uri", ["./mlruns", "file:///mlruns", "htp://server"])
def test_an_unknown_kind_of_address_is_told_with_the_kinds_there_are(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"must start with one of http, https, sqlite, .* or be null for a file"):
        check_tracking(TrackingSettings(uri=uri))


def test_databases_and_runs_that_are_not_tracked_need_no_answer() -> None:
    for uri in (None, "sqlite:///runs/mlflow.db", "postgresql+psycopg2://user@host/mlflow"):
        check_tracking(TrackingSettings(uri=uri))
    check_tracking(TrackingSettings(uri="http://127.0.0.1:1", enabled=False))


def test_a_person_is_told_how_to_look(tmp_path: Path) -> None:
    assert how_to_look("https://user:word@mlflow.example") == "https://***@mlflow.example"
    assert how_to_look(tracking_uri(TrackingSettings(), tmp_path / "first")) == (
        f"http://127.0.0.1:5000 after `mlflow server --backend-store-uri sqlite:///{tmp_path}/mlflow.db`"
    )

"""Folders by path and address: what is understood, and what is said of storage that cannot be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.errors import InputError, StorageError
from orchestrator.storage import LocalFolder, folder_at, local_copy
from tests.orchestrator.conftest import TINY
from tests.orchestrator.test_store import unprivileged


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("runs/first", "runs/first"),
        (Path("runs/first"), "runs/first"),
        ("file:///shared/first%20run", "/shared/first run"),
        ("/shared/a:b", "/shared/a:b"),
        ("a:b/c", "a:b/c"),
        (".", "."),
    ],
)
def test_paths_are_folders_on_a_disk(place: str | Path, path: str) -> None:
    folder = folder_at(place)
    assert isinstance(folder, LocalFolder)
    assert (folder.path, folder.address) == (Path(path), path)
    assert folder_at(folder) is folder
    assert folder.beside("full-cache").path == Path(path).absolute().parent / "full-cache"


@pytest.mark.parametrize(
    ("address", "name", "champion"),
    [
        ("s3://bucket/first?region=a", "first", "s3://bucket/first/champion?region=a"),
        ("s3://bucket/runs/first/?region=us-east-1", "first", "s3://bucket/runs/first/champion?region=us-east-1"),
        ("s3://key:secret@bucket/first?region=a", "first", "s3://***@bucket/first/champion?region=a"),
        ("gs://anonymous@bucket/first", "first", "gs://***@bucket/first/champion"),
        ("gs://bucket", "", "gs://bucket/champion"),
    ],
)
def test_addresses_are_folders_in_a_bucket_and_show_no_secret(address: str, name: str, champion: str) -> None:
    """Of Google's storage this and its errors are all that is tested: there is no server of its kind to run here."""
    folder = folder_at(address)
    assert (folder.name, folder.place("champion")) == (name, champion)
    assert folder.within("champion").address == champion
    beside = folder.beside("full-cache")
    expected = champion.replace("first/champion", "full-cache") if name else None
    assert (beside.address if beside else None) == expected
    assert "secret" not in str(folder)
    assert folder.desk.parent == Path("runs")
    assert folder.desk != folder_at(address.replace("bucket", "basket")).desk


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hdfs://host/run", "cannot understand the address hdfs://host/run: name a folder, or an address like s3://b"),
        ("http://me:secret@host/run", r"cannot understand the address http://\*\*\*@host/run"),
        (Path("s3://bucket/run"), "cannot understand the address s3:/bucket/run: .* as text"),
        ("s3:/bucket/run", "cannot understand the address s3:/bucket/run: .* as text"),
        ("s3://", r"the address s3:// names no bucket: s3://bucket/folder does"),
        ("s3://bucket/run?end_point=x", "Unexpected query parameter in S3 URI: 'end_point'"),
        ("gs://bucket/run?end_point=x", "Unexpected query parameter in GCS URI: 'end_point'"),
    ],
)
def test_an_address_that_cannot_be_understood_is_told_with_one_that_can(address: str | Path, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        folder_at(address)
    assert "secret" not in str(caught.value)


def test_a_local_folder_lists_its_files_by_prefix_and_hides_what_is_being_written(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    assert folder.names("units") == []
    for name in ("units/b", "units/a2", "units/a1", "units/sub/a3", "top"):
        folder.write(name, b"x")
    (tmp_path / "units" / ".a0.tmp").write_text("")
    assert folder.names("units") == ["units/a1", "units/a2", "units/b"]
    assert folder.names("units", prefix="a") == ["units/a1", "units/a2"]
    assert folder.names() == ["top"]
    folder.delete(["units/b", "units/never"])
    assert not folder.exists("units/b")
    with local_copy(folder) as path:
        assert path == tmp_path
    with pytest.raises(StorageError, match=r"cannot read .*units/b: No such file or directory; allow this user"):
        folder.read("units/b")


def test_a_folder_that_may_not_be_looked_into_is_one_line(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o000)
    folder = LocalFolder(closed / "run")
    with unprivileged():
        with pytest.raises(StorageError, match=r"^cannot read .*: Permission denied; allow this user to read it"):
            folder.exists()
        with pytest.raises(StorageError, match=r"^cannot write .*: Permission denied; .*allow this user to write"):
            folder.require_writable()
    closed.chmod(0o755)


def test_a_name_that_is_too_long_is_one_line() -> None:
    with pytest.raises(StorageError, match=r"^cannot read a+: File name too long; choose a shorter name$"):
        LocalFolder(Path("a" * 300)).exists()


def test_a_guard_is_asked_before_every_change_and_only_then(tmp_path: Path) -> None:
    asked: list[str] = []
    folder = folder_at(tmp_path).guarded(lambda: asked.append("asked"))
    folder.write("a", b"1")
    folder.delete(["a"])
    folder.delete([])
    assert (folder.read("a") if folder.exists("a") else folder.names()) == []
    assert asked == ["asked", "asked"]


class _Refusing(BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - names that http.server asks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing_endpoint() -> Iterator[str]:
    """A server that allows nothing to anybody."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_storage_that_allows_nothing_is_one_line_with_the_remedy(refusing_endpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = f"s3://key:secret@bucket/run?scheme=http&endpoint_override={refusing_endpoint}"
    for command in (["evolve", "small", *TINY, "--run", run], ["resume", run], ["inspect", run], ["evaluate", run]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "s3://***@bucket/run" in told
        assert "ACCESS_DENIED" in told
        assert "give credentials that may list, read, write and delete there (AWS_ACCESS_KEY_ID" in told
        assert "secret" not in told
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("s3://bucket/run?scheme=http&endpoint_override=127.0.0.1:1", "mend the network, or the endpoint in the addr"),
        ("gs://anonymous@bucket/run?scheme=http&endpoint_override=127.0.0.1:1&retry_limit_seconds=1", "mend the netw"),
        ("gs://bucket/run?retry_limit_seconds=1", "give credentials that may list, read, write and delete there"),
    ],
    ids=["nobody at the endpoint", "nobody at Google's endpoint", "no credentials for Google"],
)
def test_storage_that_does_not_answer_is_one_line_with_the_remedy(run, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    assert main(["evolve", "small", *TINY, "--run", run]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []

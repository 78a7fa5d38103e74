"""A data set hub on loopback that speaks as much of the Hugging Face hub's language as a download takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "cafe"


@dataclass
class Hub:
    """What it has, and what it was asked."""

    id: str
    files: Mapping[str, bytes]
    commit: str = COMMIT
    break_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which the next download of a file breaks off, by name."""
    corrupt: set[str] = field(default_factory=set)
    """Files that are sent with another last byte than the hub says."""
    asked: list[str] = field(default_factory=list)
    """Each request: method, path and range."""
    endpoint: str = ""

    @classmethod
    def of(cls, id: str, folder: Path) -> Hub:
        """The hub that has the files under a folder."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "SOURCE.json"]
        return cls(id, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def info(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": "0" * 40,
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130},
            }
            for name, data in self.files.items()
        ]
        return {"_id": "0", "id": self.id, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """Answers for a hub."""

    def __init__(self, hub: Hub, *connection: Any) -> None:
        self.hub = hub
        super().__init__(*connection)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        asked_range = self.headers.get("Range", "")
        self.hub.asked.append(f"{self.command} {path} {asked_range}".strip())
        file = path.removeprefix(f"/datasets/{self.hub.id}/resolve/{self.hub.commit}/")
        if path in (f"/api/datasets/{self.hub.id}", f"/api/datasets/{self.hub.id}/revision/{self.hub.commit}"):
            self.send(200, json.dumps(self.hub.info()).encode(), {"Content-Type": "application/json"})
        elif file in self.hub.files:
            self.send_file(file, asked_range, with_body=with_body)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound" if "/api/" in path else "EntryNotFound"})

    def send_file(self, name: str, asked_range: str, *, with_body: bool) -> None:
        data = self.hub.files[name]
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if name in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", asked_range)) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        most = self.hub.break_after.pop(name, None) if with_body else None
        self.send(206 if start else 200, data[start:], headers, with_body=with_body, most=most)

    def send(
        self,
        status: int,
        data: bytes,
        headers: Mapping[str, str],
        *,
        with_body: bool = True,
        most: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data[:most])
        if most is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves until the context ends."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

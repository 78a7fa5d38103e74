"""A real S3 server on loopback, spoken to through pyarrow's real client; any process may use its addresses."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # else the client asks a network that tests have not
}


@dataclass(frozen=True)
class S3Server:
    """Where it listens."""

    endpoint: str

    def new_bucket(self) -> str:
        bucket = f"bucket-{uuid4().hex[:8]}"
        request = urllib.request.Request(f"http://{self.endpoint}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return bucket

    def address(self, path: str) -> str:
        """Address of a folder, given as ``bucket/folder``."""
        return f"s3://{path}?scheme=http&endpoint_override={self.endpoint}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with its credentials in the environment, for this process and those that it starts."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield S3Server(f"{host}:{port}")
        finally:
            server.stop()

"""Finds out within seconds whether a Ray cluster answers at an address: Ray itself would try for minutes."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from orchestrator.errors import FleetError

PROBE_SECONDS = 10.0
"""How long each part of an answer may take."""


def require_cluster(address: str) -> None:
    """Fail, in one line, where nothing at the address speaks Ray's protocol.

    Args:
        address: ``host:port`` or ``ray://host:port``.

    Raises:
        FleetError: nothing listens there, or something other than Ray.
    """
    try:
        with socket.create_connection(_host_and_port(address), timeout=PROBE_SECONDS) as connection:
            # With TLS the greeting is encrypted: that something listens has to do.
            speaks_grpc = os.environ.get("RAY_USE_TLS") == "1" or _greets_as_grpc(connection)
    except (OSError, ValueError) as error:
        raise FleetError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, mend cluster.address, "
            "or set it to null, which starts Ray on this machine"
        ) from error
    if not speaks_grpc:
        raise FleetError(
            f"what answers at {address} is not Ray: cluster.address wants the port of the cluster (usually 6379) as "
            "host:port, or that of its client server (usually 10001) as ray://host:port, not that of the dashboard"
        )


def job_server_wants_token(address: str) -> bool:
    """Whether the job server at an address, which is Ray's dashboard, refuses those who show no token.

    Args:
        address: like ``http://127.0.0.1:8265``.

    Raises:
        FleetError: nothing answers there, or something other than Ray.
    """
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=PROBE_SECONDS) as answer:
            is_ray = "ray_version" in json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return True
        is_ray = False
    except (OSError, ValueError) as error:
        raise FleetError(
            f"no job server answers at {address} ({getattr(error, 'reason', error)}): it is the dashboard of the "
            "cluster, usually http://127.0.0.1:8265; start one with `ray start --head`, or open a tunnel to it"
        ) from error
    if not is_ray:
        raise FleetError(f"what answers at {address} is not Ray: --address wants the dashboard, usually port 8265")
    return False


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if not parts.hostname or parts.port is None:
        raise ValueError("expected auto, host:port or ray://host:port")
    return parts.hostname, parts.port


def _greets_as_grpc(connection: socket.socket) -> bool:
    """Whether the other side opens HTTP/2, as every gRPC server does, with a SETTINGS frame."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    with connection.makefile("rb") as answer:
        return answer.read(9)[3:4] == b"\x04"

"""Where MLflow keeps a run, and whether anybody answers there."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

from orchestrator.config import TrackingSettings
from orchestrator.credentials import without_credentials
from orchestrator.errors import TrackingError

ANSWER_SECONDS = 5.0
"""How long a tracking server may take to answer at the start of a run."""

_USER = re.compile(r"://[^/\s]+@")
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


def check_tracking(settings: TrackingSettings) -> None:
    """Find out before anything is written that a tracking server does not answer.

    Raises:
        TrackingError: ``tracking.uri`` is of an unknown kind, or its server did not answer within 5 seconds.
    """
    if not settings.enabled or settings.uri is None:
        return
    uri = without_credentials(settings.uri)
    scheme = re.split(r"[:+]", uri, maxsplit=1)[0]
    if scheme not in _SCHEMES:
        raise TrackingError(
            f"tracking.uri must start with one of {', '.join(_SCHEMES)}, "
            f"or be null for a file beside the run: got {uri}"
        )
    reason = _why_silent(settings.uri) if scheme in ("http", "https") else None
    if reason:
        raise TrackingError(
            f"no MLflow server answers at {uri} ({reason}): start it, correct tracking.uri, "
            "or track into a file with tracking.uri=null, or not at all with tracking.enabled=false"
        )


def tracking_uri(settings: TrackingSettings, run_folder: Path) -> str:
    """Where MLflow keeps the run: ``tracking.uri``, or ``mlflow.db`` in the folder above the run folder."""
    return settings.uri or f"sqlite:///{run_folder.resolve().parent / 'mlflow.db'}"


def how_to_look(uri: str) -> str:
    """What a person does to see the run: open an address, or serve the database first."""
    shown = without_credentials(uri)
    if shown.startswith(("http", "databricks")):
        return shown
    return f"http://127.0.0.1:5000 after `mlflow server --backend-store-uri {shown}`"


def _why_silent(uri: str) -> str | None:
    """Why no server answers at ``uri``; None when one does."""
    reasons: list[str | None] = [f"silent for {ANSWER_SECONDS:.0f} seconds"]
    # In a thread, because looking up a name and trying several addresses are not bounded by the timeout.
    thread = threading.Thread(target=lambda: reasons.append(_ask(uri)), name="tracking-check", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return reasons[-1]


def _ask(uri: str) -> str | None:
    address = _USER.sub("://", uri).rstrip("/")  # urllib would take them for a part of the host's name
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        # A gateway may hide /health, or want credentials for it; only its own failure means that nobody is there.
        return f"status {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))

"""A Ray head of our own on loopback, as deploy/README.md's "A cluster on a laptop" starts it, and taken down alone.

``ray stop`` would end every Ray process of this user. This head has a session, a folder and a token of its own, and is
ended by the process ids of that session.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.deploy.manifests import ROOT, readme_commands
from tests.orchestrator.test_tracking_server import free_port

BIN = Path(sys.executable).parent
SECONDS_TO_START = 300.0


class LocalHead:
    """A head with dashboard and token; use it in a ``with``."""

    def __enter__(self) -> LocalHead:
        # Short, because Unix sockets lie below it, whose names may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="namm", dir="/tmp"))
        self.address = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            for signal_sent in (signal.SIGTERM, signal.SIGKILL):
                for pid in _session(self._process.pid):
                    try:
                        os.kill(pid, signal_sent)
                    except ProcessLookupError:
                        continue
                _wait_until_gone(self._process, seconds=5.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """For the head, and for those who submit: Ray keeps the token in the home folder."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **ours,
            "HOME": str(self.folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @property
    def token(self) -> str:
        return (self.folder / ".ray" / "auth_token").read_text().strip()

    def jobs(self) -> dict[str, str]:
        """Submission id to status, by the job API."""
        answer = json.loads(self._ask("GET", "/api/jobs/"))
        return {job["submission_id"]: job["status"] for job in answer if job["submission_id"]}

    def stop(self, submission_id: str) -> None:
        """Stop a job, as ``ray job stop`` does."""
        self._ask("POST", f"/api/jobs/{submission_id}/stop")

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def _start(self) -> None:
        make_token, start = (_laptop_command(beginning) for beginning in ("ray get-auth-token", "ray start"))
        subprocess.run(make_token, shell=True, env=self.environment, check=True)
        words = [word for word in shlex.split(start) if not word.startswith("--metrics-export-port")]
        words += ["--block", "--port=0", f"--temp-dir={self.folder}", "--object-store-memory=200000000"]
        words += [f"--dashboard-port={self.address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1"]
        # Others' heads may have the ports that Ray would take.
        names = ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
        words += [f"--{name}={free_port()}" for name in names]
        log = self.folder / "head.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                words, env=self.environment, cwd=self.folder, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._is_ready():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            self.jobs()
        except OSError:
            return False
        return True


def submit_command() -> str:
    """The page's own ``namm submit``."""
    return _laptop_command("namm submit")


def namm(head: LocalHead, *words: str, **options: Any) -> subprocess.Popen[str]:
    """A command of ours, started in the root of the source tree as the page says."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=ROOT,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _laptop_command(beginning: str) -> str:
    (command,) = (line for line in readme_commands("A cluster on a laptop") if line.startswith(beginning))
    return command


def _session(session: int) -> list[int]:
    """Processes of a session that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _wait_until_gone(head: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (head.poll() is None or _session(head.pid)):
        time.sleep(0.1)

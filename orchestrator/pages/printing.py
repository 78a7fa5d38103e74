"""A page as PDF, by the browser that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from orchestrator.errors import InputError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_SECONDS = 120


def browser() -> str | None:
    """Program of a browser that prints; None when there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def require_browser() -> str:
    """Program of a browser that prints.

    Raises:
        InputError: none is installed.
    """
    if (program := browser()) is None:
        raise InputError(f"a PDF needs a browser, and none of {', '.join(BROWSERS[:3])} is installed: install Chromium")
    return program


def print_pdf(page: Path, to: Path) -> None:
    """Print a page to a file.

    Raises:
        InputError: no browser is installed, or it fails.
    """
    program = require_browser()
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program,
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=20000",
            "--no-pdf-header-footer",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # as root, in a container, it does not start otherwise
            f"--print-to-pdf={to.resolve()}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{program} has not printed {page} within {TIMEOUT_SECONDS} seconds") from error
    if done.returncode or not to.exists():
        told = " ".join(done.stderr.split())[-300:]
        raise InputError(f"{program} cannot print {page} (exit code {done.returncode}): {told}")

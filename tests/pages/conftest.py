"""A browser for the tests of pages, a run with its report, and where pictures of pages are kept."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli import main
from tests.orchestrator.conftest import TINY
from tests.pages.browser import Browser, missing

ARTIFACTS = Path(os.environ.get("NAMM_TEST_ARTIFACTS", Path(__file__).parents[2] / ".pytest_cache" / "pages"))
"""Screenshots, to be looked at by people."""


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; tests are skipped where it is not installed."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with Browser() as opened:
        yield opened


@dataclass(frozen=True)
class ReportedRun:
    """A run with its report."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "report.html"


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory) -> ReportedRun:
    """A tiny run that has made its report at the end, as every run does."""
    folder = tmp_path_factory.mktemp("runs") / "tiny <b>&amp;"  # a name that a page must not take for HTML
    words = [*TINY, "report.enabled=true", "report.traced_examples=2", "evaluation.rivals=[recent,h2o]"]
    assert main(["evolve", "small", *words, "--run", str(folder), "--quiet"]) == 0
    return ReportedRun(folder)

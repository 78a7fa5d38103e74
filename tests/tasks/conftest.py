"""Suites that are staged once for all tests of tasks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.documents import count_pieces
from tasks.registry import SuiteTaskSettings, build_task
from tasks.suites import SUITES
from tasks.writers import write_suite
from tests.tasks import staging

GENERATED_LENGTH, GENERATED_ROWS = 512, 4

TaskOf = Callable[..., object]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Arrow files and jieba's dictionary go where the tests' other files go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def staged(tmp_path_factory) -> Path:
    """All suites in made-up rows, with braces in every text; tests only look at it."""
    root = tmp_path_factory.mktemp("staged")
    staging.stage_all(root)
    return root


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """All suites as ``namm tasks generate`` writes them; tests only look at it."""
    root = tmp_path_factory.mktemp("generated")
    for kind in ("longbench", "infinitebench", "choubun", "ruler"):
        write_suite(
            kind,
            root,
            seed=0,
            num_rows=GENERATED_ROWS,
            target_tokens=GENERATED_LENGTH,
            count_tokens=count_pieces,
        )
    return root


@pytest.fixture(scope="session")
def task_of(staged) -> TaskOf:
    """Builds a task over the made-up rows, or over other files."""

    def build(kind, task, profile="lm_eval", root=staged, length=staging.LENGTH):
        length = length if SUITES[kind].needs_length else None
        return build_task(SuiteTaskSettings(kind=kind, task=task, profile=profile, data=str(root), length=length))

    return build

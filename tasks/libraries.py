"""Optional packages: imported when they are needed, and refused when they would change a score."""

from __future__ import annotations

import importlib
import logging
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

from tasks.errors import TaskError
from tasks.rows import cache_root


def library(module: str, *, extra: str = "tasks", what: str = "tasks of published suites") -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of this project that installs it.
        what: needs it, for the message.

    Raises:
        TaskError: it is not installed; or python-Levenshtein is, with which LongBench's code similarity is another one.
    """
    try:
        with warnings.catch_warnings():
            # fuzzywuzzy advises to install what must not be, and jieba's source has escapes of old.
            warnings.simplefilter("ignore")
            imported = importlib.import_module(module)
    except ImportError as error:
        raise TaskError(
            f"{what}: a package is needed that is not installed ({error}): pip install 'namm-orchestrator[{extra}]'"
        ) from error
    if module == "lm_eval.tasks.longbench.metrics":
        _refuse_levenshtein(imported.fuzz.SequenceMatcher)
        _tame_jieba(imported.jieba)
    return imported


def _refuse_levenshtein(matcher: type) -> None:
    if matcher.__module__ != "difflib":
        raise TaskError(
            f"code similarity would be computed by {matcher.__module__}, not by Python's difflib, and differ by up to "
            "42 points from published scores: pip uninstall python-Levenshtein Levenshtein"
        )


def _tame_jieba(jieba: Any) -> None:
    """Keeps jieba quiet, and its dictionary in a folder of the user's own, not in one that all users can write."""
    folder = cache_root() / f"jieba-{jieba.__version__}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        jieba.dt.tmp_dir = str(folder)
    jieba.setLogLevel(logging.ERROR)

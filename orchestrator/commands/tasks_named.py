"""From the tasks that somebody names on the command line to settings."""

from __future__ import annotations

import dataclasses
import json
import re
from difflib import get_close_matches
from typing import Any, get_args

from orchestrator.errors import InputError
from tasks.corpus_task import CorpusTaskKind, CorpusTaskSettings
from tasks.registry import GeneratedTaskSettings, SuiteTaskSettings, TaskKind, TaskSettings
from tasks.suites import SUITES

_NAMED = re.compile(r"(?P<kind>\w+)(-(?P<length>\d+))?(/(?P<task>[\w-]+))?")


def overrides_for(names: str, *, data: str | None, profile: str) -> list[str]:
    """Overrides that make these the tasks of a configuration, with nothing else of its stages or weights.

    The table has the lengths that are named. Prompts of suites may be cut in the middle, as their authors do; an
    override that comes later may say otherwise.

    Args:
        names: separated by commas: ``facts_prose``, ``text_kv-2048``, ``longbench``, ``longbench/qasper``,
            ``ruler-4096/niah_single_1``.
        data: folder that suites are staged in; None for the usual one.
        profile: how suites are asked.

    Raises:
        InputError: a name is not known.
        TaskError: a suite has no such task, or needs a length.
    """
    tasks = [settings for name in names.split(",") for settings in tasks_named(name, data=data, profile=profile)]
    values = json.dumps([dataclasses.asdict(settings) for settings in tasks])
    overrides = [f"tasks={values}", "stages=[]", "fitness.weights={}"]
    lengths = sorted({task.length for task in tasks if isinstance(task, CorpusTaskSettings)} | _lengths_named(names))
    if lengths:  # else the table would have the lengths of whatever preset is extended
        overrides.append(f"evaluation.lengths={lengths}")
    is_suite = any(isinstance(settings, SuiteTaskSettings) for settings in tasks)
    return [*overrides, "prompts.truncation=middle"] if is_suite else overrides


def _lengths_named(names: str) -> set[int]:
    """Of generated documents, as in ``facts_code-512``."""
    matches = filter(None, (_NAMED.fullmatch(name.strip()) for name in names.split(",")))
    return {int(match["length"]) for match in matches if match["length"] and match["kind"] in get_args(TaskKind)}


def tasks_named(name: str, *, data: str | None, profile: Any) -> list[TaskSettings]:
    """The tasks that a name stands for; a suite's stands for all of its tasks.

    Raises:
        InputError: the name is not known.
        TaskError: as ``overrides_for``.
    """
    match = _NAMED.fullmatch(name.strip())
    known = (*get_args(TaskKind), *get_args(CorpusTaskKind), *SUITES)
    if match is None or match["kind"] not in known:
        close = get_close_matches(name, known, n=1)
        raise InputError(
            f"--tasks: there is no {name.strip()!r}{f', did you mean {close[0]}?' if close else ''} "
            f"(known: {', '.join(known)}; a task of a suite is written SUITE/TASK)"
        )
    length = int(match["length"]) if match["length"] else None
    kind: Any = match["kind"]
    sized: dict[str, Any] = {} if length is None else {"length": length}
    if kind in get_args(TaskKind):
        return [GeneratedTaskSettings(kind=kind, **sized)]
    if kind in get_args(CorpusTaskKind):
        return [CorpusTaskSettings(kind=kind, **sized)]
    tasks = [match["task"]] if match["task"] else list(SUITES[kind].tasks)
    return [SuiteTaskSettings(kind=kind, task=task, profile=profile, data=data, length=length) for task in tasks]

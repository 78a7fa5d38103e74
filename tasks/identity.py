"""What a task's examples are made of, and a hash that names them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from tasks.corpus_task import CorpusTaskSettings, corpus_of_task
from tasks.registry import SuiteTaskSettings, TaskSettings
from tasks.sources import StagedTask, data_root, locate
from tasks.suites import suite_named


def data_source(settings: TaskSettings) -> str:
    """What a task's examples are made of, as dashboards show it.

    Raises:
        TaskError: a published suite is not staged.
    """
    if isinstance(settings, SuiteTaskSettings):
        staged = _staged(settings)
        return f"{staged.place} ({staged.origin}, sha256 {staged.facts.sha256})"
    if isinstance(settings, CorpusTaskSettings):
        corpus = corpus_of_task(settings)
        made = json.dumps(asdict(settings), sort_keys=True)
        return f"made by tasks/ from {made} out of the text of {corpus.name} (sha256 {corpus.sha256})"
    return f"made by tasks/ from {json.dumps(asdict(settings), sort_keys=True)}"


def data_digest(settings: TaskSettings) -> str:
    """SHA-256 (hex) that names a task's examples: over its settings, and the hash of the files that they are read from.

    Where the file lies does not count. Examples that are made up are a function of the settings.

    Raises:
        TaskError: as ``data_source``.
    """
    values = asdict(settings)
    if isinstance(settings, SuiteTaskSettings):
        staged = _staged(settings)
        values |= {"data": staged.facts.sha256, "member": staged.member}
    if isinstance(settings, CorpusTaskSettings):
        values |= {"corpus": corpus_of_task(settings).sha256}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _staged(settings: SuiteTaskSettings) -> StagedTask:
    return locate(suite_named(settings.kind), settings.task, settings.length, data_root(settings.data))

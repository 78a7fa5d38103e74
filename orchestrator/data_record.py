"""``data.json``: what the examples of a run were made of when it began, so that it goes on with the same or not at all.

The hash of a run's settings names the files of a published suite by their folder only, and files can be staged anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from orchestrator.errors import RunFolderError
from orchestrator.files import json_bytes
from orchestrator.storage import Folder
from tasks.identity import data_digest, data_source
from tasks.registry import TaskSettings

NAME = "data.json"

DataRecord = Mapping[str, Mapping[str, str]]
"""By task: ``digest``, SHA-256 in hexadecimal digits, and ``source``, in words."""


def describe(tasks: Iterable[TaskSettings]) -> DataRecord:
    """What the examples of tasks are made of on this machine.

    Raises:
        TaskError: a suite is not staged.
    """
    return {task.name: {"digest": data_digest(task), "source": data_source(task)} for task in tasks}


def recorded(folder: Folder) -> DataRecord:
    """What a run folder says; nothing before the run began.

    Raises:
        RunFolderError: it cannot be understood.
    """
    if not folder.exists(NAME):
        return {}
    try:
        values = json.loads(folder.read(NAME))
        return {str(task): {key: str(facts[key]) for key in ("digest", "source")} for task, facts in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{folder.place(NAME)} cannot be read ({error}): restore it from a copy") from error


def require_same_data(folder: Folder, data: DataRecord) -> None:
    """Make sure that a run goes on with the examples that it began with.

    Raises:
        RunFolderError: names the first task whose examples are others, and both sources.
    """
    for task, former in recorded(folder).items():
        if task in data and data[task]["digest"] != former["digest"]:
            raise RunFolderError(
                f"the run in {folder} asked task {task} from {former['source']}, but there is {data[task]['source']} "
                "now: stage the former files again, or start a new run folder"
            )


def keep(folder: Folder, data: DataRecord) -> None:
    """Write down what has joined.

    Raises:
        StorageError: the folder may not be written.
    """
    former = recorded(folder)
    if data.keys() - former.keys():
        folder.write(NAME, json_bytes({**data, **former}))

"""Staged files: the copy of a published suite on this machine, and the manifest that says what it is.

``SOURCE.json`` is written last, so whoever finds it finds everything::

    {
      "suite": "longbench",
      "origin": "hub",                              or "generated"
      "id": "THUDM/LongBench",                      of what it is made: a data set, or the hash of a corpus
      "revision": "8ad2…",                          a commit, or the generator's arguments
      "files": {"data.zip": {"sha256": "4f0a…", "bytes": 113932529, "rows": 8418}}
    }

An archive of LongBench may lie unpacked (``longbench/data/trec.jsonl``) if the manifest lists what it was unpacked to.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tasks.errors import TaskError
from tasks.suites import Suite

Origin = Literal["hub", "generated"]

MANIFEST_NAME = "SOURCE.json"

ROOT_VARIABLE = "NAMM_TASKS"
"""Environment variable: the folder that suites are staged in where no setting names one."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a staged file was when the manifest was written."""

    sha256: str
    bytes: int
    rows: int
    """Examples in the file; in an archive, of all its members."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``SOURCE.json`` says."""

    suite: str
    origin: Origin
    id: str
    """The data set's id on the hub, or the hash of the corpus that rows were made from."""
    revision: str
    """Commit on the hub, or what the generator was called with."""
    files: Mapping[str, FileFacts]
    """By name relative to the suite's folder, with ``/``."""


@dataclass(frozen=True, slots=True)
class StagedTask:
    """Where the rows of one task are."""

    suite: Suite
    task: str
    root: Path
    """The folder that suites are staged in."""
    path: Path
    member: str | None
    """Member of the archive at ``path``; None if ``path`` holds the rows itself."""
    facts: FileFacts
    origin: Origin

    @property
    def place(self) -> str:
        """The place as messages name it."""
        return f"{self.path}, {self.member}" if self.member else str(self.path)


def data_root(data: str | None = None) -> Path:
    """The folder that suites are staged in: ``data`` if given, or ``$NAMM_TASKS``, or a folder in the user's cache."""
    return Path(data or os.environ.get(ROOT_VARIABLE) or "~/.cache/namm/tasks").expanduser()


def locate(suite: Suite, task: str, length: int | None, root: Path) -> StagedTask:
    """Finds the rows of a task among staged files; reads the manifest alone.

    Args:
        suite: the suite.
        task: one of its tasks.
        length: context length in tokens, for suites that need it.
        root: the folder that suites are staged in.

    Raises:
        TaskError: the suite is not staged there, or only in part, or a file is not what it was.
    """
    manifest = read_manifest(root / suite.folder)
    if manifest is None:
        raise TaskError(f"{suite.kind} is not staged in {root}: {how_to_stage(suite, root)}")
    member = suite.member_name(task)
    packed, unpacked = suite.file_name(task, length), member
    for name, inside in ((packed, member), *([(unpacked, None)] if unpacked else [])):
        if name in manifest.files:
            path = root / suite.folder / name
            facts = manifest.files[name]
            check_size(path, facts, how_to_stage(suite, root))
            return StagedTask(suite, task, root, path, inside, facts, manifest.origin)
    names = [name for name in manifest.files if name.startswith(f"{task}-")]
    there = f"; there are {', '.join(sorted(names))}" if names else ""
    raise TaskError(
        f"{suite.kind} in {root} was staged without {packed}{there}: {how_to_stage(suite, root, length=length)}"
    )


def how_to_stage(suite: Suite, root: Path, *, length: int | None = None) -> str:
    """The commands that stage ``suite``, for the end of a message."""
    tokens = f" --length {length}" if length else ""
    make = f"`namm tasks generate {suite.kind} --to {root}{tokens}` makes examples of its format up"
    if suite.hub_id is None:
        return make
    return f"`namm tasks fetch {suite.kind} --to {root}` downloads it from the hub, {make}"


def check_size(path: Path, facts: FileFacts, remedy: str) -> None:
    """Refuses a file that is gone or whose size differs from the manifest's.

    Raises:
        TaskError: names the file, both sizes and the remedy.
    """
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    if num_bytes != facts.bytes:
        raise TaskError(
            f"{path} has {num_bytes:,} bytes, but had {facts.bytes:,} when it was staged: delete it, then {remedy}"
        )


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``; None if there is none.

    Raises:
        TaskError: there is one, but it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        values = json.loads(path.read_bytes())
        return _manifest(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TaskError(f"{path} cannot be read ({error}): delete it and stage the suite again") from error


def _manifest(values: Any) -> Manifest:
    if values["origin"] not in get_args(Origin):
        raise ValueError(f"origin is {values['origin']!r}")
    files = {
        str(name): FileFacts(sha256=str(facts["sha256"]), bytes=int(facts["bytes"]), rows=int(facts["rows"]))
        for name, facts in values["files"].items()
    }
    return Manifest(
        suite=str(values["suite"]),
        origin=values["origin"],
        id=str(values["id"]),
        revision=str(values["revision"]),
        files=files,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``SOURCE.json``, all of it or nothing; the last thing that is done to a staged suite."""
    values = {**asdict(manifest), "files": {name: asdict(manifest.files[name]) for name in sorted(manifest.files)}}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, suffix=".partial", delete=False) as file:
        file.write(f"{json.dumps(values, indent=2)}\n")
    os.chmod(file.name, 0o644)  # temporary files are private, but a shared folder is read by many
    os.replace(file.name, folder / MANIFEST_NAME)


def file_sha256(path: Path) -> str:
    """The hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

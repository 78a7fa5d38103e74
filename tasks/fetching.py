"""Staging a suite from the Hugging Face hub: the one place where tasks use the network, called by ``namm tasks fetch``.

Files come one by one through ``huggingface_hub``, which retries, goes on with partial files and shows progress. Then
every row is read and counted; the manifest is written last. Whatever interrupts it, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tasks.errors import TaskError
from tasks.lm_eval_adapter import library_config, refuse_merged
from tasks.rows import rows
from tasks.sources import (
    MANIFEST_NAME,
    FileFacts,
    Manifest,
    StagedTask,
    check_size,
    file_sha256,
    read_manifest,
    write_manifest,
)
from tasks.suites import SUITES, Suite

Say = Callable[[str], None]

UNKNOWN = FileFacts(sha256="", bytes=0, rows=0)
"""Facts of a file that is still to be looked at."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the hub says about a file."""

    bytes: int | None
    sha256: str | None
    """None for small files, which the hub stores without one."""


def fetch(
    suite: Suite,
    root: Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    say: Say = lambda _line: None,
) -> tuple[Manifest, bool]:
    """Stages a suite from the hub, or finds that it is staged.

    Args:
        suite: the suite.
        root: the folder that suites are staged in; made if it is not there.
        revision: branch, tag or commit; None for what is staged, or else for the newest.
        offline: take the files that somebody has put there, check them and write the manifest.
        endpoint: the hub's address; None for ``$HF_ENDPOINT``, or the public one.
        say: told what is going on, a line at a time.

    Returns:
        the manifest, and whether anything had to be done.

    Raises:
        TaskError: the hub has no such suite, does not answer, or sent something else; rows are not the suite's; a
            package is missing.
    """
    if suite.hub_id is None:
        raise TaskError(
            f"the hub has no files of {suite.title}: `namm tasks generate {suite.kind} --to {root}` makes them"
        )
    folder = root / suite.folder
    present = read_manifest(folder)
    if present is not None and _is_intact(present, folder, revision):
        return present, False
    for part in _parts(suite):  # before gigabytes are on their way: what checks them must be installed
        library_config(part, part.tasks[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # of another revision
        commit, names = _found(suite, folder) if offline else _download(suite, folder, revision, endpoint, say)
        manifest = Manifest(suite.folder, "hub", suite.hub_id, commit, _checked(suite, root, names, say))
        write_manifest(folder, manifest)
    except OSError as error:
        raise TaskError(f"{folder} cannot be written: {error}") from error
    return manifest, True


def _is_intact(present: Manifest, folder: Path, revision: str | None) -> bool:
    """Whether what is staged is what is asked for; refuses to mix a suite from the hub with a made-up one."""
    remedy = "fetch it again"
    if present.origin != "hub":
        raise TaskError(f"{folder} holds generated files: choose another folder, or delete it and {remedy}")
    for name, facts in present.files.items():
        check_size(folder / name, facts, remedy)
        if file_sha256(folder / name) != facts.sha256:
            raise TaskError(f"{folder / name} is not what was staged (its sha256 differs): delete it, then {remedy}")
    return revision in (None, present.revision)


# --- from the hub -----------------------------------------------------------------------------------------------------


def _download(
    suite: Suite, folder: Path, revision: str | None, endpoint: str | None, say: Say
) -> tuple[str, list[str]]:
    """Downloads what is not there yet; returns the commit and the names of the files."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client; the base of all

    names = sorted({part.file_name(task) for part in _parts(suite) for task in part.tasks})
    hub_id = str(suite.hub_id)
    try:
        info = HfApi(endpoint=endpoint).dataset_info(hub_id, revision=revision, files_metadata=True)
        commit = str(info.sha)
        files = _listed(info.siblings or [])
        if lacking := [name for name in names if name not in files]:
            raise TaskError(f"{hub_id} at {commit} has no {lacking[0]}: choose another --revision")
        for number, name in enumerate(names, start=1):
            say(f"{hub_id} at {commit[:8]}: file {number} of {len(names)}, {name}{_size(files[name])}")
            hf_hub_download(hub_id, name, repo_type="dataset", revision=commit, local_dir=folder, endpoint=endpoint)
            _compare(folder / name, files[name])
    except (HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise TaskError(
            f"{hub_id} cannot be downloaded ({type(error).__name__}: {reason}): the same command goes on later, and "
            "`--offline` takes files that you put there yourself"
        ) from error
    return commit, names


def _listed(siblings: object) -> Mapping[str, HubFile]:
    return {
        file.rfilename: HubFile(bytes=file.size, sha256=file.lfs.sha256 if file.lfs else None)
        for file in siblings  # type: ignore[attr-defined]  # RepoSibling objects
    }


def _size(file: HubFile) -> str:
    return "" if file.bytes is None else f" ({file.bytes / 1e6:,.1f} MB)"


def _compare(path: Path, file: HubFile) -> None:
    """Refuses a file that is not what the hub has, as an interrupted copy would be."""
    is_whole = file.bytes in (None, path.stat().st_size)
    if not is_whole or file.sha256 not in (None, file_sha256(path)):
        raise TaskError(f"{path} is not the file that the hub has: delete it, and fetch the suite again")


# --- from files that are there ----------------------------------------------------------------------------------------


def _found(suite: Suite, folder: Path) -> tuple[str, list[str]]:
    """The files that somebody has put there: as on the hub, or LongBench's archive unpacked."""
    ways = [
        sorted({part.file_name(task) for part in _parts(suite) for task in part.tasks}),
        sorted({part.member_name(task) or "" for part in _parts(suite) for task in part.tasks}),
    ]
    for names in ways:
        if all((folder / name).is_file() for name in names):
            return "unknown", names
    lacking = next(name for name in ways[0] if not (folder / name).is_file())
    raise TaskError(
        f"{folder / lacking} is not there: put all files of {suite.hub_id} into {folder}, as the hub has them"
    )


# --- what was staged --------------------------------------------------------------------------------------------------


def _parts(suite: Suite) -> list[Suite]:
    """The suites that share the files of ``suite``, itself among them."""
    return [part for part in SUITES.values() if part.folder == suite.folder]


def _checked(suite: Suite, root: Path, names: list[str], say: Say) -> Mapping[str, FileFacts]:
    """Reads all rows of all tasks; facts by file."""
    facts = {}
    tasks = sorted(_tasks_in(suite, root, names), key=lambda staged: str(staged.path))
    for path, group in groupby(tasks, key=lambda staged: staged.path):
        say(f"checking {path}")
        num_rows = sum(_count(staged) for staged in group)
        name = path.relative_to(root / suite.folder).as_posix()
        facts[name] = FileFacts(sha256=file_sha256(path), bytes=path.stat().st_size, rows=num_rows)
    return facts


def _tasks_in(suite: Suite, root: Path, names: list[str]) -> Iterator[StagedTask]:
    for part in _parts(suite):
        for task in part.tasks:
            packed, member = part.file_name(task), part.member_name(task)
            name, inside = (packed, member) if packed in names or member is None else (member, None)
            yield StagedTask(part, task, root, root / suite.folder / name, inside, UNKNOWN, "hub")


def _count(staged: StagedTask) -> int:
    """Rows of a task, all of them read.

    Raises:
        TaskError: they are not the suite's, too few or too many.
    """
    num_rows = 0
    for row in rows(staged):
        if num_rows == 0:
            refuse_merged(staged.suite, library_config(staged.suite, staged.task), row, staged.place)
        num_rows += 1
    expected = staged.suite.num_rows[staged.task]
    if num_rows != expected:
        raise TaskError(
            f"{staged.place} has {num_rows} rows, but {staged.suite.title} has {expected} of {staged.task}: the file "
            "is not complete, or the data set has changed; choose another --revision"
        )
    return num_rows

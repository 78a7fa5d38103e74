"""Files that are whole or absent, whatever happens while they are written.

Content goes to a temporary file in the same folder, is forced to disk, and takes its name in one step. A failed write
removes its temporary file; only a killed process leaves one behind, under a name that no reader looks at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from orchestrator.errors import InputError, StorageError

_TEMPORARY_SUFFIX = ".tmp"

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EACCES: "allow this user to write there or choose another run folder",
    errno.EPERM: "allow this user to write there or choose another run folder",
    errno.EROFS: "make the file system writable or choose another run folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system to write ``path`` into a ``StorageError`` that names the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "mend the file system or choose another run folder")
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; nothing was half-written, so {remedy} and resume the run"
        ) from error


def require_writable_folder(folder: Path) -> None:
    """Ask for the permissions of a folder, or of the one that it would be created in; nothing is written.

    Raises:
        StorageError: files may not be made there.
    """
    with storage_errors(folder):
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK, effective_ids=True)
    if not is_writable:
        raise StorageError(
            f"cannot write {folder}: {existing} may not be written; nothing was half-written, "
            "so allow this user to write there or choose another folder"
        )


def require_output(output: Path, endings: Iterable[str]) -> None:
    """Find out that ``--output`` cannot be written while there are no results yet that would be lost.

    Raises:
        InputError: it is a folder, or its name ends in something else.
        StorageError: it may not be written.
    """
    with storage_errors(output):
        is_folder = output.is_dir()
    if is_folder:
        raise InputError(f"--output {output} is a folder: name a file")
    if output.suffix not in (allowed := tuple(endings)):
        raise InputError(f"--output {output}: its name must end in one of {', '.join(allowed)}")
    with storage_errors(output):
        _temporary_beside(output).is_dir()  # raises where that name is too long
    require_writable_folder(output.parent)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its missing parents so that they survive a power cut.

    Raises:
        StorageError: the operating system refuses.
    """
    with storage_errors(folder):
        if folder.is_dir():
            return
    if folder.parent != folder:
        make_folder(folder.parent)
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file that readers see either as it was or complete.

    Raises:
        StorageError: the disk is full or may not be written; ``path`` is as it was.
    """
    make_folder(path.parent)
    temporary = _temporary_beside(path)
    with storage_errors(path):
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON that readers see either as it was or complete; floats survive exactly.

    Raises:
        StorageError: the disk is full or may not be written; ``path`` is as it was.
    """
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """``value`` as indented JSON for a file of its own; floats survive exactly."""
    return (json.dumps(value, indent=2) + "\n").encode()


def finite(value: Any) -> Any:
    """Plain values without what JSON has no word for: NaN and infinities become nulls, which charts leave out."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """What ``write_json_atomic`` wrote; None when there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def sweep_temporaries(folder: Path, prefix: str = "") -> None:
    """Remove what killed processes left of files of ``folder`` whose names start with ``prefix``."""
    for temporary in folder.glob(f".{prefix}*{_TEMPORARY_SUFFIX}"):
        with storage_errors(temporary):
            temporary.unlink(missing_ok=True)


def tree_digest(folder: Path) -> str:
    """Twelve hex digits that change with any name or byte under ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _temporary_beside(path: Path) -> Path:
    """Unique, so that a driver that was replaced, but still runs, cannot write into its successor's file."""
    return path.with_name(f".{path.name}.{uuid4().hex}{_TEMPORARY_SUFFIX}")


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk: without it a power cut may forget a file that is itself on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

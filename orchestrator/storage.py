"""Where a run lives: a folder on a disk or under an address of an object store, behind the same few operations.

==========================================  ===========================================================================
``runs/first``, ``file:///shared/first``    a disk, local or NFS: temporary file, fsync, rename, fsync of the folder
``s3://bucket/runs/first?region=…``         Amazon S3 and whatever speaks its protocol (``endpoint_override=host:port``)
``gs://bucket/runs/first``                  Google Cloud Storage
==========================================  ===========================================================================

On all of them a file is whole or absent, also when its writer is killed: a disk renames, an object store publishes an
object when its upload is complete. That is why other file systems of ``pyarrow.fs`` are not offered: theirs show a file
while it grows. What follows ``?`` are options of ``pyarrow.fs.FileSystem.from_uri``; credentials come from where the
vendor's tools look for them (environment, files, the machine's role), and are never shown if an address has them.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from orchestrator.credentials import without_credentials
from orchestrator.errors import InputError, StorageError
from orchestrator.files import make_folder, require_writable_folder, storage_errors, sweep_temporaries, write_atomic

_SCHEMES = ("s3", "gs")
"""Of the object stores that are understood."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Folder(ABC):
    """A run folder, or one within it; file names in it may contain ``/``. Making one touches nothing."""

    address: str
    """As a person would write it, without credentials."""

    _guard: Callable[[], None] | None = None

    def __str__(self) -> str:
        """Say where it is."""
        return self.address

    def guarded(self, guard: Callable[[], None]) -> Folder:
        """The same folder, calling ``guard`` before every change; it raises if the change must not be made."""
        folder = copy.copy(self)
        folder._guard = guard
        return folder

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file that readers see either as it was or complete.

        Raises:
            StorageError: the storage is full or may not be written; the file is as it was.
        """
        if self._guard:
            self._guard()
        self._write(name, content)

    def write_soon(self, name: str, content: bytes | memoryview) -> None:
        """Like ``write``, but where that means waiting it may return before the file is there; see ``settle``."""
        self.write(name, content)

    @abstractmethod
    def settle(self) -> None:
        """Wait until everything is there that was to be written soon.

        Raises:
            StorageError: some of it could not be written, which an earlier ``write_soon`` may have told as well.
        """

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those that are gone already are no error.

        Raises:
            StorageError: they may not be removed.
        """
        if self._guard and names:
            self._guard()
        self._delete(names)

    @property
    def name(self) -> str:
        """Last part of the address."""
        return urlsplit(self.address).path.rstrip("/").rpartition("/")[2]

    @property
    @abstractmethod
    def desk(self) -> Path:
        """Where this machine keeps what only it needs for the run, like the tracking's outbox; may not exist yet."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Address of a file or folder within."""

    @abstractmethod
    def within(self, name: str) -> Folder:
        """A folder within."""

    @abstractmethod
    def beside(self, name: str) -> Folder | None:
        """A folder next to this one; None where this one is a whole bucket."""

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder; by default, the folder itself."""

    @abstractmethod
    def names(self, under: str = "", prefix: str = "") -> list[str]:
        """Names (with ``under``) of the files directly in ``under`` that start with ``prefix``, sorted."""

    @abstractmethod
    def open(self, name: str) -> Any:
        """The file as ``pyarrow.parquet`` takes it: a path, or a random-access file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            StorageError: it is not there, or may not be read.
        """

    @abstractmethod
    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """``function`` of each item, in order; at the same time where that shortens waiting."""

    @abstractmethod
    def require_writable(self) -> None:
        """Find out before anything is written that nothing could be; leaves nothing behind.

        Raises:
            StorageError: the folder, its bucket or a permission is missing.
        """

    @abstractmethod
    def sweep(self, under: str = "", prefix: str = "") -> None:
        """Remove what killed processes left of files in ``under`` whose names start with ``prefix``."""

    @abstractmethod
    def _write(self, name: str, content: bytes | memoryview) -> None: ...

    @abstractmethod
    def _delete(self, names: Sequence[str]) -> None: ...


Place = str | os.PathLike[str] | Folder
"""What names a folder: a path, an address, or the folder itself."""


def folder_at(place: Place) -> Folder:
    """The folder at a path or address; nothing is touched.

    Raises:
        InputError: the address cannot be understood.
        StorageError: Amazon does not know the bucket, or does not answer.
    """
    if isinstance(place, Folder):
        return place
    address = os.fspath(place)
    scheme, _, rest = address.partition(":")
    if not re.fullmatch("[a-z][a-z0-9+.-]+", scheme) or not rest.startswith("/"):
        return LocalFolder(Path(address))
    if scheme == "file":
        return LocalFolder(Path(unquote(urlsplit(address).path)))
    if scheme not in _SCHEMES or not rest.startswith("//"):  # a Path would have made one slash of two
        known = ", ".join(f"{known}://bucket/folder" for known in _SCHEMES)
        raise InputError(
            f"cannot understand the address {without_credentials(address)}: "
            f"name a folder, or an address like {known}, as text"
        )
    from orchestrator.object_storage import object_folder  # the clouds' libraries take their time to load

    return object_folder(address, scheme)


@contextmanager
def local_copy(folder: Folder) -> Iterator[Path]:
    """The files of a folder as a path: the folder itself on a disk, else a copy that goes away again."""
    if isinstance(folder, LocalFolder):
        yield folder.path
        return
    with tempfile.TemporaryDirectory() as copied:
        for name in folder.names():
            (Path(copied) / name).write_bytes(folder.read(name))
        yield Path(copied)


class LocalFolder(Folder):
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        """Name a folder; the first write creates it."""
        self.path = path
        self.address = str(path)

    @property
    def name(self) -> str:
        """Last part of the path, also of ``.``."""
        return self.path.resolve().name

    @property
    def desk(self) -> Path:
        """The folder itself."""
        return self.path

    def place(self, name: str) -> str:
        """Path of a file or folder within."""
        return str(self.path / name)

    def within(self, name: str) -> Folder:
        """A folder within."""
        return LocalFolder(self.path / name)

    def beside(self, name: str) -> Folder:
        """A folder next to this one."""
        return LocalFolder(self.path.absolute().parent / name)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder."""
        with _reading(self.place(name)):
            return (self.path / name).exists()

    def names(self, under: str = "", prefix: str = "") -> list[str]:
        """Names of files; temporary ones, which begin with a dot, are not among them."""
        with _reading(self.place(under)):
            try:
                found = [entry.name for entry in os.scandir(self.path / under) if entry.is_file()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(str(Path(under) / name) for name in found if name.startswith(prefix) and not name.startswith("."))

    def open(self, name: str) -> str:
        """Path of the file."""
        return self.place(name)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with _reading(self.place(name)):
            return (self.path / name).read_bytes()

    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """One after the other: a disk does not get faster by being asked twice."""
        return [function(item) for item in items]

    def require_writable(self) -> None:
        """Ask for the permissions of the folder, or of the one that it would be created in."""
        require_writable_folder(self.path)

    def sweep(self, under: str = "", prefix: str = "") -> None:
        """Remove temporary files."""
        sweep_temporaries(self.path / under, prefix)

    def settle(self) -> None:
        """Nothing to wait for."""

    def make(self) -> None:
        """Create the folder."""
        make_folder(self.path)

    def _write(self, name: str, content: bytes | memoryview) -> None:
        write_atomic(self.path / name, content)

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            with storage_errors(self.path / name):
                (self.path / name).unlink(missing_ok=True)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedies = {errno.ENAMETOOLONG: "choose a shorter name"}
        remedy = remedies.get(error.errno or 0, "allow this user to read it, or mend the file system")
        raise StorageError(f"cannot read {place}: {error.strerror or error}; {remedy}") from error

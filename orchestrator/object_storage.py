"""Run folders on object stores, through ``pyarrow.fs``: what ``storage.Folder`` promises, with requests in parallel."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType

from orchestrator.credentials import without_credentials
from orchestrator.errors import InputError, StorageError
from orchestrator.storage import Folder

_OPTIONS = {
    "s3": {"allow_delayed_open": "true"},  # one request for a small object instead of three
    "gs": {"retry_limit_seconds": "30"},  # the library's own is a quarter of an hour, also for a mistyped endpoint
}
"""Options by scheme, which an address may override."""

_CONNECTIONS = 16
"""Requests under way at a time where there are many to make."""

_GIVE_CREDENTIALS = (
    "give credentials that may list, read, write and delete there (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "~/.aws, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role)"
)
_REMEDIES = {
    "NO_SUCH_BUCKET|[Bb]ucket .*not (exist|found)": "create the bucket or mend the address",
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED|credential|OAuth2": _GIVE_CREDENTIALS,
    "NETWORK_CONNECTION|UNAVAILABLE|CURL": "mend the network, or the endpoint in the address",
}
"""What an object store's refusal says, as a pattern, and what to do about it; the first that fits counts."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _ObjectFolder(Folder):
    """Objects whose names start alike; ``Folder`` says what each method does."""

    def __init__(self, filesystem: Any, path: str, address: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self.address = address
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="storage")
        self._under_way: deque[Future[None]] = deque()

    @property
    def desk(self) -> Path:
        """Beside runs on disks; nothing there is needed to go on elsewhere, because it can be built again."""
        return Path("runs") / f"{self.name or 'run'}-{sha256(self._path.encode()).hexdigest()[:8]}"

    def place(self, name: str) -> str:
        front, mark, options = self.address.partition("?")
        return f"{front.rstrip('/')}/{name}{mark}{options}"

    def within(self, name: str) -> Folder:
        return _ObjectFolder(self._filesystem, self._full(name), self.place(name))

    def beside(self, name: str) -> Folder | None:
        above, mark, _ = self._path.rpartition("/")
        if not mark:
            return None
        front, question, options = self.address.partition("?")
        shown = f"{front.rstrip('/').rpartition('/')[0]}/{name}{question}{options}"
        return _ObjectFolder(self._filesystem, f"{above}/{name}", shown)

    def exists(self, name: str = "") -> bool:
        with self._refusals("read", name):
            is_there = bool(self._filesystem.get_file_info(self._full(name)).type != FileType.NotFound)
            if not is_there:
                self._require_bucket()
        return is_there

    def names(self, under: str = "", prefix: str = "") -> list[str]:
        with self._refusals("read", under):
            found = self._filesystem.get_file_info(FileSelector(self._full(under), allow_not_found=True))
            if not found:
                self._require_bucket()
        names = [info.base_name for info in found if info.is_file and info.base_name.startswith(prefix)]
        return sorted(f"{under}/{name}" if under else name for name in names)

    def open(self, name: str) -> Any:
        return self._filesystem.open_input_file(self._full(name))

    def read(self, name: str) -> bytes:
        with self._refusals("read", name), self._filesystem.open_input_stream(self._full(name)) as stream:
            return bytes(stream.read())

    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        return list(self._pool.map(function, items))

    def require_writable(self) -> None:
        probe = f".writable-{uuid4().hex}"
        self._write(probe, b"a probe of namm: may be deleted\n")
        self._delete([probe])

    def sweep(self, under: str = "", prefix: str = "") -> None:
        """Nothing to do: an upload that was cut off is no object."""

    def write_soon(self, name: str, content: bytes | memoryview) -> None:
        if len(self._under_way) == _CONNECTIONS:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(self._ask_and_upload, name, content))

    def settle(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()

    def _write(self, name: str, content: bytes | memoryview) -> None:
        # In a thread, where no Ctrl-C arrives between opening and writing: closing would then publish an empty object.
        # Whoever is interrupted waits, so that nothing is still under way when the run is closed.
        upload = self._pool.submit(self._upload, name, content)
        try:
            upload.result()
        finally:
            wait([upload])

    def _ask_and_upload(self, name: str, content: bytes | memoryview) -> None:
        if self._guard:
            self._guard()
        self._upload(name, content)

    def _upload(self, name: str, content: bytes | memoryview) -> None:
        with self._refusals("write", name), self._filesystem.open_output_stream(self._full(name)) as stream:
            stream.write(content)

    def _delete(self, names: Sequence[str]) -> None:
        self.each(self._delete_one, names)

    def _delete_one(self, name: str) -> None:
        with self._refusals("delete", name), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._full(name))

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _require_bucket(self) -> None:
        """An empty folder and a bucket that is not there look the same."""
        bucket = self._path.partition("/")[0]
        if self._filesystem.get_file_info(bucket).type == FileType.NotFound:
            raise OSError(f"bucket {bucket} does not exist")

    def _refusals(self, action: str, name: str) -> AbstractContextManager[None]:
        return _refusals(action, self.place(name))


def object_folder(address: str, scheme: str) -> Folder:
    """The folder at an address of a known scheme; ``storage.folder_at`` says what may be wrong with it."""
    missing = [f"{key}={value}" for key, value in _OPTIONS[scheme].items() if f"{key}=" not in address]
    mark = "&" if "?" in address else "?"
    shown = without_credentials(address)
    try:
        with _refusals("reach", shown):  # Amazon is asked for the region of a bucket
            filesystem, path = FileSystem.from_uri(address + (mark + "&".join(missing) if missing else ""))
    except pa.ArrowInvalid as error:
        told = without_credentials(" ".join(str(error).split()))
        raise InputError(f"cannot understand the address {shown}: {told}; {scheme}://bucket/folder is one") from error
    if not path.strip("/"):
        raise InputError(f"the address {shown} names no bucket: {scheme}://bucket/folder does")
    return _ObjectFolder(filesystem, path.rstrip("/"), shown)


@contextmanager
def _refusals(action: str, place: str) -> Iterator[None]:
    """Turn a refusal of an object store, or of what is between, into a ``StorageError`` that names the remedy."""
    try:
        yield
    except pa.ArrowInvalid:
        raise
    except (OSError, pa.ArrowException) as error:
        # The libraries tell the whole story of a request; what is wrong is at its beginning.
        told = without_credentials(" ".join(str(error).split()))[:300]
        remedy = next((do for said, do in _REMEDIES.items() if re.search(said, str(error))), "try again later")
        ending = "; nothing was half-written" if action == "write" else ""
        raise StorageError(f"cannot {action} {place}: {told}{ending}; {remedy}") from error

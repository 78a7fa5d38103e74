"""Memories on the Hugging Face hub: fetched as files that hold numbers only, sent with a card and a way to be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workers.memory.card import HUB_ID
from workers.memory.errors import MemoryFileError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES = ("config.json", "model.safetensors")
"""All that is ever fetched: a repository's code stays where it is."""

REQUIREMENTS = "namm-orchestrator\ntransformers>=5.17\n"
"""What transformers looks for before it runs ``generate.py``."""

_GENERATE = '''"""Lets transformers decode under this memory:

model.generate(**inputs, custom_generate="{repo_id}", trust_remote_code=True)
"""

from namm import Memory


def generate(model, memory="{repo_id}", **arguments):
    """``model.generate`` under a memory: its hub id, its folder, or the memory itself."""
    if isinstance(memory, str):
        memory = Memory.from_pretrained(memory)
    return memory.generate(model, **arguments)
'''


def custom_generate(repo_id: str) -> dict[str, str]:
    """Files of a ``custom_generate`` repository, by path: what transformers runs when it is told to trust it."""
    return {
        "custom_generate/generate.py": _GENERATE.replace("{repo_id}", repo_id),
        "custom_generate/requirements.txt": REQUIREMENTS,
    }


def is_hub_id(path_or_id: str | os.PathLike[str]) -> bool:
    """Whether it can only be meant as ``owner/name`` on the hub: it looks like that, and no such folder is here."""
    text = os.fspath(path_or_id)
    return HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def require_hub_id(repo_id: str) -> None:
    """Refuses what cannot be a repository before anything is written or sent.

    Raises:
        MemoryFileError: it is not ``owner/name``.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise MemoryFileError(f"{repo_id!r} is no hub id: name the repository as owner/name")


def fetch(repo_id: str, revision: str | None) -> Path:
    """Folder with the memory's two files, from this machine's cache of the hub, or fetched into it.

    Raises:
        MemoryFileError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # reading a folder needs no hub

    remedy = "name a folder that is here, or look at owner, name, revision, network and HF_TOKEN"
    with _said_in_one_line(f"there is no folder {repo_id}, and the hub does not give it", remedy):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))


def push(folder: Path, repo_id: str, *, private: bool, message: str, api: HfApi | None = None) -> str:
    """Send a folder to the hub; returns the address of the commit. The token is huggingface_hub's (``HF_TOKEN``).

    Raises:
        MemoryFileError: there is no permission, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = api or HfApi()
    with _said_in_one_line(f"cannot push to {repo_id}", "look at owner, name, network and HF_TOKEN"):
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


@contextmanager
def _said_in_one_line(what: str, remedy: str) -> Iterator[None]:
    """What goes wrong with the hub, as one line: its own messages have several."""
    try:
        yield
    except Exception as error:  # refusals are OSErrors, but a lost network raises whatever the client's transport does
        reason = " ".join(str(error).split())[:300].replace(":", " ") or type(error).__name__
        raise MemoryFileError(f"{what} ({reason}): {remedy}") from error

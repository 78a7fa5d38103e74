"""Suites' files written from text that every machine has, in exactly the formats of the published ones.

So loaders, prompts and metrics can be run where no data set can be had. What stands for which task is in a table at the
top of each suite's module. The numbers that a model reaches on these files say nothing about the published suites.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tasks.corpus import read_corpus
from tasks.documents import CountTokens
from tasks.errors import TaskError
from tasks.writers import choubun, infinitebench, longbench, ruler
from tasks.writers.material import Material, SuiteFile

MANIFEST = "SOURCE.json"
"""Name of the file that says what lies beside it; written last, so whoever finds it finds everything."""
MIN_TARGET_TOKENS = 512

WRITERS: Mapping[str, Callable[[Material], list[SuiteFile]]] = MappingProxyType(
    {
        "longbench": longbench.write,
        "longbench_e": longbench.write,
        "infinitebench": infinitebench.write,
        "choubun": choubun.write,
        "ruler": ruler.write,
    }
)
_FOLDERS: Mapping[str, str] = MappingProxyType({"longbench_e": "longbench"})


def write_suite(
    suite: str,
    root: Path,
    *,
    seed: int,
    num_rows: int,
    target_tokens: int,
    count_tokens: CountTokens,
    corpus: Path | None = None,
    in_words: bool = False,
) -> None:
    """Write all files of a suite, and its manifest, into a folder of ``root``.

    Args:
        suite: a key of ``WRITERS``; ``longbench`` and ``longbench_e`` are one file, and one folder.
        root: the folder that suites are staged in.
        seed: decides every row, together with the corpus and the sizes.
        num_rows: rows of each task.
        target_tokens: longest context and input of a row together; the task's instructions come on top.
        count_tokens: tokens of a text, special tokens not counted.
        corpus: folder of text; None for the standard library of the Python that runs.
        in_words: write LongBench's trec, triviaqa and samsum in the small Llama's words, so that it can answer.

    Raises:
        TaskError: an unknown suite, sizes that are not possible, a corpus too short, a missing package.
    """
    if suite not in WRITERS:
        raise TaskError(f"suite is {suite!r}; known suites are {', '.join(WRITERS)}")
    for key, value, least in (("num_rows", num_rows, 1), ("seed", seed, 0)):
        if value < least:
            raise TaskError(f"{key} is {value}; choose {least} or more")
    if target_tokens < MIN_TARGET_TOKENS:
        raise TaskError(f"length is {target_tokens} tokens; ask for at least {MIN_TARGET_TOKENS}")
    material = Material(read_corpus(corpus), seed, num_rows, target_tokens, count_tokens, in_words)
    folder = _FOLDERS.get(suite, suite)
    stage(root / folder, WRITERS[suite](material), _source(folder, material))


def stage(folder: Path, files: Sequence[SuiteFile], source: Mapping[str, Any]) -> None:
    """Put files in place, then the manifest: each under a temporary name first, so none is ever seen half written."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in files:
        _replace(folder / file.name, file.data)
    described = {
        file.name: {
            "sha256": hashlib.sha256(file.data).hexdigest(),
            "bytes": len(file.data),
            "rows": file.num_rows,
        }
        for file in files
    }
    _replace(folder / MANIFEST, (json.dumps({**source, "files": described}, indent=2) + "\n").encode())


def _source(suite: str, material: Material) -> dict[str, Any]:
    words = "-words" if material.in_words else ""
    sizes = f"seed-{material.seed}-rows-{material.num_rows}-tokens-{material.target_tokens}{words}"
    revision = f"{sizes}-version-{_version()}"
    return {"suite": suite, "origin": "generated", "id": material.corpus.sha256, "revision": revision}


def _version() -> str:
    try:
        return version("namm-orchestrator")
    except PackageNotFoundError:
        return "unknown"


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

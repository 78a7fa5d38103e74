"""Real text that every machine has: the standard library's source, its docstrings, and the language reference.

Any folder of text can stand in its place. What is read is sorted by name, decoded, rid of doubles and hashed, so that
data made from it can name it; a file belongs to one split for ever, whatever other files come or go.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from tasks.errors import TaskError

CorpusSplit = Literal["train", "validation", "heldout"]
"""``train`` may be learned or evolved on, ``validation`` chosen by, ``heldout`` only reported."""
SourceKind = Literal["code", "prose"]

STANDARD_LIBRARY = "python-standard-library"
"""Name of the corpus that needs no folder."""

_CODE_SUFFIXES = frozenset({".py"})
_PROSE_SUFFIXES = frozenset({".md", ".rst", ".txt"})
_NOT_READ = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload", "__pycache__"})
_MADE_FOR_THIS_MACHINE = re.compile(r"(.*/)?(_sysconfigdata.*|sitecustomize|usercustomize)\.py|config-.*")
_TOPICS = "pydoc_data/topics.py"
_LONG_STRING = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
_MIN_DOCSTRING_CHARS = 200
_WORD = re.compile(r"(?<![A-Za-z])[a-z]{3,12}(?![A-Za-z])")
_MIN_FILES_OF_A_WORD = 3
_MAX_SHARED_LINES = 0.1


@dataclass(frozen=True, slots=True)
class Source:
    """One text of the corpus: a file, a topic of the language reference, or the docstrings of a module."""

    name: str
    """Path from the corpus's folder, ``/`` between its parts; ``path#doc`` for the docstrings of the module there."""
    kind: SourceKind
    text: str

    @property
    def split(self) -> CorpusSplit:
        """The split its file belongs to."""
        return split_of(self.name.partition("#")[0])


@dataclass(frozen=True)
class Corpus:
    """Texts in the order of their names."""

    name: str
    sources: tuple[Source, ...]
    sha256: str
    """Over the names and contents of all sources, in hexadecimal digits."""

    def of(self, split: CorpusSplit, *kinds: SourceKind) -> tuple[Source, ...]:
        """The sources of a split, of these kinds (all kinds when none is given), in the order of their names.

        Raises:
            TaskError: there are none.
        """
        if (split, kinds) not in self._found:
            found = tuple(source for source in self._splits[split] if source.kind in (kinds or ("code", "prose")))
            if not found:
                raise TaskError(
                    f"corpus {self.name!r} has no {' or '.join(kinds) or 'text'} in split {split!r}: give a folder "
                    "with more files"
                )
            self._found[split, kinds] = found, tuple(len(source.text) for source in found)
        return self._found[split, kinds][0]

    def sizes(self, split: CorpusSplit, *kinds: SourceKind) -> tuple[int, ...]:
        """Characters of each of them.

        Raises:
            TaskError: there are none.
        """
        self.of(split, *kinds)
        return self._found[split, kinds][1]

    def words(self, split: CorpusSplit) -> tuple[str, ...]:
        """Words of the corpus (lower case, 3 to 12 letters) in alphabetical order; a word belongs to one split only."""
        return self._words[split]

    def shelves(self, chars: int) -> tuple[Corpus, ...]:
        """The training text dealt out file by file to corpora of about so many characters, each with some of the words.

        For who draws documents by the thousand: what a draw costs grows with the files that it is from.
        """
        sources = sorted(self.of("train"), key=lambda source: hashlib.sha256(source.name.encode()).digest())
        number = max(1, sum(self.sizes("train")) // chars)
        shelves = []
        for start in range(number):
            shelf = Corpus(self.name, tuple(sources[start::number]), self.sha256)
            vars(shelf)["_splits"] = {"train": shelf.sources}  # in place of what would be found from the files alone
            vars(shelf)["_words"] = {"train": self.words("train")[start::number]}
            shelves.append(shelf)
        return tuple(shelves)

    @cached_property
    def _found(self) -> dict[tuple[CorpusSplit, tuple[SourceKind, ...]], tuple[tuple[Source, ...], tuple[int, ...]]]:
        """What was asked for so far: whoever draws rows by the thousand asks for the same."""
        return {}

    @cached_property
    def _splits(self) -> dict[CorpusSplit, tuple[Source, ...]]:
        by_split: dict[CorpusSplit, list[Source]] = {"train": [], "validation": [], "heldout": []}
        for source in self.sources:
            by_split[source.split].append(source)
        seen = {line for source in by_split["train"] for line in _long_lines(source)}
        unseen = {
            split: [source for source in found if split == "train" or _shared(source, seen) <= _MAX_SHARED_LINES]
            for split, found in by_split.items()
        }
        return {split: tuple(found) for split, found in unseen.items()}

    @cached_property
    def _words(self) -> dict[CorpusSplit, tuple[str, ...]]:
        files: Counter[str] = Counter()
        for source in self.sources:
            files.update(set(_WORD.findall(source.text)))
        by_split: dict[CorpusSplit, list[str]] = {"train": [], "validation": [], "heldout": []}
        for word in sorted(files):
            if files[word] >= _MIN_FILES_OF_A_WORD:
                by_split[split_of(f"word {word}")].append(word)
        return {split: tuple(words) for split, words in by_split.items()}


def split_of(name: str) -> CorpusSplit:
    """The split of a file or word: eight in ten train, one each for validation and held-out, by hash of the name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "validation" if place == 8 else "heldout"


@cache
def read_corpus(folder: Path | None = None) -> Corpus:
    """Read the corpus in ``folder``, or this Python's standard library.

    Kept for the life of the process: 14 MB, about two seconds for the standard library.

    Raises:
        TaskError: the folder is missing, or no text is in it.
    """
    if folder is None:
        return corpus_of(STANDARD_LIBRARY, _standard_library(Path(sysconfig.get_paths()["stdlib"])))
    if not folder.is_dir():
        raise TaskError(f"corpus: {str(folder)!r} is no folder: give one with .py, .md, .rst or .txt files in it")
    return corpus_of(folder.name, _texts_under(folder))


def corpus_of(name: str, sources: Iterable[Source]) -> Corpus:
    """Sort, rid of doubles (the first name stays) and hash.

    Raises:
        TaskError: there is no text at all.
    """
    by_text: dict[str, Source] = {}
    for source in sorted(sources, key=lambda source: source.name):
        if source.text.strip():
            by_text.setdefault(source.text, source)
    if not by_text:
        raise TaskError(f"corpus: no text in {name!r}: give a folder with .py, .md, .rst or .txt files in it")
    digest = hashlib.sha256()
    for source in by_text.values():
        for part in (source.name, source.text):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return Corpus(name, tuple(by_text.values()), digest.hexdigest())


def _texts_under(folder: Path) -> Iterator[Source]:
    """Text files in a folder and those in it, hidden ones and links left out, and the docstrings of modules."""
    for path in _files_under(folder):
        text = _decoded(path)
        if text is None:
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix in _PROSE_SUFFIXES:
            yield Source(name, "prose", text)
            continue
        yield Source(name, "code", text)
        yield Source(f"{name}#doc", "prose", "\n".join(_docstrings(text)))


def _files_under(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_READ]
        for name in names:
            path = Path(parent, name)
            is_text = path.suffix in _CODE_SUFFIXES | _PROSE_SUFFIXES
            if is_text and not name.startswith(".") and not path.is_symlink():
                yield path


def _docstrings(code: str) -> Iterator[str]:
    """Long strings that start a line: found by their quotes, as a parser takes ten times as long."""
    for found in _LONG_STRING.finditer(code):
        before = code[code.rfind("\n", 0, found.start()) + 1 : found.start()]
        if before.strip() in ("", "r", "R") and len(found[2]) >= _MIN_DOCSTRING_CHARS:
            yield inspect.cleandoc(found[2]) + "\n"


def _standard_library(folder: Path) -> Iterator[Source]:
    """Modules and docstrings without what is written for one machine, and the language reference topic by topic."""
    from pydoc_data.topics import topics

    for source in _texts_under(folder):
        path = source.name.partition("#")[0]
        if path.endswith(".py") and path != _TOPICS and not _MADE_FOR_THIS_MACHINE.fullmatch(path):
            yield source
    for topic, text in topics.items():
        yield Source(f"pydoc_data/topics/{topic}", "prose", text.strip("\n") + "\n")


def _decoded(path: Path) -> str | None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError):
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")


def _long_lines(source: Source) -> list[str]:
    return [line for line in map(str.strip, source.text.splitlines()) if len(line) >= 30]


def _shared(source: Source, seen: set[str]) -> float:
    """Share of a source's long lines that stand in the training text too."""
    lines = _long_lines(source)
    return sum(line in seen for line in lines) / len(lines) if lines else 0.0

"""Questions about the text itself: which paragraph, how many paragraphs, which line comes next, what kind of line.

Paragraphs stand under their numbers::

    Paragraph 1:
    def quote(text): ...

and are asked for by the docstring that was cut out of one, by a line, or by a sentence of it.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from tasks.corpus import Source, SourceKind
from tasks.documents import Asked, Document, Draft, TextPool, join_lines, readable_lines

_LINES_OF_A_PASSAGE = 12
_MIN_LINES_SHOWN = 3
_SENTENCE = re.compile(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+){0,2}[.!?](?=\s|$)")

LINE_TYPES: Mapping[type[ast.stmt], str] = MappingProxyType(
    {
        ast.Assign: "assignment",
        ast.AugAssign: "update",
        ast.Return: "return",
        ast.Raise: "raise",
        ast.Import: "import",
        ast.If: "condition",
        ast.For: "loop",
        ast.FunctionDef: "function",
        ast.ClassDef: "class",
        ast.Assert: "check",
        ast.Delete: "deletion",
        ast.Expr: "call",
    }
)
"""What a line of code may be; none of the names stands in another."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function that has a docstring."""

    name: str
    docstring: str
    summary: str
    """First line of the docstring."""
    code: str
    """Source without decorators and docstring, not indented."""


def draft_passage_doc(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Functions without their docstrings: which one is described by the first line of a docstring."""
    found = draw_functions(rng, pool)
    asked = [[Asked(f"Which paragraph is described by: {function.summary}", "")] for function in found]
    return draft_passages([function.code.split("\n") for function in found], asked)


def draft_passage_line(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Pieces of files: which one contains a line that stands in no other."""

    def lines(passage: Sequence[str]) -> list[str]:
        return [line.strip() for line in passage if 12 <= len(line.strip()) <= pool.max_asked_chars]

    return _draft_containing("line", draw_passages(rng, pool, lines), lines)


def draft_passage_prose(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Sections of prose: which one contains a sentence that stands in no other."""

    def sentences(passage: Sequence[str]) -> list[str]:
        found = (" ".join(sentence.split()) for sentence in _SENTENCE.findall("\n".join(passage)))
        return [sentence for sentence in found if 20 <= len(sentence) <= 1.5 * pool.max_asked_chars]

    return _draft_containing("sentence", draw_passages(rng, pool, sentences, "prose"), sentences)


def draft_passage_count(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Pieces of files, some of them more than once: how many there are without the doubles."""
    passages = [passage[:6] for passage in draw_passages(rng, pool, list)]
    order: list[int] = []
    fresh = 0
    while fresh < len(passages):
        is_double = bool(order) and rng.random() < 0.3
        order.append(order[int(rng.integers(len(order)))] if is_double else fresh)
        fresh += not is_double

    def document(size: int) -> Document:
        shown = order[: max(1, size)]
        text = "".join(_numbered(number, passages[i]) for number, i in enumerate(shown, 1))
        answer = str(len(set(shown)))
        return Document(text, (Asked("How many paragraphs are there without the doubles?", answer),))

    return document


def draft_next_line(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Which line comes after a line that stands there once."""
    filler = pool.lines(rng)

    def document(size: int) -> Document:
        shown = filler[:size]
        return Document(join_lines(shown), tuple(next_lines(shown, pool.max_asked_chars)))

    return document


def draft_line_type(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Lines of code with their types as examples; asked: the type of one more line, of a type that was shown."""
    lines = draw_typed_lines(rng, pool)
    held_back, shown = lines[:12], lines[12:]

    def document(size: int) -> Document:
        text = "".join(f"Line: {line}\nType: {type_}\n" for line, type_ in shown[:size])
        known = {type_ for _, type_ in shown[:size]}
        asked = (Asked(f"What is the type of the line: {line}", type_) for line, type_ in held_back if type_ in known)
        return Document(text, tuple(asked))

    return document


def _draft_containing(
    what: str, passages: Sequence[Sequence[str]], parts: Callable[[Sequence[str]], Sequence[str]]
) -> Draft:
    num_passages = Counter(part for passage in passages for part in set(parts(passage)))
    asked = [
        [
            Asked(f"Which paragraph contains the {what}: {part}", "")
            for part in parts(passage)
            if num_passages[part] == 1
        ]
        for passage in passages
    ]
    return draft_passages(passages, asked)


# Parts ---------------------------------------------------------------------------------------------------------------


def draft_passages(passages: Sequence[Sequence[str]], asked: Sequence[Sequence[Asked]]) -> Draft:
    """Numbered passages; the size is their lines in all, so the last one may be cut short.

    Answers are filled in here: the number is known only now. Of a passage that was cut short nothing is asked that
    might stand in the part cut off.
    """

    def document(size: int) -> Document:
        text, known = "", []
        for number, (passage, about) in enumerate(zip(passages, asked, strict=True), 1):
            shown = passage[:size]
            size -= len(shown)
            if len(shown) < min(len(passage), _MIN_LINES_SHOWN):
                break
            text += _numbered(number, shown)
            if len(shown) == len(passage):
                known += [Asked(item.question, f"Paragraph {number}") for item in about]
        return Document(text, tuple(known))

    return document


def draw_passages(
    rng: np.random.Generator, pool: TextPool, askable: Callable[[Sequence[str]], Sequence[str]], *kinds: SourceKind
) -> list[list[str]]:
    """Runs of up to twelve lines from random places of the files, one a file before any file gives its second.

    Of a passage something is ``askable``, or it is not taken.
    """
    sources = pool.order(rng, *kinds)
    passages: list[list[str]] = []
    num_chars = 0
    seen: set[str] = set()
    lines_of: dict[str, Sequence[str]] = {}
    for _ in range(64):
        for source in sources:
            lines = lines_of[source.name] = lines_of.get(source.name) or readable_lines(source)
            start = int(rng.integers(max(1, len(lines) - _LINES_OF_A_PASSAGE + 1)))
            passage = _cut(lines[start : start + _LINES_OF_A_PASSAGE], pool.max_passage_chars)
            if len(passage) < _MIN_LINES_SHOWN or not askable(passage) or "\n".join(passage) in seen:
                continue
            seen.add("\n".join(passage))
            passages.append(passage)
            num_chars += sum(map(len, passage))
            if num_chars >= pool.max_chars:
                return passages
    return passages


def draw_functions(rng: np.random.Generator, pool: TextPool) -> list[Function]:
    """Functions of many files, no two with the same summary or code."""
    found: dict[str, Function] = {}
    codes: set[str] = set()
    num_chars = 0
    for source in pool.order(rng, "code"):
        functions = functions_of(source)
        for i in rng.permutation(len(functions))[:8]:
            function = functions[i]
            is_short = len(function.code) <= pool.max_passage_chars and len(function.summary) <= pool.max_asked_chars
            if not is_short or function.summary in found or function.code in codes:
                continue
            found[function.summary] = function
            codes.add(function.code)
            num_chars += len(function.code)
        if num_chars >= pool.max_chars:
            break
    drawn = list(found.values())
    return [drawn[i] for i in rng.permutation(len(drawn))]


def draw_typed_lines(rng: np.random.Generator, pool: TextPool) -> list[tuple[str, str]]:
    """Lines and their types, no line twice, each type about as often as it can be had."""
    by_type: dict[str, list[str]] = {name: [] for name in LINE_TYPES.values()}
    seen: set[str] = set()
    num_chars = 0
    for source in pool.order(rng, "code"):
        for line, type_ in typed_lines(source):
            if line not in seen and len(by_type[type_]) < 4 + 2 * min(map(len, by_type.values())):
                seen.add(line)
                by_type[type_].append(line)
                num_chars += len(line)
        if num_chars >= pool.max_chars // 2:
            break
    lines = [(line, type_) for type_, found in by_type.items() for line in found]
    return [lines[i] for i in rng.permutation(len(lines))]


def next_lines(lines: Sequence[str], max_chars: int) -> Iterator[Asked]:
    """A question for each line that stands there once and has a line behind it, both of at most ``max_chars``."""
    written = [line.strip() for line in lines if line.strip()]
    times = Counter(written)
    for line, following in itertools.pairwise(written):
        if times[line] == 1 and 12 <= len(line) <= max_chars and 4 <= len(following) <= max_chars:
            yield Asked(f"Which line comes after `{line}`?", following)


@lru_cache(maxsize=4096)
def functions_of(source: Source) -> tuple[Function, ...]:
    """The functions of a file that have a docstring of a sentence and a body of a few lines.

    Kept, as a parser takes tens of milliseconds a file; for more files than the standard library has, as whoever draws
    a few hundred documents reads all of them.
    """
    lines = source.text.split("\n")
    found = (
        _function(node, lines)
        for node in ast.walk(parsed(source.text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return tuple(function for function in found if function is not None)


@lru_cache(maxsize=256)
def typed_lines(source: Source) -> tuple[tuple[str, str], ...]:
    """Lines of a file that hold one statement, or the head of one, with the type of the statement."""
    lines = source.text.split("\n")
    found = []
    for node in ast.walk(parsed(source.text)):
        type_ = LINE_TYPES.get(type(node)) if isinstance(node, ast.stmt) else None
        is_call = not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call)
        if type_ is None or not is_call or not isinstance(node, ast.stmt):
            continue
        line = lines[node.lineno - 1].strip()
        is_whole = line.endswith(":") if hasattr(node, "body") else node.end_lineno == node.lineno
        if is_whole and 10 <= len(line) <= 80 and ";" not in line and not line.startswith("el"):
            found.append((line, type_))
    return tuple(found)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> Function | None:
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2 or node.end_lineno is None:
        return None
    summary = docstring.split("\n")[0].strip()
    first = node.body[0]
    code = inspect.cleandoc("\n" + "\n".join([*lines[node.lineno - 1 : first.lineno - 1], *_after(first, node, lines)]))
    if len(summary.split()) < 3 or not 20 <= len(summary) <= 120 or not 3 <= code.count("\n") < 40:
        return None
    return Function(node.name, docstring, summary, code)


def _after(first: ast.stmt, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> list[str]:
    assert first.end_lineno is not None
    return list(lines[first.end_lineno : node.end_lineno])


def _cut(lines: Sequence[str], max_chars: int) -> list[str]:
    """The first lines, up to so many characters."""
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    return [line for line, end in zip(lines, ends, strict=True) if end <= max_chars]


def parsed(text: str) -> ast.Module:
    """The module of a text; an empty one where this Python cannot read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escape sequences in files that are not ours
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            return ast.Module(body=[], type_ignores=[])


def _numbered(number: int, lines: Sequence[str]) -> str:
    return f"Paragraph {number}:\n" + join_lines(lines) + "\n"

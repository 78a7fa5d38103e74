"""What kind of thing each stretch of a text is: of code, of prose, or of a generated document.

Only so can one ask whether a memory forgets by kind: comments and white space of code, function words of prose (as the
source of the method reports of its own memories), the filler of a generated document.

============  ====================================================================================================
``python``    comment, docstring, white space, keyword, identifier, literal, operator: by Python's own tokenizer
``prose``     function word, punctuation, named fact, repetition, content word, white space: by closed word classes
``facts``     fact key, fact value, filler: what the writer of the document knows
============  ====================================================================================================

Tokens that stand for no text, like the one for the beginning of a sequence, are ``special``.
"""

from __future__ import annotations

import ast
import itertools
import keyword
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from tasks.words import VOCABULARY, split_text, word_kind

Language = Literal["python", "prose", "facts"]
LANGUAGES: tuple[Language, ...] = ("python", "prose", "facts")

WHITE, SPECIAL = "white space", "special"

KINDS: Mapping[Language, tuple[str, ...]] = MappingProxyType(
    {
        "python": ("comment", "docstring", WHITE, "keyword", "identifier", "literal", "operator"),
        "prose": ("function word", "punctuation", "named fact", "repetition", "content word", WHITE),
        "facts": ("fact key", "fact value", "filler"),
    }
)
"""Kinds of each language, in the order of tables; ``special`` comes last in all."""


def _words(text: str) -> list[str]:
    return text.split()


FUNCTION_WORDS = frozenset(
    _words("""
    a an the this that these those every each either neither some any no all both half such what which whose
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us
    our ours ourselves they them their theirs themselves who whom one ones somebody someone something anybody anyone
    anything nobody nothing everybody everyone everything
    about above across after against along among around as at before behind below beneath beside besides between beyond
    by despite down during except for from in inside into like near of off on onto out outside over past per round since
    through throughout till to toward towards under underneath until up upon via with within without
    and or but nor so yet if than though although because unless whereas while whether when where why how
    am is are was were be been being have has had having do does did doing done will would shall should can could may
    might must ought not n't there here then too very just also only even
    """)
)
"""English words of the closed classes: determiners, pronouns, prepositions, conjunctions, auxiliaries, particles."""

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*|\d+(?:[.,:/\-]\d+)*%?|\s+|.", re.DOTALL)
_CONTRACTION = re.compile("(n['’]t|['’](s|re|ll|ve|d|m))$")
_SENTENCE_ENDS = ".!?…:"


class Span(NamedTuple):
    """Characters ``start`` to ``stop`` of a text are of one kind."""

    start: int
    stop: int
    kind: str


def guess_language(text: str) -> Language:
    """Which kinds fit: those of generated documents, of Python that compiles, or of prose."""
    words = split_text(text)
    has_fact = any(word_kind(word) in ("key", "value") for word in words)  # filler alone may be any prose or code
    if has_fact and sum(word in _VOCABULARY for word in words) >= 0.95 * len(words):
        return "facts"
    try:
        statements = ast.walk(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "prose"
    return "python" if any(isinstance(node, _PYTHON_ONLY) for node in statements) else "prose"


_VOCABULARY = frozenset(VOCABULARY)
_PYTHON_ONLY = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.Call)


def spans(text: str, language: Language) -> list[Span]:
    """The text cut into stretches of one kind: ascending, without gaps or overlaps."""
    found = {"python": _python, "prose": _prose, "facts": _facts}[language](text)
    return list(_without_gaps(found, len(text)))


def kinds_of_tokens(text: str, tokens: Sequence[tuple[int, int]], language: Language) -> tuple[str, ...]:
    """The kind of every token: of most of its characters, white space around them left out.

    Args:
        text: what was cut into tokens.
        tokens: characters (start, stop) of each token, ascending; one without characters is ``special``.
        language: which kinds to tell apart.
    """
    by_character: list[str] = []
    for start, stop, kind in spans(text, language):
        by_character += [kind] * (stop - start)
    return tuple(_most(text[start:stop], by_character[start:stop]) for start, stop in tokens)


def _most(characters: str, kinds: Sequence[str]) -> str:
    if not kinds:
        return SPECIAL
    told = [kind for character, kind in zip(characters, kinds, strict=True) if not character.isspace()] or kinds
    return max(dict.fromkeys(told), key=told.count)


def _without_gaps(found: Iterable[Span], length: int) -> Iterator[Span]:
    """What lies between spans is white space."""
    end = 0
    for start, stop, kind in found:
        if start > end:
            yield Span(end, start, WHITE)
        if stop > max(start, end):
            yield Span(max(start, end), stop, kind)
            end = stop
    if end < length:
        yield Span(end, length, WHITE)


# Generated documents --------------------------------------------------------------------------------------------------

_FACT_KINDS = MappingProxyType({"key": "fact key", "value": "fact value", "filler": "filler", "special": SPECIAL})


def _facts(text: str) -> Iterator[Span]:
    start = 0
    for word in split_text(text):
        start = text.index(word, start)
        yield Span(start, start + len(word), _FACT_KINDS[word_kind(word)])
        start += len(word)


# Prose ----------------------------------------------------------------------------------------------------------------


def _prose(text: str) -> Iterator[Span]:
    seen: set[str] = set()
    begins_sentence = True
    for match in _WORD.finditer(text):
        word = match[0]
        yield Span(*match.span(), _prose_kind(word, seen, begins_sentence=begins_sentence))
        if not word.isspace():
            begins_sentence = word in _SENTENCE_ENDS or (begins_sentence and not word[0].isalnum())
        seen.add(word.casefold())


def _prose_kind(word: str, seen: set[str], *, begins_sentence: bool) -> str:
    """A name is told by its capital, which says nothing at the beginning of a sentence; a number is a fact."""
    if word.isspace():
        return WHITE
    if not word[0].isalnum():
        return "punctuation"
    stem = _CONTRACTION.sub("", word)
    if word.casefold() in FUNCTION_WORDS or stem.casefold() in FUNCTION_WORDS:
        return "function word"
    if word.casefold() in seen:
        return "repetition"
    is_name = word[0].isupper() and (not begins_sentence or stem[1:].isupper())
    return "named fact" if is_name or word[0].isdigit() else "content word"


# Python ---------------------------------------------------------------------------------------------------------------

_LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)
_LITERALS = tuple(
    number
    for name in ("NUMBER", "STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if (number := getattr(tokenize, name, None)) is not None
)


def _python(text: str) -> Iterator[Span]:
    """Spans by Python's tokenizer, which starts anew where it cannot go on: texts are cut anywhere."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts = [0, *itertools.accumulate(map(len, lines))]
    first = 0
    while first < len(lines):
        tokens, error = _readable(lines[first:])
        for start, stop, kind in _kinds_of_python(tokens):
            yield Span(starts[first + start[0] - 1] + start[1], starts[first + stop[0] - 1] + stop[1], kind)
        if error is None:
            return
        if isinstance(error, tokenize.TokenError) and "string" in str(error.args[0]):
            row, column = error.args[1]
            yield Span(starts[first + row - 1] + column, len(text), "literal")
            return
        # Of what it stumbled over it has said nothing; a line by itself is read without the ones before.
        first += max(1, _line_of(error, tokens) - 1)


def _readable(lines: Sequence[str]) -> tuple[list[tokenize.TokenInfo], SyntaxError | tokenize.TokenError | None]:
    """Tokens up to where they cannot be read, and why; None when all can."""
    tokens: list[tokenize.TokenInfo] = []
    feed = iter(lines)
    try:
        for token in tokenize.generate_tokens(lambda: next(feed, "")):
            tokens.append(token)
    except (tokenize.TokenError, SyntaxError) as error:
        return tokens, error
    return tokens, None


def _line_of(error: SyntaxError | tokenize.TokenError, tokens: Sequence[tokenize.TokenInfo]) -> int:
    """Number of the line that cannot be read, from 1; the one after the last where a bracket was not closed."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    return max((token.end[0] for token in tokens), default=0) + 1


def _kinds_of_python(tokens: Sequence[tokenize.TokenInfo]) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:
    meant = [token for token in tokens if token.type not in (tokenize.NL, tokenize.COMMENT)]
    following = {id(token): after for token, after in itertools.pairwise(meant)}
    begins_line = True
    for token in tokens:
        if token.type in _LAYOUT:
            begins_line = begins_line or token.type == tokenize.NEWLINE
            continue
        if token.type != tokenize.COMMENT:
            after = following.get(id(token))
            stands_alone = begins_line and (after is None or after.type in _LAYOUT)
            begins_line = False
        kind = "comment" if token.type == tokenize.COMMENT else _python_kind(token, stands_alone=stands_alone)
        yield token.start, token.end, kind


def _python_kind(token: tokenize.TokenInfo, *, stands_alone: bool) -> str:
    """A string that is a whole statement documents something."""
    if token.type in _LITERALS:
        return "docstring" if stands_alone and token.type == tokenize.STRING else "literal"
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "identifier"
    return WHITE if token.string.isspace() else "operator"

r"""The 256 words of the generated tasks, and how text and words turn into each other.

Every word is one token of the small Llama's tokenizer, which is built from this file, so a text of n words is n tokens.
A key carries its equals sign: ``captain=amber`` is the two words ``captain=`` and ``amber``, so that an answer needs no
leading space and encoding a question and its answer apart or together gives the same tokens. Line break and indentation
are words too: ``\n`` and four spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
NEWLINE, INDENT = "\n", "    "
ASK = "ask"
SPECIAL_WORDS = (PAD, BOS, EOS, UNKNOWN)
STRUCTURE_WORDS = (NEWLINE, INDENT, ".", ",", "(", ")", ":", "=", "#", "def", "return", ASK)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KEYS = tuple(
    f"{name}="
    for name in _words("""
    captain harbour password signal courier anchor beacon cipher district engine ferry garrison hospital island jury
    kitchen library market number office palace quarry railway station tavern university village warehouse airport
    bridge cathedral depot embassy factory gallery hotel institute journal kingdom laboratory museum newspaper
    orchestra passport queen regiment school theatre umbrella vessel workshop account border contract deadline
    emblem frontier gateway hangar index junction keyword landmark motto
    """)
)
"""64 words that name a fact; they occur nowhere else in a document."""

VALUES = _words("""
    amber cobalt crimson emerald ivory jade lilac magenta ochre pearl ruby sapphire scarlet silver turquoise violet
    acorn almond basil cedar clover fern ginger hazel iris juniper laurel maple nettle olive poppy saffron badger
    beaver bison cobra condor dolphin eagle falcon gazelle heron jaguar koala leopard lynx marten otter april august
    autumn dawn december dusk july june march may midnight monday november spring sunday winter
""")
"""64 words that are the content of a fact; they occur nowhere else in a document."""

DETERMINERS = ("the", "a", "this", "every")
ADJECTIVES = _words("""
    old small bright quiet heavy narrow wooden broken distant empty gentle hollow idle large modern pale rapid round
    simple steep thin warm wet young
""")
NOUNS = _words("""
    lantern river stone ladder window basket candle mountain garden letter mirror needle barrel blanket bottle
    bucket carpet cellar chain clock corner curtain door farmer field fisher forest hammer kettle merchant miller
    paper pocket rope saddle shadow table wagon wheel willow
""")
VERBS = _words("""
    carries follows holds lifts turns paints mends finds leaves watches opens closes covers moves draws keeps meets
    passes pulls reaches sees sorts takes washes
""")
ADVERBS = _words("slowly often rarely gladly soon again always never twice today")
PREPOSITIONS = _words("near under behind above with for beside across into without")
FILLER_WORDS = DETERMINERS + ADJECTIVES + NOUNS + VERBS + ADVERBS + PREPOSITIONS

VOCABULARY = SPECIAL_WORDS + STRUCTURE_WORDS + KEYS + VALUES + FILLER_WORDS
"""All 256 words; the place of a word is its token id."""

WORD_PATTERN = rf"{re.escape(NEWLINE)}|{INDENT}|[A-Za-z0-9_]+=|[A-Za-z0-9_]+|[^ \n]"
"""What counts as one word of a text. Single spaces separate words and are no words."""

GLUED_TO_PREVIOUS = (NEWLINE, ".", ",", "(", ")", ":")
"""Words without a space before them."""
GLUED_TO_NEXT = frozenset((NEWLINE, INDENT, "(", *KEYS))
"""Words without a space after them."""

WordKind = Literal["key", "value", "filler", "special"]
_KEYS, _VALUES, _SPECIAL_WORDS = frozenset(KEYS), frozenset(VALUES), frozenset(SPECIAL_WORDS)


def split_text(text: str) -> list[str]:
    """The words of ``text``, without a beginning-of-sequence word; the inverse of ``join_words``."""
    return re.findall(WORD_PATTERN, text)


def join_words(words: Sequence[str]) -> str:
    """The text made of ``words``."""
    pieces: list[str] = []
    for position, word in enumerate(words):
        glued = position == 0 or word in GLUED_TO_PREVIOUS or words[position - 1] in GLUED_TO_NEXT
        pieces.append(word if glued else f" {word}")
    return "".join(pieces)


def word_kind(word: str) -> WordKind:
    """Whether ``word`` is the key of a fact, its value, a special word, or filler (punctuation and layout included)."""
    if word in _KEYS:
        return "key"
    if word in _VALUES:
        return "value"
    return "special" if word in _SPECIAL_WORDS else "filler"


def token_kinds(text: str) -> tuple[WordKind, ...]:
    """What each token of ``text`` is, the beginning-of-sequence token (``special``) first.

    Aligned with the ids that the small Llama's tokenizer returns for ``text``.
    """
    return ("special", *map(word_kind, split_text(text)))

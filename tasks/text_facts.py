"""Facts hidden between the lines of real text: sentences, settings, keys and values, a pass key, chains of assignments.

Each ``draft_…`` draws text and facts and returns the draft of a document (see ``tasks.documents``). No key and no value
is a word of the text that it stands in, and keys often share a word, so that only both halves tell them apart::

    The code name of the quiet lantern is 48213.
    The code name of the quiet harbour is amber-17.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.documents import Asked, Document, Draft, TextPool, Vocabulary, join_lines, pick

ATTRIBUTES = (
    "access code",
    "address",
    "code name",
    "colour",
    "id",
    "key",
    "label",
    "magic number",
    "nickname",
    "password",
    "reference",
    "room number",
    "secret word",
    "serial number",
    "ticket",
    "version",
)
"""What a fact in prose may be about."""

_LETTERS_AND_DIGITS = tuple("abcdefghjkmnpqrstuvwxyz0123456789")
_INDENTS = ("", "    ", "        ", "            ")


@dataclass(frozen=True, slots=True)
class Fact:
    """A line that hides something, and what can be asked about it (None: nothing)."""

    line: str
    asked: Asked | None


def draft_fact_prose(rng: np.random.Generator, pool: TextPool) -> Draft:
    """``The {attribute} of the {two words} is {value}.`` between lines of code and prose."""
    filler = pool.lines(rng)
    vocabulary = pool.vocabulary("\n".join(filler))
    shared = pick(rng, ATTRIBUTES) if rng.random() < 0.75 else None
    facts = []
    for first, second in draw_pairs(rng, vocabulary, num_facts(rng, pool)):
        attribute, value = shared or pick(rng, ATTRIBUTES), draw_value(rng, vocabulary)
        question = f"What is the {attribute} of the {first} {second}?"
        facts.append(Fact(f"The {attribute} of the {first} {second} is {value}.", Asked(question, value)))
    return hide(rng, facts, filler)


def draft_records(rng: np.random.Generator, pool: TextPool) -> Draft:
    """``{attribute} of the {two words}: {value}`` between lines of prose."""
    filler = pool.lines(rng, "prose")
    vocabulary = pool.vocabulary("\n".join(filler))
    facts = []
    for first, second in draw_pairs(rng, vocabulary, num_facts(rng, pool)):
        attribute, value = pick(rng, ATTRIBUTES), draw_value(rng, vocabulary)
        asked = Asked(f"What is the {attribute} of the {first} {second}?", value)
        facts.append(Fact(f"{attribute} of the {first} {second}: {value}", asked))
    return hide(rng, facts, filler)


def draft_two_hop(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Two facts an answer: who owns a thing, and what is known of the owner."""
    filler = pool.lines(rng, "prose")
    vocabulary = pool.vocabulary("\n".join(filler))
    facts = []
    owners = vocabulary.shuffled(rng)[: num_facts(rng, pool)]
    vocabulary = vocabulary.without(owners)
    for (first, second), name in zip(draw_pairs(rng, vocabulary, len(owners)), owners, strict=True):
        attribute, value, owner = pick(rng, ATTRIBUTES), draw_value(rng, vocabulary), name.capitalize()
        asked = Asked(f"What is the {attribute} of the owner of the {first} {second}?", value)
        facts += [
            Fact(f"The owner of the {first} {second} is {owner}.", None),
            Fact(f"The {attribute} of {owner} is {value}.", asked),
        ]
    return hide(rng, [facts[i] for i in rng.permutation(len(facts))], filler)


def draft_fact_code(rng: np.random.Generator, pool: TextPool) -> Draft:
    """``# config: {a_b} = {value}`` between lines of code."""
    filler = pool.lines(rng, "code")
    vocabulary = pool.vocabulary("\n".join(filler))
    is_upper = rng.random() < 0.4
    facts = []
    for first, second in draw_pairs(rng, vocabulary, num_facts(rng, pool)):
        key, value = f"{first}_{second}", draw_value(rng, vocabulary)
        key = key.upper() if is_upper else key
        value = value if value.isdecimal() or rng.random() < 0.5 else f'"{value}"'
        line = f"{pick(rng, _INDENTS)}# config: {key} = {value}"
        facts.append(Fact(line, Asked(f"What is the value of {key}?", value)))
    return hide(rng, facts, filler)


def draft_kv(rng: np.random.Generator, pool: TextPool) -> Draft:
    """``"{key}": "{value}",`` between lines of code and prose: words, or hexadecimal digits throughout."""
    filler = pool.lines(rng)
    num_pairs = max(2, pool.target_tokens // 48)
    if rng.random() < 0.5:
        keys = draw_digits(rng, num_pairs, 6)
        values = draw_digits(rng, num_pairs, 8)
    else:
        vocabulary = pool.vocabulary("\n".join(filler))
        keys = [f"{first}_{second}" for first, second in draw_pairs(rng, vocabulary, num_pairs)]
        values = [draw_value(rng, vocabulary) for _ in range(num_pairs)]
    facts = [
        Fact(f'"{key}": "{value}",', Asked(f'What is the value of the key "{key}"?', value))
        for key, value in zip(keys, values, strict=True)
    ]
    return hide(rng, facts, filler)


def draft_kvdense(rng: np.random.Generator, pool: TextPool) -> Draft:
    """Text, then up to forty lines ``{key}: {value}``; what is asked is the key alone."""
    filler = pool.lines(rng)
    vocabulary = pool.vocabulary("\n".join(filler))
    keys = vocabulary.shuffled(rng)[: min(40, max(2, pool.target_tokens // 24), len(vocabulary.words) // 2)]
    vocabulary = vocabulary.without(keys)
    values = [draw_value(rng, vocabulary) for _ in keys]
    records = join_lines([f"{key}: {value}" for key, value in zip(keys, values, strict=True)])
    asked = tuple(Asked(key, value) for key, value in zip(keys, values, strict=True))
    return lambda size: Document(join_lines(filler[:size]) + records, asked)


def draft_passkey(rng: np.random.Generator, pool: TextPool) -> Draft:
    """One pass key of five digits."""
    filler = pool.lines(rng)
    present = "\n".join(filler)
    value = str(rng.integers(10_000, 100_000))
    while value in present:
        value = str(rng.integers(10_000, 100_000))
    line = f"The pass key is {value}. Remember it. {value} is the pass key."
    return hide(rng, [Fact(line, Asked("What is the pass key?", value))], filler)


def draft_variable(rng: np.random.Generator, pool: TextPool) -> Draft:
    """``a = 4812``, later ``b = a``, later ``c = b``: values behind chains of assignments, between lines of code."""
    filler = pool.lines(rng, "code")
    vocabulary = pool.vocabulary("\n".join(filler))
    names = vocabulary.shuffled(rng)[: min(16, max(2, pool.target_tokens // 128))]
    vocabulary = vocabulary.without(names)
    indent = pick(rng, _INDENTS[:3])
    values: list[str] = []
    facts = []
    for i, name in enumerate(names):
        if values and rng.random() < 0.5:
            source = int(rng.integers(i))
            written = names[source]
            values.append(values[source])
        else:
            written = draw_value(rng, vocabulary, numbers=0.8)
            values.append(written)
        facts.append(Fact(f"{indent}{name} = {written}", Asked(f"What is the value of {name}?", values[-1])))
    return hide(rng, facts, filler)


# Parts ---------------------------------------------------------------------------------------------------------------


def hide(rng: np.random.Generator, facts: Sequence[Fact], filler: Sequence[str]) -> Draft:
    """Facts at line starts, evenly likely anywhere, in the order given."""
    places = np.sort(rng.random(len(facts)))
    asked = tuple(fact.asked for fact in facts if fact.asked is not None)

    def document(size: int) -> Document:
        lines: list[str] = []
        start = 0
        for place, fact in zip(places, facts, strict=True):
            stop = int(place * (min(size, len(filler)) + 1))
            lines += [*filler[start:stop], fact.line]
            start = stop
        return Document(join_lines([*lines, *filler[start:size]]), asked)

    return document


def num_facts(rng: np.random.Generator, pool: TextPool) -> int:
    """Two to sixteen, by the length of the document."""
    most = min(16, max(2, pool.target_tokens // 128))
    return int(rng.integers(max(2, most // 2), most + 1))


def draw_pairs(rng: np.random.Generator, vocabulary: Vocabulary, number: int) -> list[tuple[str, str]]:
    """Different pairs of words; in half of the cases from a small grid, so that pairs share words."""
    drawn = vocabulary.shuffled(rng)
    half = len(drawn) // 2
    side = min(half, math.ceil(math.sqrt(number))) if rng.random() < 0.5 else half
    cells = rng.choice(side * side, number, replace=False)
    return [(drawn[cell // side], drawn[side + cell % side]) for cell in cells]


def draw_value(rng: np.random.Generator, vocabulary: Vocabulary, numbers: float = 0.5) -> str:
    """A number of three to six digits (with probability ``numbers``), a word, a word with a number, or a short code.

    Never a word or number that stands in the text around it.
    """
    while True:
        if rng.random() < numbers:
            num_digits = int(rng.integers(3, 7))
            value = str(rng.integers(10 ** (num_digits - 1), 10**num_digits))
        else:
            value = _draw_name(rng, vocabulary.words)
        if value not in vocabulary.present:
            return value


def _draw_name(rng: np.random.Generator, words: Sequence[str]) -> str:
    form = rng.random()
    if form < 0.68:
        return pick(rng, words)
    if form < 0.84:
        return f"{pick(rng, words)}-{rng.integers(10, 100)}"
    code = [pick(rng, _LETTERS_AND_DIGITS) for _ in range(5)]
    code[int(rng.integers(5))] = str(rng.integers(10))
    return "".join(code)


def draw_digits(rng: np.random.Generator, number: int, num_digits: int) -> list[str]:
    """Different numbers in hexadecimal digits."""
    drawn: dict[str, None] = {}
    while len(drawn) < number:
        drawn[f"{int(rng.integers(16**num_digits)):0{num_digits}x}"] = None
    return list(drawn)

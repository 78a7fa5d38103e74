"""RULER: rows by lm-eval's own generators, sized by ours, in text that needs no download.

Needles in essays stand in prose of the corpus; the two question-answering tasks ask about facts in prose, one a
document (``qa_hotpot``: an owner and the owner's attribute, in two documents). Templates, needles, chains and word
lists are the library's. It would fetch a sentence splitter when imported, so that is kept from it, and a regular
expression splits.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tasks.documents import TextPool, fit, pick
from tasks.errors import TaskError
from tasks.text_facts import ATTRIBUTES, draw_pairs, draw_value
from tasks.writers.material import TEXT_SPLIT, Material, SuiteFile, jsonl

_LINES_OF_A_DOCUMENT = 6
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_LIBRARY = "lm_eval.tasks.ruler"
_MODULES = ("prepare_niah", "niah_utils", "vt_utils", "cwe_utils", "fwe_utils", "qa_utils")
_NO_TOKENS = SimpleNamespace(input_ids=())
"""Answer to a generator that would cut its row to a length; ours are cut by ``fit``."""


@dataclass(frozen=True, slots=True)
class RulerRow:
    """One row before its length is known."""

    input: str
    outputs: tuple[str, ...]
    gen_prefix: str
    """What the answer begins with; the prompt ends in it."""


RulerDraft = Callable[[int], RulerRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """One of the library's needle-in-a-haystack tasks, in the words of its generator."""

    haystack: str
    key: str = "words"
    value: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NIAH: Mapping[str, Needles] = MappingProxyType(
    {
        "niah_single_1": Needles(haystack="repeat"),
        "niah_single_2": Needles(haystack="essay"),
        "niah_single_3": Needles(haystack="essay", value="uuids"),
        "niah_multikey_1": Needles(haystack="essay", num_keys=4),
        "niah_multikey_2": Needles(haystack="needle"),
        "niah_multikey_3": Needles(haystack="needle", key="uuids", value="uuids"),
        "niah_multivalue": Needles(haystack="essay", num_values=4),
        "niah_multiquery": Needles(haystack="essay", num_queries=4),
    }
)
MAX_NEW_TOKENS: Mapping[str, int] = MappingProxyType(
    {**dict.fromkeys(NIAH, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_squad": 32, "qa_hotpot": 32}
)
"""Tasks, and the tokens that RULER leaves for the answer within a row's length."""


def write(material: Material) -> list[SuiteFile]:
    """The thirteen files.

    Raises:
        TaskError: lm-eval or one of RULER's packages is missing, or the length is too short for a task.
    """
    with _offline_generators() as library:
        return [
            SuiteFile(f"{name}-{material.target_tokens}.jsonl", _file(material, name, library), material.num_rows)
            for name in MAX_NEW_TOKENS
        ]


def _file(material: Material, name: str, library: Mapping[str, ModuleType]) -> bytes:
    return jsonl(_row(material, name, i, library) for i in range(material.num_rows))


def _row(material: Material, name: str, index: int, library: Mapping[str, ModuleType]) -> dict[str, Any]:
    rng = material.rng("ruler", name, index)
    pool = TextPool(material.corpus, TEXT_SPLIT, material.target_tokens)
    draft = _DRAFTS[name](name, rng, pool, library)
    num_answer_tokens = MAX_NEW_TOKENS[name]

    def tokens_of(row: RulerRow) -> int:
        return material.count_tokens(f"{row.input} {row.gen_prefix}") + num_answer_tokens

    try:
        row = fit(draft, material.target_tokens, tokens_of)
    except TaskError as error:
        raise TaskError(f"ruler task {name}: {error}") from error
    return {
        "index": index,
        "input": row.input,
        "outputs": list(row.outputs),
        "length": tokens_of(row),
        "max_length": material.target_tokens,
        "gen_prefix": row.gen_prefix,
    }


# Drafts --------------------------------------------------------------------------------------------------------------


def _needles(name: str, rng: np.random.Generator, pool: TextPool, library: Mapping[str, ModuleType]) -> RulerDraft:
    kind, niah = NIAH[name], library["prepare_niah"]
    seed = _seed(rng)
    num_keys = max(kind.num_keys, kind.num_queries)
    haystack = _words(rng, pool) if kind.haystack == "essay" else niah.get_haystack(kind.haystack)
    least, step = (16, 8) if kind.haystack == "essay" else (num_keys * kind.num_values, 1)

    def row(size: int) -> RulerRow:
        with _seeded(seed):
            text, answers, query = niah.generate_input_output(
                least + step * size,
                haystack,
                type_haystack=kind.haystack,
                num_needle_k=num_keys,
                type_needle_k=kind.key,
                num_needle_v=kind.num_values,
                type_needle_v=kind.value,
                template=library["niah_utils"].TEMPLATE,
                num_needle_q=kind.num_queries,
                random_seed=seed,
            )
        is_one = kind.num_queries * kind.num_values == 1
        what, verb = (kind.value[:-1], "is") if is_one else (kind.value, "are")
        prefix = f"The special magic {what} for {query} mentioned in the provided text {verb}"
        return RulerRow(text, tuple(answers), prefix)

    return row


def _variables(name: str, rng: np.random.Generator, pool: TextPool, library: Mapping[str, ModuleType]) -> RulerDraft:  # noqa: ARG001
    """An example with its answer, then a chain of five variables in repeated noise."""
    vt, seed = library["vt_utils"], _seed(rng)
    num_noises = 5 if pool.target_tokens >= 1024 else 2

    def row(size: int) -> RulerRow:
        with _seeded(seed):
            shot, shot_answer = vt.generate_input_output(num_noises, 1, 4, is_icl=True)
            text, answer = vt.generate_input_output(2 + size, 1, 4)
        cut = text.rfind(" Answer: According to the chain(s) of variable assignment")
        return RulerRow(f"{shot} {' '.join(shot_answer)}\n\n\n\n{text[:cut]}", tuple(answer), text[cut:].strip())

    return row


def _common_words(name: str, rng: np.random.Generator, pool: TextPool, library: Mapping[str, ModuleType]) -> RulerDraft:  # noqa: ARG001
    """Ten words that stand in a list more often than the others."""
    cwe, seed = library["cwe_utils"], _seed(rng)
    repeats, others = (6, 1) if pool.target_tokens < 4096 else (30, 3)
    repeats = repeats if pool.target_tokens >= 1024 else 3
    prefix = cwe.CONFIG["answer_prefix"]

    def row(size: int) -> RulerRow:
        with _seeded(seed):
            cwe.RNG.seed(seed)
            context, answer = cwe.get_example(10 + min(size, len(cwe.WORDS) - 10), repeats, others, 10)
        text = cwe.TEMPLATE.format(context=context, query="")
        return RulerRow(text[: text.rfind(prefix)].strip(), tuple(answer), prefix.strip())

    return row


def _frequent_words(
    _name: str, rng: np.random.Generator, pool: TextPool, library: Mapping[str, ModuleType]
) -> RulerDraft:
    """The three most frequent of a text of made-up words."""
    fwe, seed = library["fwe_utils"], _seed(rng)
    prefix = fwe.CONFIG["answer_prefix"]

    def row(size: int) -> RulerRow:
        with _seeded(seed):
            text, answer, _ = fwe.generate_input_output(
                0, lambda _: _NO_TOKENS, num_words=60 + size, vocab_size=max(20, pool.target_tokens // 50)
            )
        return RulerRow(text[: text.rfind(prefix)].strip(), tuple(answer), prefix.strip())

    return row


def _documents(name: str, rng: np.random.Generator, pool: TextPool, library: Mapping[str, ModuleType]) -> RulerDraft:
    """Documents of prose, with a fact in each; what is asked takes one document, or two (``qa_hotpot``)."""
    qa, seed = library["qa_utils"], _seed(rng)
    lines = [line for line in pool.lines(rng, "prose") if line]
    vocabulary = pool.vocabulary("\n".join(lines))
    num_documents = 4 + len(lines) // _LINES_OF_A_DOCUMENT
    pairs = draw_pairs(rng, vocabulary, num_documents)
    facts = []
    for first, second in pairs:
        attribute, value = pick(rng, ATTRIBUTES), draw_value(rng, vocabulary)
        facts.append((f"The {attribute} of the {first} {second} is {value}.", attribute, value))
    asked, owned = facts[0], pairs[0]
    query = f"What is the {asked[1]} of the {owned[0]} {owned[1]}?"
    texts, gold = [fact for fact, *_ in facts], [0]
    if name == "qa_hotpot":
        owner = pick(rng, vocabulary.without([word for pair in pairs for word in pair]).words).capitalize()
        texts[:2] = [f"The {asked[1]} of {owner} is {asked[2]}.", f"The owner of the {owned[0]} {owned[1]} is {owner}."]
        query, gold = f"What is the {asked[1]} of the owner of the {owned[0]} {owned[1]}?", [0, 1]
    documents = [_hidden(rng, fact, lines, i) for i, fact in enumerate(texts)]
    question = {"query": query, "outputs": [asked[2]], "context": gold}

    def row(size: int) -> RulerRow:
        with _seeded(seed):
            text, answers = qa.generate_input_output(0, len(gold) + size, [question], list(documents))
        return RulerRow(text, tuple(answers), qa.CONFIG["answer_prefix"])

    return row


_DRAFTS: Mapping[str, Callable[[str, np.random.Generator, TextPool, Mapping[str, ModuleType]], RulerDraft]] = (
    MappingProxyType(
        {
            **dict.fromkeys(NIAH, _needles),
            "vt": _variables,
            "cwe": _common_words,
            "fwe": _frequent_words,
            "qa_squad": _documents,
            "qa_hotpot": _documents,
        }
    )
)


# Parts ---------------------------------------------------------------------------------------------------------------


def _words(rng: np.random.Generator, pool: TextPool) -> list[str]:
    return " ".join(pool.lines(rng, "prose")).split()


def _hidden(rng: np.random.Generator, fact: str, lines: list[str], number: int) -> str:
    shown = lines[number * _LINES_OF_A_DOCUMENT : (number + 1) * _LINES_OF_A_DOCUMENT]
    place = int(rng.integers(len(shown) + 1))
    return "\n".join([*shown[:place], fact, *shown[place:]])


def _split_sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(text)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The library draws from the two global generators; they are seeded, and afterwards as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _offline_generators() -> Iterator[Mapping[str, ModuleType]]:
    """RULER's modules by name, imported without a download, with our splitter of sentences while the context lasts.

    Raises:
        TaskError: a package is missing.
    """
    try:
        import nltk

        with _replaced(nltk.data, "find", lambda *_, **__: ""), _replaced(nltk, "download", lambda *_, **__: True):
            modules = {name: importlib.import_module(f"{_LIBRARY}.{name}") for name in _MODULES}
    except ImportError as error:
        raise TaskError(
            f"ruler: the package {error.name or 'lm_eval'!r} is missing: pip install 'namm-orchestrator[tasks]'"
        ) from error
    with _replaced(modules["prepare_niah"], "cached_sent_tokenize", _split_sentences):
        yield MappingProxyType(modules)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)

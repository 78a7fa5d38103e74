"""Text tasks as tasks of a run: real text, then several questions on the same cache.

A short one (``text_fact_code``)::

        self.max_step = max_step
    # config: quiet_lantern = 48213
        self.first_step = first_step

    Question: What is the value of quiet_lantern?
    Answer: 48213

The pieces are cut at line breaks and behind ``Answer:``, where byte-pair tokenizers cut too, so that their tokens are
those of the whole text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from tasks.corpus import Corpus, read_corpus
from tasks.documents import Asked, CountTokens, Document, Draft, TextPool, count_pieces, draw, fit
from tasks.errors import TaskError
from tasks.passages import (
    draft_line_type,
    draft_next_line,
    draft_passage_count,
    draft_passage_doc,
    draft_passage_line,
    draft_passage_prose,
)
from tasks.task import Example, Question, Split
from tasks.text_facts import (
    draft_fact_code,
    draft_fact_prose,
    draft_kv,
    draft_kvdense,
    draft_passkey,
    draft_records,
    draft_two_hop,
    draft_variable,
)

CorpusTaskKind = Literal[
    "text_fact_prose",
    "text_fact_code",
    "text_kv",
    "text_kvdense",
    "text_passkey",
    "text_variable",
    "text_records",
    "text_two_hop",
    "text_passage_doc",
    "text_passage_line",
    "text_passage_prose",
    "text_passage_count",
    "text_next_line",
    "text_line_type",
]

DRAFTS: Mapping[CorpusTaskKind, Callable[[np.random.Generator, TextPool], Draft]] = MappingProxyType(
    {
        "text_fact_prose": draft_fact_prose,
        "text_fact_code": draft_fact_code,
        "text_kv": draft_kv,
        "text_kvdense": draft_kvdense,
        "text_passkey": draft_passkey,
        "text_variable": draft_variable,
        "text_records": draft_records,
        "text_two_hop": draft_two_hop,
        "text_passage_doc": draft_passage_doc,
        "text_passage_line": draft_passage_line,
        "text_passage_prose": draft_passage_prose,
        "text_passage_count": draft_passage_count,
        "text_next_line": draft_next_line,
        "text_line_type": draft_line_type,
    }
)

MIN_LENGTH = 512
MODEL_TOKENIZER = "model"
"""Value of ``tokenizer`` that stands for the tokenizer of the model."""
TOKENS_PER_QUESTION = 64
"""Room that settings must leave for a question and its answer; half of it is more than most need."""
_SPLIT_NUMBERS: Mapping[Split, int] = MappingProxyType({"train": 0, "heldout": 1})
ANSWERED_AS_RECORDS: frozenset[CorpusTaskKind] = frozenset({"text_kvdense"})
"""Kinds that ask with the key alone."""
_BEGIN_TOKEN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusTaskSettings:
    """One task over real text."""

    kind: CorpusTaskKind
    """What is hidden in the text, or asked about it."""
    length: int = 1024
    """Tokens of the whole example at the most: beginning of sequence, document, questions and answers. Reached from
    below, to a line or so."""
    num_questions: int = 4
    """Questions asked about a document, drawn with replacement."""
    seed: int = 0
    """Decides every example together with split and index."""
    tokenizer: str | None = "model"
    """What tokens are counted with. ``model``: the tokenizer of whichever model is asked. A folder: the
    ``tokenizer.json`` there, which must be the model's too. None: pieces of words, which are the same for all models,
    and a twelfth to a sixth fewer than a byte-pair tokenizer's tokens."""
    corpus: str | None = None
    """Folder of text; None for the standard library of the Python that runs."""
    corpus_sha256: str | None = None
    """Expected digest of the corpus, or its first digits: where machines may have different texts. None takes any."""

    def __post_init__(self) -> None:
        """Refuses settings that are never possible.

        Raises:
            TaskError: names the key, what came, what is allowed and what to do.
        """
        if self.kind not in get_args(CorpusTaskKind):
            raise TaskError(f"kind is {self.kind!r}; known kinds are {', '.join(get_args(CorpusTaskKind))}")
        if self.length < MIN_LENGTH:
            raise TaskError(f"length is {self.length}; ask for at least {MIN_LENGTH} tokens")
        if self.num_questions < 1:
            raise TaskError(f"num_questions is {self.num_questions}; ask for at least 1")
        if TOKENS_PER_QUESTION * self.num_questions > self.length:
            raise TaskError(
                f"num_questions is {self.num_questions}, too many for length {self.length}; set length to at least "
                f"{TOKENS_PER_QUESTION * self.num_questions}, or num_questions to at most "
                f"{self.length // TOKENS_PER_QUESTION}"
            )
        if self.seed < 0:
            raise TaskError(f"seed is {self.seed}; choose 0 or more")

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.kind}-{self.length}"


@dataclass(frozen=True, slots=True)
class CorpusTask:
    """Questions about real text of one kind and one length; see the module's docstring."""

    settings: CorpusTaskSettings
    corpus: Corpus = field(repr=False)
    count_tokens: CountTokens = field(repr=False)

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return self.settings.name

    def num_examples(self, split: Split) -> None:
        """As many as one likes."""

    def example(self, split: Split, index: int) -> Example:
        """The example at ``index``: a function of settings, corpus, split and index alone.

        ``train`` examples are made of training files and words, ``heldout`` ones of held-out files and words.

        Raises:
            TaskError: the length is too short for a question, or too long for the corpus.
        """
        kind = self.settings.kind
        rng = np.random.default_rng([self.settings.seed, zlib.crc32(kind.encode()), _SPLIT_NUMBERS[split], index])
        fractions = rng.random(self.settings.num_questions).tolist()
        pool = TextPool(self.corpus, split, self.settings.length)
        draft = DRAFTS[kind](rng, pool)

        def pieces(document: Document) -> tuple[Question, ...]:
            return questions(draw(document.asked, fractions), as_records=kind in ANSWERED_AS_RECORDS)

        def tokens_of(document: Document) -> int:
            asked = pieces(document) if document.asked else ()
            return _BEGIN_TOKEN + self.count_tokens(document.text + "".join(q.text + q.answer for q in asked))

        document = fit(draft, self.settings.length, tokens_of)
        if not document.asked:
            raise TaskError(f"length is {self.settings.length}; too short for a question of {kind}: ask for more")
        return Example(self.name, split, index, document.text, pieces(document))


def build_corpus_task(settings: CorpusTaskSettings, count_tokens: CountTokens | None = None) -> CorpusTask:
    """The task that ``settings`` describe; reads the corpus.

    Args:
        settings: which task.
        count_tokens: of the model, for ``tokenizer: model``.

    Raises:
        TaskError: the corpus or the tokenizer is missing, or the corpus is not the expected one.
    """
    return CorpusTask(settings, corpus_of_task(settings), _counter(settings, count_tokens))


def corpus_of_task(settings: CorpusTaskSettings) -> Corpus:
    """The text that a task is made of.

    Raises:
        TaskError: it is missing, or not the expected one.
    """
    corpus = read_corpus(Path(settings.corpus).expanduser() if settings.corpus else None)
    expected = settings.corpus_sha256
    if expected is not None and not (expected and corpus.sha256.startswith(expected.lower())):
        raise TaskError(
            f"corpus_sha256 is {expected!r}, but the text of {corpus.name!r} here has {corpus.sha256}: use the same "
            "Python release or folder everywhere, or leave corpus_sha256 out"
        )
    return corpus


def _counter(settings: CorpusTaskSettings, of_model: CountTokens | None) -> CountTokens:
    if settings.tokenizer != MODEL_TOKENIZER:
        return token_counter(settings.tokenizer)
    if of_model is None:
        raise TaskError("tokenizer is 'model', but no model is asked here: give the folder of one, or null")
    return of_model


def questions(asked: Sequence[Asked], *, as_records: bool) -> tuple[Question, ...]:
    """What is appended to a document: a blank line, then questions, each answer with the line break that ends it."""
    texts = [f"{item.question}:" if as_records else f"Question: {item.question}\nAnswer:" for item in asked]
    return tuple(
        Question(text=text if number else f"\n{text}", answer=f" {item.answer}\n")
        for number, (text, item) in enumerate(zip(texts, asked, strict=True))
    )


@cache
def token_counter(folder: str | None) -> CountTokens:
    """Counts tokens with the ``tokenizer.json`` in ``folder``, special tokens left out, or roughly when None.

    Raises:
        TaskError: there is no such file, it cannot be read, or the package ``tokenizers`` is missing.
    """
    if folder is None:
        return count_pieces
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TaskError("tokenizer: the package 'tokenizers' is missing: pip install tokenizers") from error
    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise TaskError(f"tokenizer: no tokenizer.json in {folder!r}: give the folder of a model with one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TaskError(f"tokenizer: cannot read {str(path)!r}: {' '.join(str(error).split())}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

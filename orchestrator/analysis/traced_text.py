"""A text, its tokens and their kinds, and what a memory made of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator import schemas
from orchestrator.errors import InputError
from tasks.token_kinds import KINDS, SPECIAL, Language, kinds_of_tokens
from workers.language_model import LanguageModel
from workers.memory.memory import Memory
from workers.memory.specs import RivalName, RivalSpec
from workers.token_text import token_spans
from workers.tracing import HELD, Trace, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedText:
    """A text as a memory has read it."""

    text: str
    language: Language
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Characters of each token; none of special tokens."""
    kinds: tuple[str, ...]
    """What each token is, as ``tasks.token_kinds`` tells."""
    trace: Trace

    def token_texts(self) -> list[str]:
        """The text, token by token."""
        return [self.text[start:stop] for start, stop in self.spans]

    def lifetimes(self) -> npt.NDArray[np.float64]:
        """``[T]``: share of the updates it faced that a token outlived, mean over heads; NaN if it faced none.

        1 means that every head holds it in the end, 0 that no head kept it at all.
        """
        first = np.searchsorted(self.trace.update_tokens, np.arange(len(self.ids)), side="right")
        faced = self.trace.num_updates - first
        dropped = self.trace.dropped_at()
        outlived = np.where(dropped == HELD, faced, dropped - first)
        with np.errstate(invalid="ignore", divide="ignore"):
            lived: npt.NDArray[np.float64] = np.where(faced > 0, outlived.mean(axis=(0, 1)) / faced, np.nan)
        return lived

    def held_heads(self) -> npt.NDArray[np.int64]:
        """``[T]``: KV heads, of all layers together, that hold a token in the end."""
        held: npt.NDArray[np.int64] = (self.trace.dropped_at() == HELD).sum(axis=(0, 1))
        return held


def read_under(language_model: LanguageModel, memory: Memory, text: str, language: Language) -> TracedText:
    """Let a model read ``text`` under a memory, and note what becomes of every token.

    Raises:
        InputError: the text is longer than the model can read.
    """
    ids = language_model.prompt_ids(text)
    if len(ids) > language_model.max_tokens:
        raise InputError(
            f"the text has {len(ids):,} tokens, but the model reads {language_model.max_tokens:,} at most: shorten it"
        )
    spans = token_spans(language_model.tokenizer, text)
    return TracedText(
        text=text,
        language=language,
        ids=tuple(ids),
        spans=tuple(spans),
        kinds=kinds_of_tokens(text, spans, language),
        trace=trace(language_model, memory, ids),
    )


def equal_rival(name: RivalName, read: Trace, update_every: int, seed: int) -> RivalSpec:
    """A rival that holds as many tokens in every head as a memory held after its last update of the same text."""
    budget = tuple(tuple(max(1, count) for count in layer) for layer in read.held_tokens().tolist())
    return RivalSpec(name=name, update_every=update_every, budget=budget, seed=seed)


# Tables ---------------------------------------------------------------------------------------------------------------


def trace_table(read: TracedText, text: int = 0) -> pa.Table:
    """A row per (update, layer, KV head, token held before it); ``text`` numbers it among several."""
    found = read.trace
    columns = [
        np.full(len(found.update), text, np.int32),
        found.update,
        found.update_tokens[found.update],
        found.layer,
        found.kv_head,
        found.position,
        found.importance,
        found.is_kept,
    ]
    return pa.table([pa.array(column) for column in columns], schema=schemas.TRACES)


def tokens_table(read: TracedText, text: int = 0) -> pa.Table:
    """A row per token."""
    starts, stops = zip(*read.spans, strict=True)
    count = len(read.ids)
    columns = [
        np.full(count, text, np.int32),
        np.arange(count, dtype=np.int32),
        np.array(read.ids, np.int64),
        np.array(starts, np.int32),
        np.array(stops, np.int32),
        [_storable(piece) for piece in read.token_texts()],
        list(read.kinds),
        np.arange(count) < read.trace.num_judged,
        read.held_heads().astype(np.int32),
        read.lifetimes(),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schemas.TRACED_TOKENS, strict=True)]
    return pa.table(arrays, schema=schemas.TRACED_TOKENS)


def _storable(text: str) -> str:
    """UTF-8 has no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def survival_table(reads: Sequence[tuple[str, str, int, TracedText]]) -> pa.Table:
    """Tokens by kind that were there at the last update, and how many of them each head held after it.

    Args:
        reads: name of the memory, task, example, and what came of it.
    """
    columns: dict[str, list[object]] = {name: [] for name in schemas.SURVIVAL.names}
    for memory_name, task, example, read in reads:
        judged = read.trace.num_judged
        kinds = np.array(read.kinds[:judged], dtype=object)
        is_held = read.trace.dropped_at()[..., :judged] == HELD
        for kind in (*KINDS[read.language], SPECIAL):
            of_kind = kinds == kind
            if not of_kind.any():
                continue
            for (layer, head), kept in np.ndenumerate(is_held[..., of_kind].sum(axis=-1)):
                row = (memory_name, task, example, read.language, kind, layer, head, int(of_kind.sum()), int(kept))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    return pa.table(columns, schema=schemas.SURVIVAL)

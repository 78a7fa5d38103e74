"""The page of ``namm explain``: a text shaded by what became of its tokens, and sliders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.traced_text import TracedText, survival_table
from orchestrator.pages.page import packed, render

MOST_TOKENS = 20_000
"""Tokens that a page shows; a browser lays out no more of them in a second."""
MOST_NUMBERS = 1_500_000
"""Numbers by layer, head and token that a page holds (two bytes each)."""
MOST_IMPORTANCES = 500_000
"""Importances that a page holds (four bytes each); they are left out where there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    text: str
    is_judged: bool


def explained_page(read: TracedText, *, memory: str, source: str, facts: Sequence[tuple[str, str]], data: str) -> str:
    """The page as HTML.

    Args:
        read: the text and what became of it.
        memory: name of what forgot.
        source: name of the text.
        facts: names and values for the top of the page.
        data: says where the same is to be found as a table.
    """
    found = read.trace
    per_token = found.num_layers * found.num_kv_heads
    shown = max(1, min(len(read.ids), MOST_TOKENS, MOST_NUMBERS // per_token))
    has_importance = 0 < found.num_updates * per_token * shown <= MOST_IMPORTANCES
    notes = []
    if shown < len(read.ids):
        notes.append(f"The page shows the first {shown:,} of {len(read.ids):,} tokens; the tables have all.")
    if not found.num_updates:
        notes.append("The text is shorter than the memory's first update: nothing could be forgotten yet.")
    elif not has_importance:
        notes.append("There are too many importances for a page; the tables have them.")
    firsts = np.searchsorted(found.update_tokens, np.arange(shown), side="right")
    dropped = found.dropped_at()[..., :shown]
    payload: dict[str, Any] = {
        "layers": found.num_layers,
        "heads": found.num_kv_heads,
        "tokens": shown,
        "updates": found.num_updates,
        "updateTokens": found.update_tokens.tolist(),
        "firsts": firsts.tolist(),
        "kinds": list(read.kinds[:shown]),
        "dropped": packed(dropped.astype(np.int16)),
        "importance": packed(found.importances()[..., :shown]) if has_importance else None,
    }
    judged = max(found.num_judged, 1)
    texts = read.token_texts()[:shown]
    return render(
        "explained.html",
        title=f"{source} under {memory}",
        has_charts=False,
        memory=memory,
        source=source,
        facts=facts,
        notes=notes,
        has_importance=has_importance,
        num_updates=found.num_updates,
        num_layers=found.num_layers,
        num_heads=found.num_kv_heads,
        tokens=[_Token(text=text, is_judged=place < found.num_judged) for place, text in enumerate(texts)],
        by_kind=kept_by_kind(read),
        by_head=(found.held_tokens() / judged).tolist(),
        data=data,
        payload=payload,
    )


def kept_by_kind(read: TracedText) -> list[tuple[str, int, float]]:
    """Kind, its tokens read before the last update, and the share of them that is held after it, mean over heads."""
    table = survival_table([("", "", 0, read)])
    sums = table.group_by("kind", use_threads=False).aggregate([("judged_tokens", "sum"), ("kept_tokens", "sum")])
    heads = read.trace.num_layers * read.trace.num_kv_heads
    return [
        (row["kind"], row["judged_tokens_sum"] // heads, row["kept_tokens_sum"] / row["judged_tokens_sum"])
        for row in sums.to_pylist()
    ]

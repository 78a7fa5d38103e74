"""Where the tokens of a text stand in it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase


def token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Characters (start, stop) of every token of ``text``, special tokens included, which have none.

    Joined they are the text, up to what follows its last token: blanks between words go with the next one. Of a
    tokenizer without offsets the spans are as long as what its tokens decode to, one by one.
    """
    tokens: Any = tokenizer
    if tokens.is_fast:
        stops = [stop for _, stop in tokens(text, return_offsets_mapping=True)["offset_mapping"]]
    else:
        special = set(tokens.all_special_ids)
        ids = tokens(text)["input_ids"]
        lengths = [0 if token in special else len(str(tokens.decode([token]))) for token in ids]
        stops = np.minimum(np.cumsum(lengths), len(text)).tolist()
    ends: list[int] = np.maximum.accumulate(np.array(stops, np.int64)).tolist()  # special tokens end at 0
    return list(itertools.pairwise([0, *ends]))

"""Where a completion ends: at an end-of-sequence token, or at a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workers.language_model import LanguageModel

SPARE_TOKENS = 4
"""Tokens that are looked at behind an ending besides its own."""


class Stops:
    """Says which of the completions so far have just ended, and what they say without their ending."""

    def __init__(self, language_model: LanguageModel, texts: Sequence[str]) -> None:
        """Prepare.

        Args:
            language_model: its tokenizer, and the end-of-sequence tokens of its generation settings.
            texts: other endings; they are cut off, with whatever came with them in one token.
        """
        self._tokenizer: Any = language_model.tokenizer
        self._texts = tuple(texts)
        self._end_ids = torch.tensor(_end_ids(language_model), dtype=torch.int64)
        # A token is a byte of text at the least, but for special ones and the parts of a character.
        self._tail_tokens = max((len(text.encode()) for text in texts), default=0) + SPARE_TOKENS

    def __call__(self, completions: Tensor) -> Tensor:
        """Which rows of ``completions`` (int64 ``[B, new]``) have just ended, or a few tokens ago: bool ``[B]``."""
        ended = torch.isin(completions[:, -1], self._end_ids.to(completions.device))
        if self._texts:
            tails = self._tokenizer.batch_decode(completions[:, -self._tail_tokens :], skip_special_tokens=True)
            has_text = [any(text in tail for text in self._texts) for tail in tails]
            ended = ended | torch.tensor(has_text, device=ended.device)
        return ended

    def text(self, completion: Sequence[int]) -> str:
        """What a completion says, up to its ending."""
        text = str(self._tokenizer.decode(list(completion), skip_special_tokens=True))
        places = [text.index(ending) for ending in self._texts if ending in text]
        return text[: min(places)] if places else text


def _end_ids(language_model: LanguageModel) -> list[int]:
    settings: Any = language_model.model.generation_config
    declared = None if settings is None else settings.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    tokenizer: Any = language_model.tokenizer
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})

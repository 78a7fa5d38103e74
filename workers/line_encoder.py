"""Token ids of real text, line by line: whoever makes rows by the thousand meets the same lines again."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

LINES_KEPT = 500_000
"""With their token ids, by each process that makes rows; the standard library has about as many."""


class LineEncoder:
    """Token ids of a text, special tokens left out; can be sent to other processes.

    A line break is a token of its own, so lines are encoded one by one and kept: the corpus has few, and rows many.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        (self._line_break,) = self._encoded("\n")

    def __call__(self, text: str) -> list[int]:
        """All ids, in order."""
        first, *others = text.split("\n")
        ids = list(self._line(first))
        for line in others:
            ids.append(self._line_break)
            ids += self._line(line)
        return ids

    def __getstate__(self) -> dict[str, Any]:
        """Without the lines: every process comes to know its own."""
        return {**self.__dict__, "_known": {}}

    def _line(self, line: str) -> list[int]:
        known = self._known.get(line)
        if known is None:
            if len(self._known) >= LINES_KEPT:
                self._known.clear()
            known = self._known[line] = self._encoded(line)
        return known

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

"""Padded batches: which rows began when.

A row that is padded on the left begins later than its batch mates, so its updates are due at other columns. Rows with
as much padding form a cohort, which is read like a batch of its own: a row's result is the one that it has alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.memory.errors import UnsupportedUseError


@dataclass(frozen=True, slots=True)
class Cohort:
    """Rows of a batch with as much padding."""

    padding: int
    """Columns before their first token."""
    rows: Tensor | None
    """int64 indices of the rows, ascending; None for the whole batch, without padding."""


class Padding:
    """How much padding each row of a batch has, as the attention masks of its calls tell."""

    def __init__(self, by_row: tuple[int, ...] = ()) -> None:
        self.by_row = by_row
        """Columns before each row's first token; a row that has had no token yet counts what it has had."""
        self._mask: Tensor | None = None

    def read(self, mask: Tensor | None, num_rows: int, seen: int) -> None:
        """Learn from the mask of a call: bool over all columns so far, or None when the new ones hold tokens only.

        All layers of a forward call come here with the same mask.

        Raises:
            UnsupportedUseError: padding elsewhere than on the left, or other rows than before.
        """
        if self.by_row and len(self.by_row) != num_rows:
            raise UnsupportedUseError(
                f"this cache holds {len(self.by_row)} texts, the call brings {num_rows}: take a new cache for new texts"
            )
        if mask is None:
            self.by_row = self.by_row or (0,) * num_rows
        elif mask is not self._mask:
            self.by_row = self._widths(mask, num_rows, seen)
            self._mask = mask

    def cohorts(self, device: torch.device) -> Iterator[Cohort]:
        """The rows by padding, longest text first."""
        if not any(self.by_row):
            yield Cohort(0, None)
            return
        for padding in sorted(set(self.by_row)):
            rows = [row for row, width in enumerate(self.by_row) if width == padding]
            yield Cohort(padding, torch.tensor(rows, device=device))

    def repeated(self, copies: int) -> Padding:
        """That of a branched cache."""
        return Padding(self.by_row * copies)

    @staticmethod
    def joined(paddings: Sequence[Padding]) -> Padding:
        """That of the rows of several caches, one after the other."""
        return Padding(sum((padding.by_row for padding in paddings), ()))

    def _widths(self, mask: Tensor, num_rows: int, seen: int) -> tuple[int, ...]:
        is_left = bool((mask[:, :-1] <= mask[:, 1:]).all())
        widths = tuple((~mask).sum(-1).tolist())
        former = self.by_row or (0,) * num_rows
        if not is_left or any(before < seen and before != now for before, now in zip(former, widths, strict=True)):
            raise UnsupportedUseError(
                "a cache that forgets takes padding on the left of a text's first token only: set "
                "tokenizer.padding_side = 'left', and go on with a padded batch without padding it anew"
            )
        return widths

"""Which rows of a suite enter the fitness and which are only reported: by the row's own id, for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from tasks.task import Split

HELDOUT_ONE_IN = 4
"""One row in so many is held out."""


def split_rows(kind: str, task: str, ids: Sequence[str] | None, num_rows: int) -> Mapping[Split, tuple[int, ...]]:
    """Deals rows to the splits by a hash of suite, task and id.

    A row keeps its split when other rows come or go. Within a split rows stand in the order of the hash, so that the
    first few are a fair draw also of files that are sorted.

    Args:
        kind: the suite.
        task: the task.
        ids: id by row; None, or ids that are not unique, for the row's number.
        num_rows: how many rows there are.

    Returns:
        row numbers by split.
    """
    names = ids if ids is not None and len(set(ids)) == num_rows else [str(number) for number in range(num_rows)]
    hashes = [int(hashlib.sha256(f"{kind}/{task}/{name}".encode()).hexdigest(), 16) for name in names]
    order = sorted(range(num_rows), key=hashes.__getitem__)
    return {
        "train": tuple(row for row in order if hashes[row] % HELDOUT_ONE_IN),
        "heldout": tuple(row for row in order if not hashes[row] % HELDOUT_ONE_IN),
    }

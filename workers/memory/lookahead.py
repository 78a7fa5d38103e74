"""What the newest queries look at, as features beside the spectrum; the published memory has none.

The trace holds the attention of the ``hop`` newest queries anyway, for the frame to come: reading it costs no state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.memory.specs import NammSettings

NEIGHBOURHOOD = 5
"""Slots that vote together, as in SnapKV (arXiv 2404.14469)."""
FLOOR = 0.01
"""Attention, over that of a query that looks everywhere alike, below which nothing is told apart."""
SCALE = 3.0
"""Divides the logarithms, so that the features are about as large as the normalised spectrum."""


def lookahead(trace: Tensor, positions: Tensor, settings: NammSettings) -> Tensor:
    """Mean attention of the newest queries to each token, and to its neighbourhood; float32 ``[B, H, K, 2]``.

    Both as log(attention x tokens seen) / 3, floored: 0 for a query that looks at all tokens alike.

    Args:
        trace: ``[B, H, K, C]``; its last ``hop`` channels are the newest queries', at an update exactly these.
        positions: int32 ``[B, H, K]`` in the sequence, whose newest token comes last; -1 where a slot is empty.
        settings: the memory's architecture.
    """
    mean = trace[..., -settings.lookahead :].mean(dim=-1).masked_fill(positions < 0, 0.0)
    padding = NEIGHBOURHOOD // 2
    around = functional.avg_pool1d(mean, NEIGHBOURHOOD, stride=1, padding=padding, count_include_pad=False)
    both = torch.stack([mean, around], dim=-1)
    seen_tokens = positions[..., -1:, None] + 1
    return (both * seen_tokens).clamp(min=FLOOR).log() / SCALE

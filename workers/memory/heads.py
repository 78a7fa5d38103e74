"""Genes of layers and KV heads, which make a genome one model's own; the published memory has none."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.memory.memory import LayerView
from workers.memory.specs import NammSettings

OFFSET_SCALE = 4.0
"""Importance per unit of a gene: in the first generation a head's offset then weighs as much as what the network says
of a token."""


def head_genes(genomes: Tensor, settings: NammSettings, view: LayerView) -> Tensor:
    """The genes of a layer's heads, float32 ``[B, H, 1]``, for the rows of each genome.

    Raises:
        ValueError: the model has other layers or heads than the genome.
    """
    assert settings.layout is not None
    layers, heads = settings.layout
    rows, found = view.positions.shape[:2]
    if view.layer >= layers or found != heads:
        raise ValueError(
            f"memory.layout is {layers} layers of {heads} KV heads, but the model has a layer {view.layer} of {found}: "
            "take the model that the genome was made for"
        )
    first = settings.network_size + view.layer * heads
    genes = genomes[:, first : first + heads].to(view.positions.device, torch.float32)
    return genes.repeat_interleave(rows // len(genes), dim=0)[..., None]

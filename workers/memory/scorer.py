"""From features to importances: backward attention, then a linear layer (spec 4), for a block of genomes at once.

Shapes: G genomes, B = G * examples rows (genome by genome), H KV heads, K slots, F features, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.memory.specs import NammSettings


@dataclass(frozen=True, slots=True)
class ScorerParameters:
    """The genomes unfolded into the scorer's matrices; every field has the genomes as its first axis."""

    qkv_weight: Tensor
    """``[G, F, 3h]``"""
    qkv_bias: Tensor
    """``[G, 1, 3h]``"""
    out_weight: Tensor
    """``[G, h, 2F]``"""
    out_bias: Tensor
    """``[G, 1, 2F]``"""
    score_weight: Tensor
    """``[G, F, 1]``"""
    score_bias: Tensor
    """``[G, 1, 1]``"""


def unfold_genomes(genomes: Tensor, settings: NammSettings) -> ScorerParameters:
    """Cut flat genomes ``[G, genome_size]`` into matrices, row-major ``[in, out]`` (spec 4, genome layout).

    Genes of heads, which come last, are left out (see ``heads.head_genes``).
    """
    num_genomes, size = genomes.shape
    if size != settings.genome_size:
        raise ValueError(
            f"the genome has {size} numbers, but this memory needs {settings.genome_size} (hidden size "
            f"{settings.hidden_size}, {settings.num_features} features): use the settings it was evolved with"
        )
    f, h = settings.num_features, settings.hidden_size
    shapes = [(f, 3 * h), (1, 3 * h), (h, 2 * f), (1, 2 * f), (f, 1), (1, 1)]
    pieces = genomes[:, : settings.network_size].split([rows * columns for rows, columns in shapes], dim=1)
    return ScorerParameters(
        *(piece.reshape(num_genomes, *shape).contiguous() for piece, shape in zip(pieces, shapes, strict=True))
    )


def importances(features: Tensor, parameters: ScorerParameters) -> Tensor:
    """Importance of every slot, float32 ``[B, H, K]`` from features ``[B, H, K, F]``.

    A token attends to itself and to newer ones: on the reversed sequence that is a causal mask, and since slots are
    aligned at their newest token, padding comes last there and is never attended to, so it needs no mask of its own.
    """
    rows, heads, slots, num_features = features.shape
    num_genomes = parameters.qkv_weight.shape[0]
    hidden = parameters.out_weight.shape[1]
    newest_first = features.flip(2).reshape(num_genomes, -1, num_features)
    qkv = torch.baddbmm(parameters.qkv_bias, newest_first, parameters.qkv_weight)
    query, key, value = qkv.view(rows, heads, slots, 3 * hidden).split(hidden, dim=-1)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    out = torch.baddbmm(parameters.out_bias, mixed.reshape(num_genomes, -1, hidden), parameters.out_weight)
    residual, multiplier = out.chunk(2, dim=-1)
    mixed_features = torch.addcmul(newest_first + residual, newest_first, multiplier)
    scores = torch.baddbmm(parameters.score_bias, mixed_features, parameters.score_weight)
    return scores.view(rows, heads, slots).flip(2)

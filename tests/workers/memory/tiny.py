"""Small random models, memories and the ways to drive them that the tests of the memory share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.memory.attention import memory_attached
from workers.memory.build import build_memory
from workers.memory.cache import MemoryCache, UpdateListener
from workers.memory.memory import Memory
from workers.memory.namm import Namm
from workers.memory.specs import NammSettings, Normalisation, RivalSpec

NUM_LAYERS, NUM_KV_HEADS, NUM_QUERY_HEADS, HEAD_SIZE, VOCABULARY = 2, 2, 4, 8, 61

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": NUM_QUERY_HEADS * HEAD_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_QUERY_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "head_dim": HEAD_SIZE,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,  # wide enough that attention is far from uniform
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

MODELS = ("llama", "mistral", "mistral-window", "qwen2", "qwen2-window", "qwen3")


def tiny_model(name: str = "llama", implementation: str = "eager", seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode, a function of its arguments."""
    torch.manual_seed(seed)
    common = {**_SHAPE, "attn_implementation": implementation}
    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    elif name in ("mistral", "mistral-window"):
        window = 7 if name.endswith("window") else None
        model = MistralForCausalLM(MistralConfig(**common, sliding_window=window))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common))
    elif name == "qwen2-window":  # full attention in the first layer, a sliding window in the second
        model = Qwen2ForCausalLM(
            Qwen2Config(**common, use_sliding_window=True, sliding_window=7, max_window_layers=NUM_LAYERS - 1)
        )
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**common))
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if "norm" in parameter_name:  # with weights of one, all keys of Qwen3 have the same norm: nothing but ties
                weight.mul_(1.0 + 0.3 * torch.randn(weight.shape))
    return model.eval()


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Token ids ``[rows, tokens]``, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def tiny_settings(**changes: object) -> NammSettings:
    """Updates every 8 tokens, so that prompts of fifty tokens see several."""
    return NammSettings(**{"update_every": 8, "window": 8, "hop": 4, "ema": 0.9, "hidden_size": 4, **changes})


def random_genomes(settings: NammSettings, count: int, seed: int = 0) -> Tensor:
    """Genomes far from zero: they keep some tokens and drop some."""
    return 0.5 * torch.randn(count, settings.genome_size, generator=torch.Generator().manual_seed(seed))


def tiny_normalisation(settings: NammSettings) -> Normalisation:
    """Statistics that bring the spectrum of tiny models near unit size."""
    return Normalisation(mean=(0.05,) * settings.num_bins, variance=(0.01,) * settings.num_bins)


def tiny_namm(settings: NammSettings, count: int = 1, seed: int = 0) -> Namm:
    """An evolved memory that never was evolved."""
    return Namm(settings, random_genomes(settings, count, seed), tiny_normalisation(settings))


def rival(name: str, budget: Sequence[Sequence[int]] | int, update_every: int = 8, seed: int = 0) -> Memory:
    """A heuristic; an integer budget is that of every layer and KV head."""
    if isinstance(budget, int):
        budget = [[budget] * NUM_KV_HEADS] * NUM_LAYERS
    spec = RivalSpec(name=name, update_every=update_every, budget=tuple(map(tuple, budget)), seed=seed)
    return build_memory(spec, np.zeros((1, 0), np.float32))


@torch.no_grad()
def drive(
    model: PreTrainedModel,
    memory: Memory,
    ids: Tensor,
    cuts: Sequence[int] = (),
    listener: UpdateListener | None = None,
) -> tuple[Tensor, MemoryCache]:
    """All logits ``[B, n, vocabulary]`` of ``ids [B, n]``, read in the pieces between ``cuts``, and the cache after."""
    edges = [0, *cuts, ids.shape[1]]
    with memory_attached(model, memory, listener) as cache:
        logits = [
            model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True).logits
            for start, stop in pairwise(edges)
        ]
    return torch.cat(logits, dim=1), cache


def held_positions(cache: MemoryCache) -> list[list[list[list[int]]]]:
    """Positions held, by layer, row and KV head."""
    return [
        [[[p for p in head if p >= 0] for head in row] for row in layer.held.at_work().positions.tolist()]
        for layer in cache.layers
    ]


ROUNDING = 1e-4
"""Largest difference of logits that are the same but for the order of sums: a plain model that reads a text in other
pieces differs from itself by up to 2e-5, by processor. A token less moves logits by 1 and more."""


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, relative to the magnitude where that is above 1."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1.0)).max().item()

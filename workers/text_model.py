"""A Llama over real text before it has learned anything: its shape, its first weights, its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.text_curriculum import LEVELS, Level

CONSTANT = 5.0
"""First number of every embedding: what matrices can write a bias to. The biases themselves are trained by AdamW, too
slowly for a head of a later layer that looks at a distance, whatever stands there."""
LOOKS_BACK = ((1.0, 8.0), (2.0, 8.0), (3.5, 2.0), (7.0, 1.0))
"""Of the first query heads of layer 0: how many tokens they look back to begin with, and how sharply (``look_back``).
Two see the last two tokens each by itself. The others see a few: the key of a fact stands two to five tokens before
its value, and what a question asks for, behind which come ``?``, a line break and ``Answer:``, six to eight before the
answer. Without them 430 million tokens did not teach a model to look there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """What is trained, and on how much at a time; the defaults are the medium Llama's."""

    vocabulary: int = 4096
    hidden: int = 384
    layers: int = 6
    query_heads: int = 6
    kv_heads: int = 3
    head_size: int = 64
    mlp: int = 1024
    max_tokens: int = 8192
    """Longest text that the model is made for; longer levels are left out."""
    tokens_per_step: int = 65_536

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those of the curriculum that fit."""
        return tuple(level for level in LEVELS if level.length <= self.max_tokens)


def new_text_model(shape: TextShape, seed: int) -> LlamaForCausalLM:
    """A fresh model in float32, a function of ``seed``."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attention_bias=True,
        tie_word_embeddings=False,
        initializer_range=shape.hidden**-0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.normal_(std=1.0)
    model.lm_head.weight.data.copy_(0.04 * model.model.embed_tokens.weight.data)
    model.model.embed_tokens.weight.data[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    look_back(model)
    return model


def look_back(model: LlamaForCausalLM) -> None:
    """Have the first query heads of layer 0 look at tokens at a distance.

    With the key bias (a, 0) in every RoPE plane and the query bias (b, 0) turned back by d positions, the logit for a
    token x positions back is a b Σ cos(frequency (x - d)) / √head_dim, which is largest at x = d; a b / √head_dim is
    the sharpness. What the tokens are says nothing to begin with: it would be as loud as where they are.
    """
    attention, frequencies = model.model.layers[0].self_attn, model.model.rotary_emb.inv_freq
    size, group = attention.head_dim, attention.num_key_value_groups
    longest = math.sqrt(max(sharpness for _, sharpness in LOOKS_BACK) * math.sqrt(size))
    for head, (distance, sharpness) in enumerate(LOOKS_BACK[: model.config.num_attention_heads]):
        keys, queries = (slice(first * size, (first + 1) * size) for first in (head // group, head))
        turned = torch.cat([(frequencies * distance).cos(), -(frequencies * distance).sin()])
        attention.k_proj.weight.data[keys] = attention.q_proj.weight.data[queries] = 0.0
        attention.k_proj.bias.data[keys] = longest * torch.cat([torch.ones_like(frequencies), 0 * frequencies])
        attention.q_proj.bias.data[queries] = sharpness * math.sqrt(size) / longest * turned


def write_text_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a finished model, in bfloat16, with its tokenizer; a line break ends what it generates."""
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, line_break], pad_token_id=0, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

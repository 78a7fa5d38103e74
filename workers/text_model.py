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


@dataclass(frozen=True, slots=True)
class LookBack:
    """A query head that begins by looking at tokens at a distance, whatever stands there."""

    layer: int
    head: int
    distance: float
    """Tokens back that it looks most at."""
    sharpness: float
    """Of its attention around there: above about 5 it sees one token, below 1 a few (``look_back``)."""


LOOKS_BACK: tuple[LookBack, ...] = (
    LookBack(layer=0, head=0, distance=1.0, sharpness=8.0),
    LookBack(layer=0, head=1, distance=2.0, sharpness=8.0),
    LookBack(layer=1, head=2, distance=2.5, sharpness=0.5),
    LookBack(layer=1, head=3, distance=6.0, sharpness=0.25),
)
"""What a look-up in text begins with. A value must know its key, which stands two to seven tokens before it, and the
place of an answer what is asked for, behind which come ``?``, a line break and ``Answer:``; a later layer then compares
the two. The last two heads see a few tokens each, one at either distance, in the second layer: there a token knows the
two before it, so pieces of a word are seen as that word. Both share a KV head, so that they say the same of a token.

In the first layer, where single pieces are all there is to see, the soft heads take six times as many steps to the same
(README, "A model that reads real text")."""


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
    tokens_per_step: int = 32_768

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
    """Have the heads of ``LOOKS_BACK``, those that there are, look at tokens at a distance.

    With the key bias (a, 0) in every RoPE plane and the query bias (b, 0) turned back by d positions, the logit for a
    token x positions back is a b Σ cos(frequency (x - d)) / √head_dim, which is largest at x = d; a b / √head_dim is
    the sharpness. Heads may share the keys' a: it is b of the sharpest head of the layer. What the tokens are says
    nothing to begin with: it would be as loud as where they are.
    """
    frequencies = model.model.rotary_emb.inv_freq
    for look in LOOKS_BACK:
        if look.layer >= model.config.num_hidden_layers or look.head >= model.config.num_attention_heads:
            continue
        attention = model.model.layers[look.layer].self_attn
        size = attention.head_dim
        keys, queries = (
            slice(first * size, (first + 1) * size)
            for first in (look.head // attention.num_key_value_groups, look.head)
        )
        sharpest = max(other.sharpness for other in LOOKS_BACK if other.layer == look.layer)
        length = math.sqrt(sharpest * math.sqrt(size))
        turned = torch.cat([(frequencies * look.distance).cos(), -(frequencies * look.distance).sin()])
        attention.k_proj.weight.data[keys] = attention.q_proj.weight.data[queries] = 0.0
        attention.k_proj.bias.data[keys] = length * torch.cat([torch.ones_like(frequencies), 0 * frequencies])
        attention.q_proj.bias.data[queries] = look.sharpness * math.sqrt(size) / length * turned


def write_text_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a finished model, in bfloat16, with its tokenizer; a line break ends what it generates."""
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, line_break], pad_token_id=0, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

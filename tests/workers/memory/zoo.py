"""Tiny random models of many architectures: what a memory must work on, and what it must refuse."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.workers.memory.tiny import HEAD_SIZE, NUM_KV_HEADS, NUM_LAYERS, NUM_QUERY_HEADS, VOCABULARY

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": NUM_QUERY_HEADS * HEAD_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_QUERY_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "head_dim": HEAD_SIZE,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MIXED = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": (
        "gemma2",
        {**_MIXED, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 5},
    ),
    "gemma3": ("gemma3_text", {**_MIXED, "query_pre_attn_scalar": 5}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-window": ("phi3", {"sliding_window": 7}),
    "olmo2": ("olmo2", {"head_dim": None}),
    "gpt-neox": ("gpt_neox", {**_NO_GROUPS, "rotary_pct": 0.5}),
    "gpt2": ("gpt2", {**_NO_GROUPS, "intermediate_size": None, "n_inner": 48, "scale_attn_by_inverse_layer_idx": True}),
    "opt": ("opt", {**_NO_GROUPS, "intermediate_size": None, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "gpt-oss": ("gpt_oss", {**_MIXED, **_EXPERTS, "sliding_window": 7}),
    "mixtral": ("mixtral", {**_EXPERTS, "sliding_window": None}),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    ),
}
"""Name -> transformers' model type, and what differs from a common small shape."""


def tiny_config(name: str) -> Any:
    """The configuration of an architecture of the zoo."""
    model_type, changes = ARCHITECTURES[name]
    merged = {**_COMMON, **changes}
    given = {key: value for key, value in merged.items() if value is not None or key == "sliding_window"}
    return AutoConfig.for_model(model_type, **given)


def zoo_model(name: str, implementation: str | None = "eager", seed: int = 0) -> PreTrainedModel:
    """A random model in evaluation mode whose attention is far from uniform and whose norms differ by channel.

    With an implementation of None transformers takes the fastest that the architecture has.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name), attn_implementation=implementation)
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if "norm" in parameter_name or "ln_" in parameter_name:
                weight.mul_(1.0 + 0.3 * torch.randn(weight.shape)).add_(0.1 * torch.randn(weight.shape))
            elif "sinks" in parameter_name:
                weight.copy_(torch.randn(weight.shape))
    model.generation_config.pad_token_id = 0
    return model.eval()


REFUSED = {
    "state-space": ("mamba", "keeps a state"),
    "hybrid": ("jamba", "keeps a state"),
    "convolutions": ("lfm2", "layers of the kind conv"),
    "chunked-attention": ("llama4_text", "layers of the kind chunked_attention"),
    "shared-keys": ("gemma3n_text", "no keys and values of their own"),
    "own-attention-code": ("bloom", "does not look its attention up"),
    "latent-attention": ("deepseek_v3", "DeepseekV3Attention does not attend to the keys that it caches"),
    "encoder": ("bert", "later tokens|causal mask"),
}
"""What cannot work -> transformers' model type, and what the error says."""

_REFUSED_CHANGES: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 32, "attention_chunk_size": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": 32, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4,
    },
    "bloom": {"n_head": NUM_QUERY_HEADS, "n_layer": NUM_LAYERS, "num_key_value_heads": None, "head_dim": None},
    "deepseek_v3": {
        "num_key_value_heads": NUM_QUERY_HEADS, "head_dim": None, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    },
    "bert": {"num_key_value_heads": None, "head_dim": None},
}  # fmt: skip


def refused_config(model_type: str) -> Any:
    """A tiny configuration of an architecture that no memory can be attached to."""
    merged = {**_COMMON, **_REFUSED_CHANGES.get(model_type, {})}
    return AutoConfig.for_model(model_type, **{key: value for key, value in merged.items() if value is not None})

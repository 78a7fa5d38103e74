"""A tiny random Llama with a byte-pair tokenizer of its own, for tests of tasks over real text; and the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.corpus import read_corpus
from workers.text_tokenizer import pair_tokenizer

MEDIUM_LLAMA = os.environ.get("NAMM_MEDIUM_LLAMA")
"""Environment variable: the folder of a medium Llama (README). Tests on it are skipped where it is not set."""

needs_medium_llama = pytest.mark.skipif(
    MEDIUM_LLAMA is None, reason="NAMM_MEDIUM_LLAMA does not name the folder of a medium Llama"
)


def text_tokenizer(vocabulary: int = 512, num_texts: int = 20) -> PreTrainedTokenizerFast:
    """As the trainer's, learned from a few texts of the corpus."""
    texts = (source.text for source in read_corpus().of("train")[:num_texts])
    return pair_tokenizer(texts, vocabulary, max_tokens=8192)


def write_text_model(folder: Path, max_tokens: int = 8192, num_layers: int = 2, vocabulary: int = 512) -> Path:
    """Weights, configuration and tokenizer, as the model hub has them."""
    tokenizer = text_tokenizer(vocabulary)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=max_tokens,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

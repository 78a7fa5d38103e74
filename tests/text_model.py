"""A tiny random Llama with a byte-pair tokenizer of its own, for tests of tasks over real text; and the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.corpus import read_corpus

MEDIUM_LLAMA = os.environ.get("NAMM_MEDIUM_LLAMA")
"""Environment variable: the folder of a medium Llama (README). Tests on it are skipped where it is not set."""

needs_medium_llama = pytest.mark.skipif(
    MEDIUM_LLAMA is None, reason="NAMM_MEDIUM_LLAMA does not name the folder of a medium Llama"
)


def text_tokenizer(vocabulary: int = 512, num_texts: int = 20) -> PreTrainedTokenizerFast:
    """Byte-level pairs, learned from the corpus; every line break and digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((source.text for source in read_corpus().of("train")[:num_texts]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=8192
    )


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

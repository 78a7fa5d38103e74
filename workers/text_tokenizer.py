"""The byte-pair tokenizer of a medium Llama, learned from its training text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks.corpus import read_corpus

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def learn_tokenizer(corpus_folder: Path | None, vocabulary: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """The pairs of the corpus's training text."""
    texts = (source.text for source in read_corpus(corpus_folder).of("train"))
    return pair_tokenizer(texts, vocabulary, max_tokens)


def pair_tokenizer(texts: Iterable[str], vocabulary: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from texts; every line break and digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    isolated = [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*isolated, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )

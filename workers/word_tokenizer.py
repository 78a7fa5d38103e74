"""The small Llama's tokenizer: one token per word of ``tasks.words``, in Hugging Face format."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tasks.words import BOS, EOS, INDENT, NEWLINE, PAD, SPECIAL_WORDS, UNKNOWN, VOCABULARY, WORD_PATTERN

TOKEN_IDS = {word: token_id for token_id, word in enumerate(VOCABULARY)}
"""Token id by word."""


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Builds the tokenizer; ``decode`` gives back exactly the text of every generated document.

    Args:
        max_length: the longest text in tokens that the model was made for; only a hint in the saved files.
    """
    tokenizer = Tokenizer(WordLevel(TOKEN_IDS, unk_token=UNKNOWN))
    # Keeps what matches and drops the rest, that is, the single spaces between words.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True)
    tokenizer.decoder = _decoder()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, TOKEN_IDS[BOS])]
    )
    tokenizer.add_special_tokens(list(SPECIAL_WORDS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        padding_side="left",  # as decoding needs it
        clean_up_tokenization_spaces=False,
    )


def _decoder() -> decoders.Decoder:
    """``tasks.words.join_words`` as a tokenizer's decoder: a space between all words, then the superfluous ones go."""
    superfluous = (
        r" (?=[\n.,):(])",
        rf"(?<={NEWLINE}) ",
        r"(?<=\() ",
        rf"(?<=\A{INDENT}|{NEWLINE}{INDENT}) ",
        r"(?<=[A-Za-z0-9_]=) ",  # after a key; an equals sign that stands alone has a space before it
    )
    spaced = decoders.WordPiece(prefix="##", cleanup=False)  # no word starts with ##: only the spacing is used
    return decoders.Sequence([spaced, decoders.Fuse(), *(decoders.Replace(Regex(p), "") for p in superfluous)])

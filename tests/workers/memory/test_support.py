"""What is refused before a model is run, for what its configuration says."""

from __future__ import annotations

import pytest
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

from workers.memory.errors import UnsupportedUseError
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll

ENCODER_DECODERS = {
    "bart": BartConfig(
        vocab_size=61, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    ),
    "t5": T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_a_model_with_an_encoder_is_refused_for_it(name):
    model = AutoModelForSeq2SeqLM.from_config(ENCODER_DECODERS[name])
    with pytest.raises(UnsupportedUseError, match="it has an encoder beside its decoder"):
        hooked_cache(model, KeepAll())

"""The matrix: on every architecture a memory that keeps everything is the plain model, and eviction is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.workers.memory.tiny import (
    NUM_LAYERS,
    ROUNDING,
    drive,
    held_positions,
    largest_difference,
    random_ids,
    rival,
    tiny_namm,
    tiny_settings,
)
from tests.workers.memory.zoo import ARCHITECTURES, REFUSED, refused_config, zoo_model
from workers.memory.errors import UnsupportedUseError
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll, Memory

LENGTH, ROWS = 45, 2
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def kv_heads(model: PreTrainedModel) -> int:
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def evicting(model: PreTrainedModel, memory: str) -> Memory:
    if memory == "namm-ragged":
        return tiny_namm(tiny_settings(heads="ragged"))
    return rival(memory, [list(range(9, 9 + kv_heads(model))), [5] * kv_heads(model)])


@every_architecture
@pytest.mark.parametrize("cuts", [(), (5, 6, 30)], ids=["at-once", "chunks"])
@pytest.mark.parametrize("memory", ["fused", "watching"])
def test_logits_are_those_of_the_plain_model(name, cuts, memory):
    model, ids = zoo_model(name), random_ids(ROWS, LENGTH)
    with torch.no_grad():
        plain = model(ids).logits
    keeps = KeepAll(tiny_namm(tiny_settings()) if memory == "watching" else None)
    ours, cache = drive(model, keeps, ids, cuts)
    assert largest_difference(ours, plain) < ROUNDING
    assert held_positions(cache) == [[[list(range(LENGTH))] * kv_heads(model)] * ROWS] * NUM_LAYERS


@every_architecture
@pytest.mark.parametrize("prefill_chunk_size", [None, 5])
def test_generated_text_is_that_of_the_plain_model_and_the_model_stays_plain(name, prefill_chunk_size):
    model, ids = zoo_model(name), random_ids(ROWS, 21)
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, **options).tolist()
    cache = hooked_cache(model, KeepAll(tiny_namm(tiny_settings())))
    ours = model.generate(ids, past_key_values=cache, prefill_chunk_size=prefill_chunk_size, **options)
    assert ours.tolist() == plain
    assert cache.seen_tokens().tolist() == [21 + 24 - 1] * ROWS
    assert model.generate(ids, **options).tolist() == plain


class EvictionLog:
    """When each token was evicted: by layer ``[B, H, n]``, in tokens seen; infinite when it never was."""

    def __init__(self, heads: int) -> None:
        self.evicted_at = [torch.full((ROWS, heads, LENGTH), torch.inf) for _ in range(NUM_LAYERS)]

    def __call__(self, view, decision) -> None:
        for row, head, slot in (view.occupied & ~decision.keep).nonzero().tolist():
            self.evicted_at[view.layer][row, head, view.positions[row, head, slot]] = view.seen_tokens


@torch.no_grad()
def hiding_logits(model: PreTrainedModel, ids: Tensor, evicted_at: list[Tensor]) -> Tensor:
    """One plain forward in which a query sees what the model's own mask shows and was not evicted before."""
    query = torch.arange(LENGTH)[:, None]
    handles = []
    attentions = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    for attention, gone in zip(attentions, evicted_at, strict=True):
        hidden = (gone[:, :, None, :] <= query).repeat_interleave(
            model.config.num_attention_heads // kv_heads(model), dim=1
        )

        def hide(_module, args, kwargs, hidden=hidden):
            mask = kwargs["attention_mask"].expand(hidden.shape)
            return args, {**kwargs, "attention_mask": mask.masked_fill(hidden, torch.finfo(torch.float32).min)}

        handles.append(attention.register_forward_pre_hook(hide, with_kwargs=True))
    try:
        return model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


@every_architecture
@pytest.mark.parametrize("memory", ["namm-ragged", "h2o"])
@pytest.mark.parametrize("cuts", [(), (5, 6, 30)], ids=["at-once", "chunks"])
def test_evicting_equals_hiding_and_the_books_are_right(name, memory, cuts):
    model, ids = zoo_model(name), random_ids(ROWS, LENGTH)
    log = EvictionLog(kv_heads(model))
    ours, cache = drive(model, evicting(model, memory), ids, cuts, log)
    assert largest_difference(ours, hiding_logits(model, ids, log.evicted_at)) < ROUNDING
    kept = [
        [[(head == torch.inf).nonzero()[:, 0].tolist() for head in row] for row in layer] for layer in log.evicted_at
    ]
    assert held_positions(cache) == kept
    held = cache.held_tokens()
    assert held.tolist() == [[[len(head) for head in layer[row]] for layer in kept] for row in range(ROWS)]
    assert int(held.min()) < LENGTH
    slots = [layer.held.at_work() for layer in cache.layers]
    token_bytes = {4 * (s.keys.shape[-1] + s.values.shape[-1]) for s in slots}
    assert cache.cache_bytes == int(held.sum()) * token_bytes.pop()
    assert not token_bytes
    assert cache.cache_bytes == int(cache.meter.now.sum()) < cache.peak_bytes <= int(cache.meter.peak.sum())
    assert cache.get_seq_length() == LENGTH


@every_architecture
def test_a_padded_row_is_what_it_is_alone(name):
    model, lengths = zoo_model(name), (13, 40, 27, 40)
    texts = [random_ids(1, length, seed=seed)[0] for seed, length in enumerate(lengths)]
    ids = torch.stack([torch.cat([torch.zeros(40 - len(text), dtype=torch.long), text]) for text in texts])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None} | {
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    batch = hooked_cache(model, evicting(model, "namm-ragged"))
    together = model.generate(ids, attention_mask=(ids != 0).long(), past_key_values=batch, **options)
    for row, text in enumerate(texts):
        single = hooked_cache(model, evicting(model, "namm-ragged"))
        alone = model.generate(text[None], past_key_values=single, **options)
        assert together.sequences[row, 40:].tolist() == alone.sequences[0, len(text) :].tolist()
        for ours, theirs in zip(together.logits, alone.logits, strict=True):
            # Sums of float32 in another order, up to 1.2e-5 (Phi-3, GPT-OSS); the plain model's own bound is above.
            assert largest_difference(ours[row], theirs[0]) < ROUNDING
        assert batch.held_tokens()[row].tolist() == single.held_tokens()[0].tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_work_is_named_with_the_reason(name):
    model_type, reason = REFUSED[name]
    model = AutoModelForCausalLM.from_config(refused_config(model_type)).eval()

    def use():
        model(random_ids(1, 12), past_key_values=hooked_cache(model, KeepAll()), use_cache=True)

    with pytest.raises(UnsupportedUseError, match=reason) as refusal:
        use()
    assert model_type.partition("_")[0] in str(refusal.value).lower()
    assert model(random_ids(1, 12)).logits.isfinite().all()

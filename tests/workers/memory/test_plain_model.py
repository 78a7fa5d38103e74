"""A memory that keeps everything is the plain model, and attaching one leaves no trace on the model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    SiglipVisionConfig,
)

from tests.workers.memory.tiny import (
    MODELS,
    ROUNDING,
    drive,
    held_positions,
    largest_difference,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_normalisation,
    tiny_settings,
)
from workers.memory.attention import memory_attached
from workers.memory.errors import UnsupportedUseError
from workers.memory.memory import KeepAll, LayerView, Memory
from workers.memory.namm import Namm, StatisticsPass
from workers.memory.specs import NammSettings

LENGTH = 45


def zero_genome(heads: str) -> Memory:
    settings = tiny_settings(heads=heads)
    return Namm(settings, torch.zeros(1, settings.genome_size), tiny_normalisation(settings))


KEEPS_EVERYTHING = {
    "full": lambda: rival("full", ()),
    "full-watching": lambda: KeepAll(zero_genome("even")),
    "zero-genome-even": lambda: zero_genome("even"),
    "zero-genome-ragged": lambda: zero_genome("ragged"),
    "statistics-pass": lambda: StatisticsPass(tiny_settings()),
    **{name: lambda name=name: rival(name, 100) for name in ("recent", "h2o", "l2norm", "random", "snapkv", "tova")},
}


@pytest.mark.parametrize("length", [LENGTH, 300])
@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_too(name, length):
    """Queries and keys come in float32 then, values do not."""
    memory = KeepAll(Namm(NammSettings(update_every=256), torch.zeros(1, NammSettings().genome_size), None))
    model, ids = tiny_model(name, "sdpa"), random_ids(1, length)
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(ids).logits
            ours, cache = drive(model, memory, ids, cuts=(length - 1,))
    assert {layer.held.keys.dtype for layer in cache.layers} == {torch.bfloat16}
    assert float((ours - exact).norm()) < 1.5 * float((plain - exact).norm())


@torch.no_grad()
@pytest.mark.parametrize("heads", ["even", "ragged"])
@pytest.mark.parametrize("first", [True, False], ids=["autocast-first", "autocast-later"])
def test_autocast_may_be_switched_between_two_calls_of_a_cache(first, heads):
    """What is held stays in the dtype of the first call, and the model is given the dtype that it expects."""
    model, ids = tiny_model("llama", "sdpa"), random_ids(1, 40)
    exact, logits = model(ids).logits, []
    with memory_attached(model, zero_genome(heads)) as cache:
        for number, (start, stop) in enumerate([(0, 25), (25, 26), (26, 40)]):
            with torch.autocast("cpu", torch.bfloat16, enabled=first == (number == 0)):
                logits.append(model(ids[:, start:stop], past_key_values=cache).logits)
    assert {layer.held.keys.dtype for layer in cache.layers} == {torch.bfloat16 if first else torch.float32}
    assert float((torch.cat(logits, 1) - exact).norm() / exact.norm()) < 5e-2


@torch.no_grad()
def test_a_memory_decides_under_autocast_as_without():
    torch.manual_seed(0)
    settings = NammSettings(update_every=256)
    memory = Namm(settings, 0.1 * torch.randn(1, settings.genome_size), None)
    shape = (1, 2, 300, settings.num_bins + settings.hop)
    view = LayerView(
        0, 300, torch.zeros(1), torch.zeros(1), torch.arange(300).expand(1, 2, -1).int(), torch.rand(shape)
    )
    expected = memory.importance(view)
    with torch.autocast("cpu", torch.bfloat16):
        ours = memory.importance(view)
    assert float((ours - expected).norm() / expected.norm()) < 5e-2


@torch.no_grad()
@pytest.mark.parametrize("heads", ["even", "ragged"])
def test_what_a_memory_computes_in_a_model_under_autocast_is_not_rounded(heads):
    model, memory, seen = tiny_model("llama", "sdpa"), tiny_namm(tiny_settings(heads=heads)), []
    with torch.autocast("cpu", torch.bfloat16):
        drive(model, memory, random_ids(2, 50), listener=lambda *update: seen.append(update))
    assert len(seen) == 2 * 50 // 8
    for view, decision in seen:
        torch.testing.assert_close(decision.importance, memory.decide(view).importance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", KEEPS_EVERYTHING)
def test_logits_are_those_of_the_plain_model(name, memory, implementation):
    model, ids = tiny_model(name, implementation), random_ids(2, LENGTH)
    with torch.no_grad():
        plain = model(ids).logits
    ours, cache = drive(model, KEEPS_EVERYTHING[memory](), ids)
    assert largest_difference(ours, plain) < ROUNDING
    everything = list(range(LENGTH))
    assert held_positions(cache) == [[[everything] * 2] * 2] * 2


def test_the_comparison_above_can_fail_because_an_eviction_is_seen():
    model, ids = tiny_model(), random_ids(2, LENGTH)
    with torch.no_grad():
        plain = model(ids).logits
    assert largest_difference(drive(model, rival("recent", 20), ids)[0], plain) > 0.1


@pytest.mark.parametrize("prefill_chunk_size", [None, 5, 16])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_of_generate_is_that_of_the_plain_model(name, prefill_chunk_size):
    model, ids = tiny_model(name, "sdpa"), random_ids(2, 21)
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, **options)
    for make in (KEEPS_EVERYTHING["full"], KEEPS_EVERYTHING["zero-genome-ragged"]):
        with memory_attached(model, make()) as cache:
            ours = model.generate(ids, past_key_values=cache, prefill_chunk_size=prefill_chunk_size, **options)
        assert ours.tolist() == plain.tolist()
        assert cache.get_seq_length() == 21 + 24 - 1


def test_generate_takes_the_mask_that_a_tokenizer_makes_for_an_unpadded_batch():
    model, ids = tiny_model(), random_ids(2, 21)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    with memory_attached(model, KeepAll()) as cache:
        ours = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=8, do_sample=False
        )
    assert ours.tolist() == plain.tolist()


def test_generate_goes_on_with_an_evicted_cache_when_given_the_whole_text():
    model, ids, memory = tiny_model(), random_ids(1, 30), rival("recent", 10)
    options = {"do_sample": False, "eos_token_id": None}
    with memory_attached(model, memory) as cache:
        at_once = model.generate(ids, past_key_values=cache, max_new_tokens=20, **options)
    with memory_attached(model, memory) as cache:
        first = model.generate(ids, past_key_values=cache, max_new_tokens=9, **options)
        then = model.generate(first, past_key_values=cache, max_new_tokens=11, **options)
    assert then.tolist() == at_once.tolist()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_also_after_an_error(implementation, fails):
    model, ids = tiny_model("qwen2", implementation), random_ids(2, 20)
    options = {"max_new_tokens": 10, "do_sample": False}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config, members = copy.deepcopy(model.config.to_dict()), set(vars(model))
    plain = model.generate(ids, **options)
    try:
        with memory_attached(model, rival("recent", 5)) as cache:
            model.generate(ids, past_key_values=cache, **options)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == config
    assert set(vars(model)) == members
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert model.generate(ids, **options).tolist() == plain.tolist()


class FailsWhileDeciding(KeepAll):
    update_every = 8

    def decide(self, _view):
        raise ZeroDivisionError


def test_an_error_inside_a_memory_does_not_spoil_the_next_use_of_the_model():
    model, ids = tiny_model(), random_ids(1, 20)
    plain = drive(model, KeepAll(), ids)[0]
    with pytest.raises(ZeroDivisionError):
        drive(model, FailsWhileDeciding(), ids)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(drive(model, KeepAll(), ids)[0], plain)


def test_two_models_may_be_attached_at_once_and_one_model_twice():
    one, other, ids = tiny_model(seed=1), tiny_model("qwen3", seed=2), random_ids(1, 20)
    expected = [drive(model, rival("recent", 5), ids)[0] for model in (one, other)]
    with memory_attached(one, rival("recent", 5)) as first, memory_attached(other, rival("recent", 5)) as second:
        for model, cache, logits in zip((one, other), (first, second), expected, strict=True):
            assert torch.equal(model(ids, past_key_values=cache, use_cache=True).logits, logits)
    with memory_attached(one, rival("recent", 5)):
        with memory_attached(one, rival("recent", 9)):
            pass
        assert torch.equal(drive(one, rival("recent", 5), ids)[0], expected[0])
    assert one.config._attn_implementation == "eager"


def test_memories_work_on_a_model_that_has_gradients_after_use_in_inference_mode():
    """Tables that are cached while `inference_mode` is on must not break a later forward that records gradients."""
    model, ids = tiny_model(), random_ids(1, 40)
    settings = tiny_settings(update_every=12, window=12, hop=6, recency_size=4)  # used nowhere else, so not cached yet
    memory = Namm(settings, torch.zeros(1, settings.genome_size), None)
    with torch.inference_mode():
        drive(model, memory, ids)
    with memory_attached(model, memory) as cache:
        logits = model(ids, past_key_values=cache, use_cache=True).logits
    assert largest_difference(logits.detach(), drive(model, KeepAll(), ids)[0]) < ROUNDING


def test_only_the_text_part_of_a_multimodal_model_forgets():
    text = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.25,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=60), attn_implementation="sdpa"
    ).eval()
    ids = random_ids(1, 40) % 60
    ids[:, 3:7] = 60  # four patches
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
    with torch.no_grad():
        plain = model(**inputs).logits
        with memory_attached(model, zero_genome("even")) as cache:
            ours = model(**inputs, past_key_values=cache, use_cache=True).logits
        with memory_attached(model, rival("recent", 9)) as evicted:
            model(**inputs, past_key_values=evicted, use_cache=True)
    assert largest_difference(ours, plain) < ROUNDING
    assert evicted.held_tokens().unique().tolist() == [9]  # 40 tokens are five updates
    for part in (model.config, model.config.text_config, model.config.vision_config):
        assert part._attn_implementation == "sdpa"


@torch.no_grad()
def test_images_whose_patches_see_each_other_are_refused_and_text_is_served():
    text = GemmaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, use_bidirectional_attention=False,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=60, projection_dim=32)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    ids = random_ids(1, 20) % 60
    words = {"input_ids": ids, "token_type_ids": torch.ones_like(ids)}
    with memory_attached(model, KeepAll()) as cache:
        ours = model(**words, past_key_values=cache).logits
    assert largest_difference(ours, model(**words).logits) < 1e-5
    ids[:, 3:7] = 60  # four patches
    image = {"pixel_values": torch.randn(1, 3, 8, 8), "input_ids": ids, "token_type_ids": (ids != 60).long()}
    assert model(**image).logits.isfinite().all()
    with memory_attached(model, KeepAll()) as cache, pytest.raises(UnsupportedUseError, match="see each other"):
        model(**image, past_key_values=cache)

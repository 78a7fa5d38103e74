"""``memory.generate(model, …)`` says what ``model.generate`` says under the memory's cache, token by token replayed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    TextStreamer,
)

from namm import Memory
from tests.workers.memory.emulated_graph import emulated_graph
from tests.workers.memory.test_replay import ASKING, WINDOWED, Counted, gpu
from tests.workers.memory.tiny import random_genomes, random_ids, tiny_model, tiny_normalisation, tiny_settings
from tests.workers.memory.zoo import ARCHITECTURES, zoo_model
from workers.memory import generation
from workers.memory.errors import UnsupportedUseError
from workers.memory.generation import replaying
from workers.memory.recording import cuda_graph
from workers.memory.replay import Decoder
from workers.memory.specs import NammSpec

PLAIN = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 30}


def a_memory(heads: str = "ragged") -> Memory:
    settings = tiny_settings(heads=heads, update_every=32)
    spec = NammSpec(settings=settings, normalisation=tiny_normalisation(settings))
    return Memory(spec, random_genomes(settings, 1)[0].numpy())


def generated(model, memory, recorder, *inputs, **options):
    """By a twin, and the cache; also what was recorded."""
    counted, cache = Counted(recorder), memory.cache(model)
    twin = replaying(model, cache, counted)
    return twin.generate(*inputs, past_key_values=cache, **options), cache, counted


def require_the_same(model: PreTrainedModel, memory: Memory, recorder, ids: torch.Tensor) -> Counted:
    cache = memory.cache(model)
    expected = model.generate(ids, past_key_values=cache, **PLAIN)
    ours, own_cache, counted = generated(model, memory, recorder, ids, **PLAIN)
    assert ours.tolist() == expected.tolist()
    assert own_cache.held_tokens().tolist() == cache.held_tokens().tolist()
    assert own_cache.seen_tokens().tolist() == cache.seen_tokens().tolist()
    return counted


@pytest.mark.parametrize("heads", ["even", "ragged"])
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_are_those_of_generate(heads, rows):
    counted = require_the_same(tiny_model(), a_memory(heads), emulated_graph, random_ids(rows, 50))
    assert counted.calls == 30 - 1 - 1 - 1  # the prompt gives the first, one is fed plainly, one brings an update


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name):
    counted = require_the_same(zoo_model(name), a_memory("even"), emulated_graph, random_ids(1, 50))
    assert counted.calls or name in {*WINDOWED, "gpt2"}


def test_a_padded_batch_is_fed_plainly():
    model, memory, ids = tiny_model(), a_memory(), random_ids(2, 50)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    expected = model.generate(ids, attention_mask=mask, past_key_values=memory.cache(model), **PLAIN)
    ours, _, counted = generated(model, memory, emulated_graph, ids, attention_mask=mask, **PLAIN)
    assert ours.tolist() == expected.tolist()
    assert counted.recordings == 0


def test_what_generate_can_do_it_can_do(monkeypatch):
    """Sampling, several texts of one prompt, logits beside them, a streamer, a second turn: by the public method."""
    monkeypatch.setattr(generation, "Decoder", lambda model, cache, _: Decoder(model, cache, counted))
    model, memory, said, counted = tiny_model(), a_memory(), [], Counted(emulated_graph)
    ids, options = (
        random_ids(1, 40),
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2, "output_logits": True},
    )
    texts = []
    for generate in (model.generate, lambda *inputs, **named: memory.generate(model, *inputs, **named)):
        torch.manual_seed(0)
        cache = memory.cache(model)
        found = generate(ids, past_key_values=cache, max_new_tokens=9, return_dict_in_generate=True, **options)
        turn = torch.cat([found.sequences, random_ids(2, 5)], 1)
        texts.append((found, generate(turn, past_key_values=cache, **PLAIN)))
    (expected, second), (ours, own_second) = texts
    assert ours.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)
    assert own_second.tolist() == second.tolist()
    assert counted.calls > 20

    class Streamer(TextStreamer):
        def put(self, value):
            said.append(value.tolist())

        def end(self):
            pass

    text = memory.generate(model, ids, streamer=Streamer(None), **PLAIN)
    assert said[1:] == [[token] for token in text[0, 40:].tolist()]


def test_what_is_asked_beyond_logits_is_fed_plainly():
    model, memory, ids = tiny_model(), a_memory(), random_ids(1, 40)
    options = {"return_dict_in_generate": True, "output_hidden_states": True, **PLAIN}
    ours, _, counted = generated(model, memory, emulated_graph, ids, **options)
    assert len(ours.hidden_states) == 30
    assert counted.recordings == 0


def test_positions_that_are_given_are_used():
    model, memory, ids = tiny_model(), a_memory(), random_ids(1, 48)
    found = []
    for recorder in (None, emulated_graph):
        cache = memory.cache(model)
        twin = replaying(model, cache, recorder)
        logits = [twin(input_ids=ids[:, :40], past_key_values=cache, use_cache=True).logits[:, -1]]
        with torch.no_grad():
            logits += [
                twin(
                    input_ids=ids[:, at : at + 1], position_ids=torch.tensor([[at + 7]]), past_key_values=cache
                ).logits[:, -1]
                for at in range(40, 48)
            ]
        found.append(torch.stack(logits))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_the_model_is_its_own_and_nothing_is_left_behind():
    model, memory = tiny_model(), a_memory()
    members = set(vars(model))
    cache = memory.cache(model)
    twin = replaying(model, cache, emulated_graph)
    assert isinstance(twin, type(model))
    assert twin.model is model.model
    twin.generate(random_ids(1, 40), past_key_values=cache, **PLAIN)
    assert set(vars(model)) == members
    kept = weakref.ref(cache)
    gc.disable()  # no cycle may keep a cache, of gigabytes, until the collector comes
    try:
        del twin, cache
        assert kept() is None
    finally:
        gc.enable()


def test_calls_that_are_not_of_a_token_under_the_cache_reach_the_model():
    model, memory, ids = tiny_model(), a_memory(), random_ids(1, 41)
    cache, other = memory.cache(model), memory.cache(model)
    counted = Counted(emulated_graph)
    twin = replaying(model, cache, counted)
    with torch.no_grad():
        for one in (cache, other):
            twin(input_ids=ids[:, :40], past_key_values=one, use_cache=True)
        for at in range(3):
            twin(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        calls = counted.calls
        assert calls == 2
        theirs = twin(input_ids=ids[:, :1], past_key_values=other, use_cache=True).logits
        assert other.get_seq_length() == 41
        assert torch.equal(theirs, memory_logits(model, memory, torch.cat([ids[:, :40], ids[:, :1]], 1)))
        assert isinstance(twin(ids[:, :1]).logits, torch.Tensor)
        assert isinstance(twin(input_ids=ids[:, :1], past_key_values=cache, return_dict=False), tuple)
        with pytest.raises(UnsupportedUseError, match="use_cache"):
            twin(input_ids=ids[:, :1], past_key_values=cache, use_cache=False)
    assert counted.calls == calls


def memory_logits(model: PreTrainedModel, memory: Memory, ids: torch.Tensor) -> torch.Tensor:
    """Of the last token, fed by itself."""
    cache = memory.cache(model)
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    logits: torch.Tensor = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits
    return logits


def test_hooks_of_others_are_called_for_every_token():
    model, memory, seen = tiny_model(), a_memory(), []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    _, _, counted = generated(model, memory, emulated_graph, random_ids(1, 40), **PLAIN)
    assert len(seen) == 30
    assert counted.recordings == 0
    handle.remove()
    _, _, counted = generated(model, memory, emulated_graph, random_ids(1, 40), **PLAIN)
    assert counted.calls > 20


def test_another_cache_is_refused():
    with pytest.raises(UnsupportedUseError, match=r"DynamicCache.*memory\.cache"):
        a_memory().generate(tiny_model(), random_ids(1, 30), past_key_values=DynamicCache(), **PLAIN)


def test_a_compiled_model_is_left_to_itself():
    model, memory = tiny_model(), a_memory()
    model.compile(backend="eager")
    assert replaying(model, memory.cache(model)) is model


def test_a_model_that_reads_more_than_text_is_left_to_itself():
    text = tiny_model().config
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=5))
    assert replaying(model, a_memory().cache(model)) is model


@pytest.mark.parametrize(("options", "told"), [({"num_beams": 2}, "num_beams=1"), ({"use_cache": False}, "use_cache")])
def test_what_cannot_work_is_refused(options, told):
    with pytest.raises(UnsupportedUseError, match=told):
        a_memory().generate(tiny_model(), random_ids(1, 30), **PLAIN, **options)


class TestOnAnAccelerator:
    """Real graphs."""

    pytestmark = gpu

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture(self, name):
        counted = require_the_same(zoo_model(name).cuda(), a_memory("even"), cuda_graph, random_ids(1, 50).cuda())
        assert counted.calls or name in WINDOWED | ASKING

"""Three lines: a memory from a folder, a cache from the memory, and transformers as one knows it."""

from __future__ import annotations

import copy
import gc
import io
import threading
import time
import weakref

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer, pipeline

from namm import Memory
from tests.workers.memory.tiny import (
    drive,
    random_genomes,
    random_ids,
    rival,
    tiny_model,
    tiny_normalisation,
    tiny_settings,
)
from workers.language_model import load_language_model
from workers.memory import hooks
from workers.memory.errors import UnsupportedUseError
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll
from workers.memory.specs import NammSpec
from workers.settings import ModelSettings

PLAIN = {"do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> Memory:
    settings = tiny_settings(heads="ragged")
    saved = Memory(
        NammSpec(settings=settings, normalisation=tiny_normalisation(settings)), random_genomes(settings, 1)[0].numpy()
    )
    folder = tmp_path_factory.mktemp("memory")
    saved.save_pretrained(folder)
    return Memory.from_pretrained(folder)


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


def attended(model, memory, ids, **options):
    """What the `with` block gives: the reference."""
    with memory.attached(model) as cache:
        return model.generate(ids, past_key_values=cache, **PLAIN, **options), cache


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_generate_with_the_cache_is_generate_inside_the_block(memory):
    model, ids = tiny_model(implementation="sdpa"), random_ids(2, 30)
    expected, reference = attended(model, memory, ids, max_new_tokens=20)
    cache = memory.cache(model)
    assert model.generate(ids, past_key_values=cache, max_new_tokens=20, **PLAIN).tolist() == expected.tolist()
    assert cache.held_tokens().tolist() == reference.held_tokens().tolist()
    assert cache.held_tokens().shape == (2, 2, 2)
    assert cache.held_tokens().float().mean() < 49
    assert cache.seen_tokens().tolist() == [49, 49]
    held_bytes = cache.cache_bytes - cache.spare_bytes
    assert 0 < held_bytes < cache.meter.highest < 2 * 2 * 2 * 49 * 2 * 8 * 4
    assert cache.peak_bytes >= cache.cache_bytes
    assert held_bytes == int(cache.held_tokens().sum()) * 2 * 8 * 4


def test_other_calls_see_the_model_as_it_was(memory):
    model, ids = tiny_model(implementation="sdpa"), random_ids(1, 20)
    config, members = copy.deepcopy(model.config.to_dict()), set(vars(model))
    plain = model(ids).logits
    cache = memory.cache(model)
    for _ in range(2):
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids, past_key_values=DynamicCache(), use_cache=True).logits, plain)
        model(random_ids(1, 9), past_key_values=cache, use_cache=True)
    assert model.config.to_dict() == config
    assert set(vars(model)) == members


def test_the_cache_takes_its_hooks_and_its_tensors_along_when_it_goes(memory):
    model = tiny_model()
    gc.disable()  # by reference counts alone: the bytes must not wait for the collector
    try:
        cache = memory.cache(model)
        model(random_ids(1, 20), past_key_values=cache, use_cache=True)
        assert model._forward_pre_hooks
        keys = weakref.ref(cache.layers[0].held.at_work().keys if cache.layers[0].held else None)
        del cache
        assert keys() is None
    finally:
        gc.enable()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("way", [copy.deepcopy, saved_and_loaded])
def test_a_copy_of_a_model_that_has_a_cache_is_a_plain_model(memory, way):
    model, ids = tiny_model(implementation="sdpa"), random_ids(1, 20)
    expected, _ = attended(model, memory, ids, max_new_tokens=4)
    cache = memory.cache(model)
    model(ids, past_key_values=cache, use_cache=True)
    other = way(model)
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert other.config._attn_implementation == "sdpa"
    with pytest.raises(UnsupportedUseError, match="the very model"):
        other(ids, past_key_values=cache, use_cache=True)
    ours = other.generate(ids, past_key_values=memory.cache(other), max_new_tokens=4, **PLAIN)
    assert ours.tolist() == expected.tolist()


def test_several_caches_of_one_model_do_not_disturb_each_other(memory):
    model, texts = tiny_model(), [random_ids(1, 30, seed) for seed in range(3)]
    expected = [attended(model, memory, ids, max_new_tokens=9)[0].tolist() for ids in texts]
    caches = [memory.cache(model) for _ in texts]
    started = [
        model.generate(i, past_key_values=c, max_new_tokens=4, **PLAIN) for i, c in zip(texts, caches, strict=True)
    ]
    for ids, cache, whole in reversed(list(zip(started, caches, expected, strict=True))):
        assert model.generate(ids, past_key_values=cache, max_new_tokens=5, **PLAIN).tolist() == whole


def test_turns_of_a_conversation_go_on_with_one_cache(memory):
    model, turns = tiny_model(), [random_ids(1, length, length) for length in (20, 11, 15)]
    cache, text = memory.cache(model), torch.zeros(1, 0, dtype=torch.long)
    for turn in turns:
        text = model.generate(torch.cat([text, turn], 1), past_key_values=cache, max_new_tokens=6, **PLAIN)
    ours, fresh = cache.held_tokens().tolist(), drive(model, memory.build(), text[:, :-1])[1]
    assert ours == fresh.held_tokens().tolist()


@pytest.mark.parametrize("chunk", [None, 7])
def test_sampling_gives_what_it_gives_inside_the_block(memory, chunk):
    model, ids = tiny_model(), random_ids(1, 30)
    texts = []
    for cache in (memory.cache(model), memory.cache(model)):
        torch.manual_seed(0)
        options = {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3, "max_new_tokens": 12}
        texts.append(model.generate(ids, past_key_values=cache, prefill_chunk_size=chunk, **options).tolist())
    assert texts[0] == texts[1]
    assert len({str(text) for text in texts[0]}) == 3


def test_a_streamer_in_another_thread_says_the_text_as_it_comes(small_llama):
    model, tokenizer = small_llama.model, small_llama.tokenizer
    inputs = tokenizer("the lantern captain=amber follows this river\nask captain=", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs.input_ids.shape[1] :]
    streamer, cache = TextIteratorStreamer(tokenizer, skip_prompt=True), hooked_cache(model, KeepAll())
    options = {**inputs, "past_key_values": cache, "streamer": streamer, "max_new_tokens": 5, "do_sample": False}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    said = "".join(streamer)
    thread.join()
    assert said == tokenizer.decode(expected)


def test_a_pipeline_takes_the_cache_also_for_a_padded_batch(small_llama):
    model, tokenizer = small_llama.model, copy.deepcopy(small_llama.tokenizer)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = ["the lantern captain=amber follows this river\nask captain=", "captain=amber\nask captain="]
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    alone = [writer(prompt, past_key_values=hooked_cache(model, rival("recent", 8)), **options) for prompt in prompts]
    batch = hooked_cache(model, rival("recent", 8))
    together = writer(prompts, batch_size=2, past_key_values=batch, **options)
    assert together == alone
    assert batch.held_tokens().max() < 16


@pytest.mark.slow
@pytest.mark.parametrize("how", ["forward", "module"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_decodes_the_same(memory, how):
    model, ids = tiny_model(), random_ids(2, 30)
    expected, _ = attended(model, memory, ids, max_new_tokens=20)
    if how == "forward":
        model.forward = torch.compile(model.forward)
    else:
        model.compile()
    torch._dynamo.utils.counters.clear()
    ours = model.generate(ids, past_key_values=memory.cache(model), max_new_tokens=20, **PLAIN)
    assert ours.tolist() == expected.tolist()
    assert model.config._attn_implementation == "eager"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 2}, "num_beams=1"),
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"use_cache": False}, "use_cache=False"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "leave output_attentions off"),
    ],
    ids=["beam-search", "assisted", "no-cache", "attentions"],
)
def test_a_use_that_cannot_work_is_refused_and_the_model_works_on(memory, options, told):
    model, ids = tiny_model(), random_ids(1, 30)
    plain = model.generate(ids, max_new_tokens=6, **PLAIN)
    with pytest.raises(UnsupportedUseError, match=told):
        model.generate(ids, past_key_values=memory.cache(model), max_new_tokens=6, **PLAIN, **options)
    assert model.generate(ids, max_new_tokens=6, **PLAIN).tolist() == plain.tolist()


def test_assisted_decoding_with_a_second_model_is_refused(memory):
    model = tiny_model()
    with pytest.raises(UnsupportedUseError, match="assisted decoding"):
        model.generate(
            random_ids(1, 30), past_key_values=memory.cache(model), assistant_model=tiny_model(seed=1), max_new_tokens=6
        )


@pytest.mark.parametrize("way", ["argument", "configuration"])
def test_attentions_are_refused_and_not_left_empty(memory, way):
    model, ids = tiny_model(), random_ids(1, 9)
    model.config.output_attentions = way == "configuration"
    asked = {"output_attentions": True} if way == "argument" else {}
    assert len(model(ids, **asked).attentions) == 2
    with pytest.raises(UnsupportedUseError, match="leave output_attentions off"):
        model(ids, past_key_values=memory.cache(model), use_cache=True, **asked)
    with memory.attached(model) as cache, pytest.raises(UnsupportedUseError, match="leave output_attentions off"):
        model(ids, past_key_values=cache, use_cache=True, **asked)
    assert model(ids, past_key_values=memory.cache(model), use_cache=True, output_attentions=False).attentions is None


def test_a_used_cache_is_refused_for_another_text_or_another_number_of_texts(memory):
    model = tiny_model()
    cache = memory.cache(model)
    model.generate(random_ids(1, 30), past_key_values=cache, max_new_tokens=3, **PLAIN)
    with pytest.raises(UnsupportedUseError, match="new cache for a new text"):
        model.generate(random_ids(1, 10, 1), past_key_values=cache, max_new_tokens=3, **PLAIN)
    with pytest.raises(UnsupportedUseError, match="holds 1 texts, the call brings 2"):
        model(random_ids(2, 4), past_key_values=cache, use_cache=True)


def test_a_cache_made_for_another_model_is_refused(memory):
    model, other = tiny_model(), tiny_model(seed=1)
    with pytest.raises(UnsupportedUseError, match="the very model"):
        other(random_ids(1, 9), past_key_values=memory.cache(model), use_cache=True)
    assert other.config._attn_implementation == "eager"


def test_dropout_and_unknown_attention_arguments_are_refused_by_name(memory):
    model = tiny_model()
    cache = memory.cache(model)
    with pytest.raises(UnsupportedUseError, match="LlamaAttention passes its attention block_indices"):
        model(random_ids(1, 9), past_key_values=cache, use_cache=True, block_indices=torch.zeros(1))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(UnsupportedUseError, match="call model"):
        model.train()(random_ids(1, 9), past_key_values=memory.cache(model), use_cache=True)


class Interrupted(KeepAll):
    update_every = 8

    def decide(self, _view):
        raise KeyboardInterrupt


def test_ctrl_c_in_a_call_leaves_the_model_usable(memory):
    """PyTorch calls no hook after a KeyboardInterrupt, so the next call, or the cache's end, puts things right."""
    model, ids = tiny_model(), random_ids(1, 20)
    plain = model(ids).logits
    expected = attended(model, memory, ids, max_new_tokens=4)[0].tolist()
    for then in ("plain", "memory", "gone"):
        cache = hooked_cache(model, Interrupted())
        with pytest.raises(KeyboardInterrupt):
            model(ids, past_key_values=cache, use_cache=True)
        if then == "plain":
            assert torch.equal(model(ids).logits, plain)
        elif then == "memory":
            assert (
                model.generate(ids, past_key_values=memory.cache(model), max_new_tokens=4, **PLAIN).tolist() == expected
            )
        else:
            del cache
            gc.collect()
        assert model.config._attn_implementation == "eager"


def test_an_error_between_a_layers_update_and_its_attention_does_not_spoil_the_next_call(memory):
    """The layer was waiting for its attention, and the next cache's was taken for a second one."""
    model, ids = tiny_model(), random_ids(1, 20)
    expected = model(ids, past_key_values=memory.cache(model)).logits
    attention = model.model.layers[1].self_attn.train()
    del attention.attention_dropout  # asked for when the attention function is called, in training only
    with pytest.raises(AttributeError, match="attention_dropout"):
        model(ids, past_key_values=memory.cache(model))
    attention.eval()
    assert torch.equal(model(ids, past_key_values=memory.cache(model)).logits, expected)


class Waiting(KeepAll):
    """Holds its call until told to go on."""

    update_every = 8

    def __init__(self) -> None:
        super().__init__()
        self.is_reached, self.may_go_on = threading.Event(), threading.Event()

    def decide(self, view):
        self.is_reached.set()
        self.may_go_on.wait(30)
        return KeepAll().decide(view)


def test_a_call_from_another_thread_meanwhile_is_refused(memory):
    model, ids, waiting = tiny_model(), random_ids(1, 20), Waiting()
    plain, answers = model(ids).logits, []
    cache = hooked_cache(model, waiting)
    call = threading.Thread(
        target=lambda: answers.append(model(ids, past_key_values=cache, use_cache=True).logits.detach())
    )
    call.start()
    assert waiting.is_reached.wait(30)
    for options in ({}, {"past_key_values": memory.cache(model), "use_cache": True}):
        with pytest.raises(UnsupportedUseError, match="another thread"):
            model(ids, **options)
    waiting.may_go_on.set()
    call.join()
    torch.testing.assert_close(answers[0], plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids).logits, plain)


def test_of_two_threads_that_begin_at_once_one_is_refused_and_the_model_works_on(memory, monkeypatch):
    """Both found the model free and switched it, so that the second one switched back to the memory's attention."""
    model, ids = tiny_model(implementation="sdpa"), random_ids(1, 20)
    plain, expected = model(ids).logits, model(ids, past_key_values=memory.cache(model), use_cache=True).logits
    caches, outcomes, start = [memory.cache(model) for _ in range(2)], [], threading.Barrier(2)
    switch = hooks.switch_attention

    def switch_and_be_interrupted(*arguments):
        former = switch(*arguments)
        time.sleep(0.05)  # as a busy machine may have it: the other thread runs now
        return former

    def call(cache):
        start.wait(30)
        try:
            outcomes.append(model(ids, past_key_values=cache, use_cache=True).logits.detach())
        except UnsupportedUseError as error:
            outcomes.append(str(error))

    monkeypatch.setattr(hooks, "switch_attention", switch_and_be_interrupted)
    threads = [threading.Thread(target=call, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, plain)
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert "another thread" in outcome if isinstance(outcome, str) else torch.equal(outcome, expected)

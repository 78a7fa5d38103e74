"""Decoding by replay gives what decoding plainly gives: logits, what is held, traces, and the account of bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.workers.memory.emulated_graph import emulated_graph
from tests.workers.memory.test_bytes import storage_bytes
from tests.workers.memory.tiny import (
    held_positions,
    largest_difference,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_settings,
)
from tests.workers.memory.zoo import ARCHITECTURES, zoo_model
from workers.decoding import prefill
from workers.memory import replay
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.memory import KeepAll, Memory
from workers.memory.recording import cuda_graph
from workers.memory.replay import PLAIN_TOKENS, Call, Decoder, Recorder

MEMORIES = {  # for one text a genome: rows of even heads that hold different numbers are packed
    "namm": tiny_namm(tiny_settings(heads="even", update_every=32)),
    "namm-often": tiny_namm(tiny_settings(heads="even", update_every=8)),
    "block": tiny_namm(tiny_settings(heads="even", update_every=32, cap=9), count=2),
    "ragged": tiny_namm(tiny_settings(heads="ragged", update_every=32)),
    "h2o": rival("h2o", 9, update_every=32),
    "recent": rival("recent", 9, update_every=32),
    "full": KeepAll(),
}
WINDOWED = {"mistral-window", "gemma2", "gemma3", "phi3-window", "gpt-oss"}
"""Architectures with sliding windows, for which there are no open places."""
ASKING = {"gpt2", "mixtral", "opt", "qwen3-moe"}
"""Those that may ask an accelerator for something, or wait for it, as their version has it."""
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")]


def refused(_call: Call) -> Call:
    """As when a model asks the device for something."""
    raise RuntimeError("operation not permitted when stream is capturing")


class Counted:
    """How often a recorder was asked, and its calls were made."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder, self.recordings, self.calls = recorder, 0, 0

    def __call__(self, call: Call) -> Call:
        self.recordings += 1
        recorded = self._recorder(call)

        def counted() -> Tensor:
            self.calls += 1
            return recorded()

        return counted


@torch.inference_mode()
def decoded(model, memory: Memory, ids: Tensor, prompt: int, recorder: Recorder | None) -> tuple[Tensor, MemoryCache]:
    """Logits of the tokens behind the prompt, fed one by one; without a recorder plainly."""
    with memory_attached(model, memory) as cache:
        logits = [prefill(model, cache, ids[:, :prompt])]
        decoder = Decoder(model, cache, recorder)
        for token in ids[:, prompt:].split(1, dim=1):
            if recorder is None:
                logits.append(model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1])
            else:
                logits.append(decoder(token))
    return torch.stack(logits, dim=1), cache


def require_equal(ours: tuple[Tensor, MemoryCache], theirs: tuple[Tensor, MemoryCache], bound: float = 1e-5) -> None:
    """All that is left of a text."""
    assert largest_difference(ours[0], theirs[0]) < bound
    assert held_positions(ours[1]) == held_positions(theirs[1])
    for mine, other in zip(ours[1].layers, theirs[1].layers, strict=True):
        assert mine.seen_tokens == other.seen_tokens
        mine, other = mine.held.at_work(), other.held.at_work()
        assert mine.num_recent == other.num_recent
        torch.testing.assert_close(mine.full_trace(), other.full_trace(), rtol=bound, atol=bound)
        torch.testing.assert_close(mine.recent_rows(), other.recent_rows(), rtol=bound, atol=bound)
    assert torch.equal(ours[1].meter.area, theirs[1].meter.area)
    assert torch.equal(ours[1].meter.peak, theirs[1].meter.peak)
    assert torch.equal(ours[1].row_state_bytes(), theirs[1].row_state_bytes())
    for cache in (ours[1], theirs[1]):
        assert storage_bytes(cache) == cache.cache_bytes + cache.state_bytes


@pytest.mark.parametrize("prompt", [34, 40, 63])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_replayed_token_is_a_plain_one(name, prompt):
    memory, model = MEMORIES[name], tiny_model()
    ids = random_ids(memory.num_genomes, 108, seed=3)
    counted = Counted(emulated_graph)
    require_equal(decoded(model, memory, ids, prompt, counted), decoded(model, memory, ids, prompt, None))
    assert counted.calls > 20


def test_an_update_is_never_replayed():
    memory, counted = MEMORIES["namm-often"], Counted(emulated_graph)
    decoded(tiny_model(), memory, random_ids(1, 104), 40, counted)
    updates, tokens = (104 - 40) // 8, 104 - 40
    assert counted.calls == tokens - updates - PLAIN_TOKENS
    assert counted.recordings == updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_replayed_or_decoded_plainly(name, dtype):
    memory, model = MEMORIES["namm"], zoo_model(name).to(dtype)
    bound = 2e-5 if dtype == torch.float32 else 0.05
    ids = random_ids(1, 62, seed=3)
    counted = Counted(emulated_graph)
    ours, theirs = (decoded(model, memory, ids, 40, recorder) for recorder in (counted, None))
    assert counted.calls == (0 if name in WINDOWED else 62 - 40 - PLAIN_TOKENS)
    if dtype == torch.float32:
        require_equal(ours, theirs, bound)
    assert largest_difference(ours[0].float(), theirs[0].float()) < bound


def test_what_cannot_be_recorded_is_decoded_plainly():
    memory, model, ids = MEMORIES["namm"], tiny_model(), random_ids(1, 100)
    counted = Counted(refused)
    require_equal(decoded(model, memory, ids, 40, counted), decoded(model, memory, ids, 40, None), 1e-7)
    assert counted.recordings == 2  # at once, and never again, for this text or another
    require_equal(decoded(model, memory, ids, 40, counted), decoded(model, memory, ids, 40, None), 1e-7)
    assert counted.recordings == 2


def test_what_was_only_new_to_the_device_is_recorded_at_the_second_try():
    """Where a driver does not load kernels while it records, the call is made once in between."""
    memory, model, ids, tries = MEMORIES["ragged"], tiny_model(), random_ids(1, 60), []

    def recorder(call: Call) -> Call:
        tries.append(call)
        return refused(call) if len(tries) == 1 else emulated_graph(call)

    counted = Counted(recorder)
    require_equal(decoded(model, memory, ids, 40, counted), decoded(model, memory, ids, 40, None))
    assert (counted.recordings, counted.calls) == (2, 19)


def test_a_lack_of_room_is_of_this_text_only(monkeypatch):
    def full(*_given, **_named):
        raise torch.OutOfMemoryError("there is no room")

    memory, model, ids, counted = MEMORIES["namm"], tiny_model(), random_ids(1, 60), Counted(emulated_graph)
    with monkeypatch.context() as patched:
        patched.setattr(replay, "opened", full)
        require_equal(decoded(model, memory, ids, 40, counted), decoded(model, memory, ids, 40, None), 1e-7)
    assert counted.recordings == 0
    decoded(model, memory, ids, 40, counted)
    assert counted.recordings > 0


def test_nothing_is_replayed_where_a_gradient_is_wanted():
    memory, model, counted = MEMORIES["ragged"], tiny_model(), Counted(emulated_graph)
    with memory_attached(model, memory) as cache, torch.no_grad():
        prefill(model, cache, random_ids(1, 40))
        decoder = Decoder(model, cache, counted)
        decoder(random_ids(1, 1))
        with torch.enable_grad():
            assert decoder(random_ids(1, 1)).requires_grad
        assert counted.recordings == 0


@torch.inference_mode()
def test_another_hand_may_feed_the_cache_in_between():
    memory, model, ids = MEMORIES["namm"], tiny_model(), random_ids(1, 60)
    with memory_attached(model, memory) as cache:
        prefill(model, cache, ids[:, :33])
        decoder, logits = Decoder(model, cache, emulated_graph), []
        for place, token in enumerate(ids[:, 33:].split(1, dim=1)):
            plainly = place in (9, 10, 20)
            call = model(input_ids=token, past_key_values=cache).logits[:, -1] if plainly else decoder(token)
            logits.append(call)
    theirs, other = decoded(model, memory, ids, 33, None)
    require_equal((torch.stack(logits, dim=1), cache), (theirs[:, 1:], other))


@torch.inference_mode()
def test_open_places_are_no_tokens():
    memory, model, ids = MEMORIES["namm"], tiny_model(), random_ids(1, 60)
    with memory_attached(model, memory) as cache:
        prefill(model, cache, ids[:, :33])
        decoder = Decoder(model, cache, emulated_graph)
        for token in ids[:, 33:43].split(1, dim=1):
            decoder(token)
        assert cache.get_seq_length() == 43
        held = cache.held_tokens()
        assert torch.equal(held, torch.tensor([[layer.held.num_slots] * 2 for layer in cache.layers])[None].int())
        assert all(layer.open is None for layer in cache.layers)
        token_bytes = 2 * 8 * 4
        assert cache.cache_bytes - cache.spare_bytes == int(held.sum()) * token_bytes
        assert cache.spare_bytes > 0


class TestOnAnAccelerator:
    """Real graphs."""

    pytestmark = gpu

    @pytest.mark.parametrize("name", MEMORIES)
    def test_a_graph_is_a_plain_call(self, name):
        """Heads of eight channels are none for kernels, without which packed tokens are decoded plainly."""
        counted = self.require_graphs(tiny_model(), MEMORIES[name], 108)
        assert counted.calls or name in ("block", "ragged")

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture(self, name):
        counted = self.require_graphs(zoo_model(name), MEMORIES["namm"], 62)
        assert counted.calls or name in WINDOWED | ASKING

    @torch.inference_mode()
    def require_graphs(self, model, memory, tokens) -> Counted:
        model, ids = model.cuda(), random_ids(memory.num_genomes, tokens, seed=3).cuda()
        memory = memory if not hasattr(memory, "with_genome") else memory.with_genome(memory._genomes.cuda())
        with memory_attached(model, memory) as cache:
            logits = [prefill(model, cache, ids[:, :40])]
            decoder = Decoder(model, cache, counted := Counted(cuda_graph))
            logits += [decoder(token) for token in ids[:, 40:].split(1, dim=1)]
        require_equal((torch.stack(logits, dim=1), cache), decoded(model, memory, ids, 40, None), 1e-4)
        return counted

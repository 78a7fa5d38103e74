"""What becomes of every token of a text, as the listener of the cache tells it."""

import numpy as np
import pytest
import torch

from tasks.registry import GeneratedTaskSettings, build_task
from workers.language_model import load_language_model
from workers.memory.attention import memory_attached
from workers.memory.heuristics import H2O, Recent
from workers.memory.memory import KeepAll
from workers.memory.namm import Namm
from workers.memory.specs import NammSettings, RivalSpec
from workers.settings import ModelSettings
from workers.token_text import token_spans
from workers.tracing import HELD, trace

PROMPT = build_task(GeneratedTaskSettings(kind="facts_code", length=200)).example("heldout", 1).prompt


@pytest.fixture(scope="module")
def small_llama():
    return load_language_model(ModelSettings(path_or_id="small-llama"))


def rival(kind, name, budget):
    return kind(RivalSpec(name=name, update_every=32, budget=budget))


def random_namm():
    settings = NammSettings(update_every=32, window=32, hop=16, hidden_size=4, heads="ragged")
    generator = torch.Generator().manual_seed(1)
    return Namm(settings, torch.randn(1, settings.genome_size, generator=generator) * 0.3, None)


@pytest.mark.parametrize(
    "memory",
    [random_namm(), rival(H2O, "h2o", ((20, 9), (30, 1))), rival(Recent, "recent", ((8, 8), (8, 8)))],
    ids=["namm", "h2o", "recent"],
)
def test_what_is_traced_is_what_the_cache_holds(small_llama, memory):
    ids = small_llama.prompt_ids(PROMPT)
    found = trace(small_llama, memory, ids)
    with torch.no_grad(), memory_attached(small_llama.model, memory) as cache:
        small_llama.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    dropped = found.dropped_at()
    for layer in cache.layers:
        positions = layer.held.at_work().positions[0].numpy()
        for head, held in enumerate(positions):
            assert np.flatnonzero(dropped[layer.index, head] == HELD).tolist() == sorted(held[held >= 0].tolist())
    assert found.update_tokens.tolist() == [32, 64, 96, 128, 160, 192]
    assert found.num_judged == 192
    assert (found.held_tokens() + len(ids) - 192 == cache.held_tokens()[0].numpy()).all()


def test_a_token_has_an_importance_until_it_is_dropped(small_llama):
    found = trace(small_llama, random_namm(), small_llama.prompt_ids(PROMPT))
    importances, dropped = found.importances(), found.dropped_at()
    for (layer, head, token), update in np.ndenumerate(dropped):
        first = int(np.searchsorted(found.update_tokens, token, side="right"))
        last = found.num_updates - 1 if update == HELD else update
        known = np.flatnonzero(~np.isnan(importances[:, layer, head, token])).tolist()
        assert known == list(range(first, last + 1))


def test_nothing_is_dropped_without_an_update(small_llama):
    for memory in (KeepAll(), rival(Recent, "recent", ((300, 300), (300, 300)))):
        found = trace(small_llama, memory, small_llama.prompt_ids(PROMPT)[:20])
        assert (found.num_updates, found.num_judged) == (0, 0)
        assert (found.dropped_at() == HELD).all()
        assert found.dropped_at().shape == (2, 2, 20)


def test_tokens_are_found_in_their_text(small_llama):
    spans = token_spans(small_llama.tokenizer, PROMPT)
    assert len(spans) == len(small_llama.prompt_ids(PROMPT))
    assert spans[0] == (0, 0)  # the beginning-of-sequence token
    assert "".join(PROMPT[start:stop] for start, stop in spans) == PROMPT


def test_a_tokenizer_without_offsets_is_followed_by_what_its_tokens_say():
    """As old ones have none; its special token stands for no characters."""

    class Slow:
        is_fast = False
        all_special_ids = (1,)

        def __call__(self, text):
            assert text == "the old lantern"
            return {"input_ids": [1, 10, 11, 12]}

        def decode(self, ids):
            return {10: "the ", 11: "old", 12: " lantern"}[ids[0]]

    assert token_spans(Slow(), "the old lantern") == [(0, 0), (0, 4), (4, 7), (7, 15)]

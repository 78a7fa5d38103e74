"""Eviction against a dense model that keeps everything and hides the evicted tokens behind explicit masks."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from tests.workers.memory.tiny import (
    NUM_KV_HEADS,
    NUM_LAYERS,
    NUM_QUERY_HEADS,
    ROUNDING,
    drive,
    largest_difference,
    random_ids,
    rival,
    tiny_model,
    tiny_namm,
    tiny_settings,
)

LENGTH, ROWS = 61, 3


class EvictionLog:
    """When each token was evicted: ``[layers, B, H, n]``, in tokens seen; infinite when it never was."""

    def __init__(self) -> None:
        self.evicted_at = torch.full((NUM_LAYERS, ROWS, NUM_KV_HEADS, LENGTH), torch.inf)
        self.num_updates: dict[int, int] = defaultdict(int)

    def __call__(self, view, decision) -> None:
        self.num_updates[view.layer] += 1
        dropped = view.occupied & ~decision.keep
        for row, head, slot in dropped.nonzero().tolist():
            position = int(view.positions[row, head, slot])
            assert self.evicted_at[view.layer, row, head, position] == torch.inf, "evicted twice"
            self.evicted_at[view.layer, row, head, position] = view.seen_tokens


@torch.no_grad()
def dense_logits(model, ids: Tensor, evicted_at: Tensor, window: int | None) -> Tensor:
    """One plain forward; a query sees what is not newer, not evicted before it was read, and within the window."""
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    seen = (key <= query) & (key > query - (window or LENGTH))
    handles = []
    for attention, gone in zip((layer.self_attn for layer in model.model.layers), evicted_at, strict=True):
        allowed = seen & (gone[:, :, None, :] > query)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        mask = mask.repeat_interleave(NUM_QUERY_HEADS // NUM_KV_HEADS, dim=1)

        def with_mask(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(attention.register_forward_pre_hook(with_mask, with_kwargs=True))
    try:
        return model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


MEMORIES = {
    "namm-even": lambda: tiny_namm(tiny_settings(heads="even"), count=ROWS),
    "namm-ragged": lambda: tiny_namm(tiny_settings(heads="ragged"), count=ROWS),
    "random-ragged": lambda: rival("random", [[3, 17], [9, 5]]),
    "h2o-even": lambda: rival("h2o", 9),
}


@pytest.mark.parametrize(("name", "window"), [("llama", None), ("qwen3", None), ("mistral-window", 7)])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("cuts", [(), (5, 6, 30, 44), range(1, LENGTH)], ids=["at-once", "chunks", "token-by-token"])
def test_evicting_equals_hiding(name, window, memory, cuts):
    model, ids, log = tiny_model(name), random_ids(ROWS, LENGTH), EvictionLog()
    ours, cache = drive(model, MEMORIES[memory](), ids, cuts, log)
    assert set(log.num_updates.values()) == {LENGTH // 8}
    assert largest_difference(ours, dense_logits(model, ids, log.evicted_at, window)) < ROUNDING
    held = (log.evicted_at == torch.inf).sum(-1)  # [layers, B, H]
    assert cache.held_tokens().tolist() == held.transpose(0, 1).tolist()


def test_the_comparison_can_fail_because_what_was_evicted_matters():
    model, ids, log = tiny_model(), random_ids(ROWS, LENGTH), EvictionLog()
    ours, _ = drive(model, MEMORIES["namm-ragged"](), ids, (), log)
    nothing = torch.full_like(log.evicted_at, torch.inf)
    assert largest_difference(ours, dense_logits(model, ids, nothing, None)) > 0.1
    one_update_late = log.evicted_at + 8
    assert largest_difference(ours, dense_logits(model, ids, one_update_late, None)) > 0.1

"""How often the host waits for an accelerator: under ``even`` once a layer and update, never for a decoded token.

Under a rival, whose budget says how many tokens are kept, never.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.workers.memory.tiny import NUM_LAYERS, drive, random_ids, rival, tiny_model, tiny_namm, tiny_settings
from workers.memory.heuristics import HEURISTICS
from workers.memory.memory import KeepAll, Memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator"),
]


def waits(memory: Memory, tokens: int, cuts: tuple[int, ...]) -> int:
    """Of reading a prompt in pieces; tables and kernels are there already."""
    model, ids = tiny_model(implementation="sdpa").cuda(), random_ids(1, tokens).cuda()
    drive(model, memory, ids, cuts)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            drive(model, memory, ids, cuts)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in told)


@pytest.mark.parametrize("cuts", [(), (33, 34, 35, 36, 37, 38, 39)], ids=["at-once", "then-decoded"])
def test_the_host_waits_once_for_each_layer_and_update(cuts):
    memory, tokens = tiny_namm(tiny_settings(heads="even", update_every=16)), 43
    assert waits(memory, tokens, cuts) - waits(KeepAll(), tokens, cuts) == NUM_LAYERS * (tokens // 16)


@pytest.mark.parametrize("name", HEURISTICS)
def test_the_host_never_waits_for_a_rival(name):
    assert waits(rival(name, [[3, 9], [5, 5]], 16), 43, ()) == waits(KeepAll(), 43, ())

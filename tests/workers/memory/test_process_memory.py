"""Kept bytes are really freed: what the process takes after a long prompt follows the cache's own figure.

A process of its own reads the prompt, because the allocator of a test run is full of what other tests have left.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.workers.memory.tiny import random_genomes, tiny_normalisation
from workers.memory.cache import MemoryCache
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll, Memory
from workers.memory.namm import Namm
from workers.memory.specs import NammSettings

TOKENS, CHUNK_TOKENS, VOCABULARY = 6_144, 1_024, 61
THRESHOLD = 1.5
"""At which the memory of random genomes keeps about a fifth."""


def a_model() -> PreTrainedModel:
    """Little but cache: 32 KiB a token."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=8_192, initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def a_memory(name: str) -> Memory:
    if name == "full":
        return KeepAll()
    settings = NammSettings(update_every=256, window=32, hop=16, hidden_size=8, heads=name.removeprefix("namm-"))
    return Namm(settings, random_genomes(settings, 1), tiny_normalisation(settings), THRESHOLD)


@torch.inference_mode()
def read(model: PreTrainedModel, memory: Memory, rows: int) -> MemoryCache:
    """The cache after a long prompt; of two rows the second begins a hundred tokens later."""
    cache = hooked_cache(model, memory)
    ids = torch.randint(3, VOCABULARY, (rows, TOKENS // rows), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, :100] = 0
    for start in range(0, ids.shape[1], CHUNK_TOKENS):
        stop = start + CHUNK_TOKENS
        model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, logits_to_keep=1)
    return cache


def process_bytes() -> int:
    """Resident bytes of this process."""
    gc.collect()
    # glibc keeps freed blocks for later; whether it has got them back is the question, not when it lets go of them.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, rows: int) -> dict[str, int]:
    """Bytes that the cache says it holds, and bytes by which the process has grown since the warm-up."""
    torch.set_num_threads(1)
    model, memory = a_model(), a_memory(name)
    read(model, memory, rows)  # work space of the matrix products, which stays
    before = process_bytes()
    cache = read(model, memory, rows)
    grown = process_bytes() - before
    full = TOKENS * 4 * 8 * 128 * 2 * 4
    return {"grown": grown, "told": cache.cache_bytes + cache.state_bytes, "kept": cache.cache_bytes, "full": full}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and asks glibc")
@pytest.mark.parametrize(
    ("name", "rows"),
    [("full", 1), ("namm-even", 1), ("namm-ragged", 1), ("namm-ragged", 2)],
    ids=["full", "even", "ragged", "padded-batch"],
)
def test_the_process_grows_by_what_the_cache_says_it_holds(name, rows):
    command = [sys.executable, "-m", "tests.workers.memory.test_process_memory", name, str(rows)]
    # One thread, because each has an arena of its own, that malloc_trim may leave alone.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=250)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["grown"] == pytest.approx(found["told"], rel=0.1), found
    if name == "full":
        assert found["kept"] == pytest.approx(found["full"], rel=0.02)
    else:
        assert 30e6 < found["told"] < 0.5 * found["full"]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))

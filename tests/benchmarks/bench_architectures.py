"""A memory that keeps everything beside no memory, on every architecture: text, seconds and bytes (issue 5).

The models are tiny, so their seconds are mostly Python: the ratio is the most that attaching can cost. ``watching``
reads the attention as an evolved memory does, ``fused`` does not. A plain model with a sliding window holds the window
alone, a memory that keeps everything holds everything. Exit code 1 when a text differs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.workers.memory.tiny import random_ids, tiny_namm
from tests.workers.memory.zoo import ARCHITECTURES, zoo_model
from workers.language_model import SMALL_LLAMA, load_language_model
from workers.memory.hooks import hooked_cache
from workers.memory.memory import KeepAll, Memory
from workers.memory.specs import NammSettings
from workers.settings import ModelSettings

REPEATS = 5
ROWS, NEW_TOKENS = 2, 48
SETTINGS = NammSettings(update_every=64, window=32, hop=16, hidden_size=16, heads="ragged")
HEADINGS = ("architecture", "identical text", "plain", "fused", "watching", "plain KB", "memory's KB", "its own KB")


@dataclass(frozen=True)
class Decoded:
    """What came of a prompt, and what it took."""

    text: list[list[int]]
    seconds: float
    cache_bytes: int
    state_bytes: int


def main() -> int:
    """Print a Markdown table."""
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2), sep="\n")
    is_same = True
    for name, model, tokens in models():
        plain, fused, watching = measure(model, random_ids(ROWS, tokens))
        same = plain.text == fused.text == watching.text
        is_same &= same
        times = (f"{each.seconds * 1000:.0f} ms ({each.seconds / plain.seconds:.2f})" for each in (fused, watching))
        sizes = (plain.cache_bytes, watching.cache_bytes, watching.state_bytes)
        cells = [name, "yes" if same else "NO", f"{plain.seconds * 1000:.0f} ms", *times]
        print("| " + " | ".join([*cells, *(f"{size / 1024:,.0f}" for size in sizes)]) + " |", flush=True)
    return 0 if is_same else 1


def models() -> Iterator[tuple[str, PreTrainedModel, int]]:
    """Name, model, and tokens of the prompt."""
    for name in ARCHITECTURES:
        yield name, zoo_model(name, None), 192
    yield SMALL_LLAMA, load_language_model(ModelSettings(path_or_id=SMALL_LLAMA)).model, 1_024


def measure(model: PreTrainedModel, ids: Tensor) -> list[Decoded]:
    """Without a memory, with one that keeps everything, and with one that watches as well: medians, taken in turns."""
    memories = (None, KeepAll(), KeepAll(tiny_namm(SETTINGS)))
    runs = [[decode(model, ids, memory) for memory in memories] for _ in range(1 + REPEATS)][1:]
    return [
        Decoded(last.text, median(run[place].seconds for run in runs), last.cache_bytes, last.state_bytes)
        for place, last in enumerate(runs[-1])
    ]


def decode(model: PreTrainedModel, ids: Tensor, memory: Memory | None) -> Decoded:
    """Greedily, through ``generate``."""
    cache = DynamicCache(config=model.config) if memory is None else hooked_cache(model, memory)
    started = time.perf_counter()
    text = model.generate(
        ids, past_key_values=cache, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    ).tolist()
    seconds = time.perf_counter() - started
    if memory is not None:
        return Decoded(text, seconds, cache.cache_bytes, cache.state_bytes)
    return Decoded(text, seconds, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers), 0)


if __name__ == "__main__":
    sys.exit(main())

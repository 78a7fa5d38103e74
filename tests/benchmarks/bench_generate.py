"""Milliseconds of a token for somebody who calls transformers' ``generate``: without a memory, with one, replayed.

``model.generate`` without a cache of ours, ``model.generate`` under a memory's cache, and ``memory.generate``, whose
tokens are replayed on an accelerator, in turn on the same random prompt. What reading the prompt costs is taken off.
Run from the repository root::

    python -m tests.benchmarks.bench_generate --model 8b --device cuda --prompt 8192 --kept 4096
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.benchmarks.bench_memory import DTYPES, MODELS, device_name
from tests.benchmarks.contenders import MEMORIES, PLAIN, calibrated, capped, prompt_ids
from workers.decoding import chunk_tokens
from workers.memory.generation import replaying
from workers.memory.hooks import hooked_cache
from workers.memory.memory import Memory

Generate = Callable[[int], object]
"""So many tokens."""


def ways(model: PreTrainedModel, memories: dict[str, Memory], ids: Tensor) -> dict[str, Generate]:
    """To generate, by name."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def plain(tokens: int) -> object:
        return model.generate(ids, max_new_tokens=tokens, **options)

    found: dict[str, Generate] = {PLAIN: plain}
    for name, memory in memories.items():
        for is_replayed in (False, True):

            def under(tokens: int, memory: Memory = memory, is_replayed: bool = is_replayed) -> object:
                cache = hooked_cache(model, memory)
                one = replaying(model, cache) if is_replayed else model
                chunk = chunk_tokens(ids.device)
                return one.generate(
                    ids, past_key_values=cache, prefill_chunk_size=chunk, max_new_tokens=tokens, **options
                )

            found[f"{name}, {'memory' if is_replayed else 'model'}.generate"] = under
    return found


def seconds(generate: Generate, tokens: int, device: torch.device) -> float:
    """Until the device is done."""
    started = time.perf_counter()
    generate(tokens)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure and print; returns the seconds of a token, by way and repeat."""
    device, shape = torch.device(options.device), MODELS[options.model]
    model = shape.model(device, DTYPES["bfloat16" if device.type == "cuda" else "float32"])
    ids = prompt_ids(shape, 1, options.prompt, device)
    memories: dict[str, Memory] = {
        name: capped(name, options.kept, 1, model)
        if name == "even"
        else calibrated(model, shape, name, [options.kept], options.prompt)
        for name in MEMORIES
    }
    by_way = ways(model, memories, ids)
    for generate in by_way.values():
        generate(options.new_tokens)  # kernels are compiled
    taken: dict[str, list[float]] = {name: [] for name in by_way}
    for _ in range(options.repeats):
        for name, generate in by_way.items():
            first = seconds(generate, 1, device)
            taken[name].append((seconds(generate, 1 + options.new_tokens, device) - first) / options.new_tokens)
    plain = statistics.median(taken[PLAIN])
    print(f"{options.model} on {device_name(device)}, prompt of {options.prompt:,}, {options.new_tokens} tokens\n")
    print("| | token ms | ÷ plain | least | most |\n|---|---:|---:|---:|---:|")
    for name, each in taken.items():
        median = statistics.median(each)
        figures = f"{1000 * median:.1f} | {median / plain:.2f} | {1000 * min(each):.1f} | {1000 * max(each):.1f}"
        print(f"| {name} | {figures} |")
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, default="small", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=4_096, help="tokens (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--kept", type=int, default=500, help="tokens by layer and KV head (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file to write the seconds of a token to, by way and repeat")
    options = parser.parse_args(arguments)
    seconds_of_a_token = run(options)
    if options.json:
        options.json.write_text(json.dumps(seconds_of_a_token))
    return 0


if __name__ == "__main__":
    sys.exit(main())

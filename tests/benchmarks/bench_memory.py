"""Time and bytes of a model under a memory, against the same model without one, in one run and in turn.

Contenders: transformers' own fused attention with the full cache, the memory (``even`` and ``ragged``), H2O and the
recent window at as many tokens. Each reads the same random prompt and decodes greedily; seconds are medians over the
repeats, in which the contenders take turns. Run from the repository root::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_memory --json memory.json --picture memory.svg
    python -m tests.benchmarks.bench_memory --model 8b --device cuda --prompts 8192 32768 --genomes 1 8 32

Peak memory is what was added to what the process (or the device) held before: the cache, activations and work space.
On a CPU it is the resident set, whose highest mark Linux lets a process reset.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.benchmarks.contenders import (
    LARGE,
    MEMORIES,
    PLAIN,
    RIVALS,
    SMALL,
    Reading,
    Shape,
    calibrated,
    capped,
    prompt_ids,
    read_plain,
    read_under,
    rival,
)  # fmt: skip
from tests.benchmarks.curves import Axes, Curve, picture
from tests.benchmarks.parts import OWN, measured_parts
from workers.memory.memory import Memory

MODELS = {"small": SMALL, "8b": LARGE}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A contender on one length, rows and genomes: its readings, and the most memory that it added."""

    readings: list[Reading]
    peak_bytes: int

    def median(self, name: str) -> float:
        """Of a field over the repeats."""
        return statistics.median(getattr(reading, name) for reading in self.readings)


def peak_bytes(device: torch.device, work: Callable[[], Reading]) -> tuple[Reading, int]:
    """What came of the work, and by how many bytes the memory in use rose at most meanwhile."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return work(), torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark of the resident set begins anew
    before = _resident_bytes()
    return work(), _resident_bytes() - before


def _resident_bytes() -> int:
    """The highest since the last reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measured(
    contenders: dict[str, Memory | None], model: PreTrainedModel, ids: Tensor, decoded: int, repeats: int
) -> list[Line]:
    """Every contender in turn, ``repeats`` times over."""
    readings: dict[str, list[Reading]] = {name: [] for name in contenders}
    peaks = dict.fromkeys(contenders, 0)
    for _ in range(repeats):
        for name, memory in contenders.items():

            def work(name: str = name, memory: Memory | None = memory) -> Reading:
                if memory is None:
                    return read_plain(model, ids, decoded)
                return read_under(model, name, memory, ids, decoded)

            reading, peak = peak_bytes(ids.device, work)
            readings[name].append(reading)
            peaks[name] = max(peaks[name], peak)
    return [Line(readings[name], peaks[name]) for name in contenders]


def profile(model: PreTrainedModel, memory: Memory, ids: Tensor) -> dict[str, float]:
    """Seconds by part of one prefill."""
    with measured_parts(ids.device) as seconds:
        read_under(model, "profile", memory, ids, 0)
    return seconds


HEADER = (
    "| prompt | genomes | contender | prefill s | CPU s | ÷ plain | token ms | ÷ plain | total ÷ plain | peak MB"
    " | ÷ plain | held MB | state MB | tokens held |\n|---:|---:|---|" + "---:|" * 11
)


def row(line: Line, plain: Line, device: torch.device) -> str:
    """Markdown; on a CPU, which others may share, ratios are of CPU seconds."""
    first = line.readings[0]
    prefill, decode = ("prefill_seconds", "decode_seconds")
    if device.type == "cpu":
        prefill, decode = ("prefill_cpu_seconds", "decode_cpu_seconds")

    def over(ours: float, theirs: float) -> str:
        return f"{ours / theirs:.2f}" if theirs else ""

    totals = [part.median(prefill) + part.median(decode) for part in (line, plain)]
    ratios = [
        over(line.median(prefill), plain.median(prefill)),
        over(line.median(decode), plain.median(decode)),
        over(*totals),
        over(line.peak_bytes, plain.peak_bytes),
    ]
    cells = [
        f"{first.prompt:,}", str(first.genomes), first.contender, f"{line.median('prefill_seconds'):.3f}",
        f"{line.median('prefill_cpu_seconds'):.2f}", ratios[0],
        f"{1000 * line.median(decode) / first.decoded:.2f}", ratios[1], ratios[2],
        f"{line.peak_bytes / 1e6:,.0f}", ratios[3], f"{first.held_bytes / 1e6:,.1f}", f"{first.state_bytes / 1e6:,.1f}",
        f"{first.held_tokens:,.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def parts_row(prompt: int, seconds: dict[str, float]) -> str:
    """Markdown: seconds by part, and the memory's own over the model's (attention with it)."""
    own = sum(seconds[part] for part in OWN)
    ratio = own / (seconds["model"] + seconds["attention"])
    parts = " | ".join(f"{value:.3f}" for value in seconds.values())
    return f"| {prompt:,} | {parts} | {sum(seconds.values()):.3f} | {ratio:.0%} |"


def drawn(lines: Sequence[Line]) -> str:
    """CPU seconds of prefill and decoding together over the length of the prompt, as a multiple of plain SDPA's."""
    by_name: dict[str, dict[int, Line]] = {}
    for line in lines:
        if line.readings[0].genomes == 1 and line.readings[0].rows == 1:
            by_name.setdefault(line.readings[0].contender, {})[line.readings[0].prompt] = line
    plain = by_name[PLAIN]
    curves = []
    for name, measured_lines in by_name.items():
        ratios = [
            [
                (reading.prefill_cpu_seconds + reading.decode_cpu_seconds)
                / statistics.median(p.prefill_cpu_seconds + p.decode_cpu_seconds for p in plain[prompt].readings)
                for reading in line.readings
            ]
            for prompt, line in sorted(measured_lines.items())
        ]
        curves.append(
            Curve(
                name=name,
                x=sorted(measured_lines),
                y=[statistics.median(values) for values in ratios],
                low=[min(values) for values in ratios],
                high=[max(values) for values in ratios],
            )
        )
    curves.sort(key=lambda curve: curve.name != "even")
    return picture(
        curves,
        title="Seconds to read a prompt and decode 64 tokens, of plain SDPA's",
        x_label="tokens of the prompt (log)",
        y_label="seconds, of plain SDPA's",
        axes=Axes({x: f"{x // 1024}k" for x in sorted(plain)}, {y / 4: f"{y / 4:g}" for y in range(9)}),
    )


def contenders_of(
    model: PreTrainedModel, shape: Shape, prompt: int, options: argparse.Namespace
) -> dict[str, Memory | None]:
    """By name; None is the model without a memory."""
    found: dict[str, Memory | None] = {PLAIN: None}
    for name in options.contenders:
        if name in RIVALS:
            found[name] = rival(name, shape, options.kept)
        elif options.cap and name == "even":
            found[name] = capped(name, options.kept, 1, model)
        else:
            found[name] = calibrated(model, shape, name, [options.kept], prompt)
    return found


def blocks_of(model: PreTrainedModel, shape: Shape, prompt: int, options: argparse.Namespace) -> dict[int, Memory]:
    """Blocks of genomes that keep from half to one and a half times as much, by their size."""
    found: dict[int, Memory] = {}
    for count in options.genomes:
        if count > 1 and options.cap:
            found[count] = capped("even", options.kept, count, model)
        elif count > 1:
            shares = [0.5 + index / (count - 1) for index in range(count)]
            found[count] = calibrated(model, shape, "even", [round(options.kept * share) for share in shares], prompt)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print, line by line."""
    device, shape = torch.device(options.device), MODELS[options.model]
    model = shape.model(device, DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")])
    lines, profiles = [], {}
    print(f"{options.model} on {device_name(device)}, torch {torch.__version__}\n\n{HEADER}", flush=True)
    for prompt in options.prompts:
        ids = prompt_ids(shape, options.rows, prompt, device)
        contenders, blocks = contenders_of(model, shape, prompt, options), blocks_of(model, shape, prompt, options)
        warm_up([*contenders.values(), *blocks.values()], model, ids)
        found = measured(contenders, model, ids, options.decoded, options.repeats)
        for count, block in blocks.items():
            found += measured({f"even x {count}": block}, model, ids, options.decoded, options.block_repeats)
        for line in found:
            print(row(line, found[0], device), flush=True)
        lines += found
        for name in MEMORIES:
            if (memory := contenders.get(name)) is not None:
                profiles[f"{name} {prompt}"] = seconds = profile(model, memory, ids)
                print(f"parts of {name}: {parts_row(prompt, seconds)}", flush=True)
    if options.picture:
        options.picture.write_text(drawn(lines))
    return {"lines": [dataclasses.asdict(line) for line in lines], "profiles": profiles}


def warm_up(memories: Sequence[Memory | None], model: PreTrainedModel, ids: Tensor) -> None:
    """Work space is allocated, tables are cached, kernels are compiled."""
    for memory in memories:
        if memory is None:
            read_plain(model, ids[:, :1_100], 2)
        else:
            read_under(model, "", memory, ids[:, :1_100], 4)


def device_name(device: torch.device) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, default="small", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--contenders", nargs="+", default=[*MEMORIES, *RIVALS], help="default: %(default)s")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1_024, 2_048, 4_096, 8_192, 16_384], help="tokens")
    parser.add_argument("--rows", type=int, default=1, help="examples in the batch (default: %(default)s)")
    parser.add_argument("--genomes", type=int, nargs="+", default=[1], help="sizes of blocks (default: %(default)s)")
    parser.add_argument("--kept", type=int, default=500, help="tokens by layer and KV head (default: %(default)s)")
    parser.add_argument("--cap", action="store_true", help="keep exactly so many, by the cap, not by a fitting bias")
    parser.add_argument("--decoded", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--block-repeats", type=int, default=3, help="of blocks (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--picture", type=Path, help="SVG file to draw")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    figures = run(options)
    if options.json:
        options.json.write_text(json.dumps(figures))
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

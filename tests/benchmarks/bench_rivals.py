"""Memories of several seeds against every rival at equal bytes, on held-out documents of several lengths.

    python -m tests.benchmarks.bench_rivals --model DIR --device cuda --memories runs/token-choice/offsets-seed? \
        --lengths 2048 4096 8192 --documents 12 8 4 --processes 10 --out runs/rivals.jsonl

Every rival holds what the memory holds, in three splits (``orchestrator/evaluation.py``), and is measured once for each
seed. A cell is the median over the seeds, with the lowest and the highest; a difference is paired by document, and its
interval is a bootstrap over the documents. ``--print FILE …`` prints the tables of earlier
measurements.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from orchestrator.config import UnitSettings
from orchestrator.evaluation import ALLOCATIONS, CONTROL, FULL, MEMORY, Allocation, EvaluationPlan, evaluate
from orchestrator.units import plan_units
from tasks.corpus_task import CorpusTaskSettings
from tests.benchmarks.bench_token_choice import KINDS
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.memory.dial import find_threshold
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import MemorySpec, RivalName, RivalSpec
from workers.settings import ModelSettings

OTHER_KINDS = ("text_kvdense", "text_next_line", "text_passage_line")
"""Never evolved on."""
RIVALS: tuple[RivalName, ...] = tuple(name for name in get_args(RivalName) if name != "full")
RESAMPLES = 2000
DIAL_DOCUMENTS = 2
"""Of each kind, that a dial is turned on."""
DialUnit = Literal["tokens", "bytes"]
"""``tokens``: held in the end. ``bytes``: of keys and values, averaged over the text."""

Row = dict[str, Any]
"""One memory or rival on one task, for one seed."""


@dataclass(frozen=True)
class Job:
    """What one process does in one go."""

    memory: str
    kind: str
    length: int
    documents: int
    rivals: tuple[RivalName, ...]
    """What the memory is compared with; none for one that stands beside."""
    allocations: tuple[Allocation, ...] = ALLOCATIONS


_EVALUATOR: list[Evaluator] = []


def prepare(model: ModelSettings, tasks: tuple[CorpusTaskSettings, ...]) -> None:
    """Load the model in a process."""
    torch.set_num_threads(1)
    _EVALUATOR[:] = [EvaluatorRecipe(model=model, tasks=tasks).build()]


def measure(job: Job) -> list[Row]:
    """The memory, the full cache, all rivals and the control on one task."""
    memory = PretrainedMemory.from_pretrained(job.memory)
    name = f"{job.kind}-{job.length}"
    plan = EvaluationPlan(
        generation=1,
        examples={name: tuple(range(job.documents))},
        control_examples=(0,) if job.allocations == ALLOCATIONS and job.rivals else (),
        rivals=job.rivals,
        units=UnitSettings(candidates_per_unit=1, examples_per_unit=max(1, 16_384 // job.length)),
        seed=0,
        score="graded",
        allocations=job.allocations,
    )
    beside = Path(job.memory).name
    results = evaluate(memory, plan, lambda units: [_EVALUATOR[0].score(unit) for unit in units])
    if not job.rivals:
        results = [replace(result, name=beside) for result in results if result.name == MEMORY]
    about = {"memory": Path(job.memory).name, "kind": job.kind, "length": job.length}
    return [about | result.document() | {"by_document": list(result.exact_by_example)} for result in results]


def measured(model: ModelSettings, jobs: Sequence[Job], processes: int) -> Iterator[list[Row]]:
    """The rows of each job as it ends."""
    places = dict.fromkeys((job.kind, job.length) for job in jobs)
    tasks = tuple(CorpusTaskSettings(kind=kind, length=length) for kind, length in places)  # type: ignore[arg-type]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=prepare, initargs=(model, tasks)) as pool:
        for done in as_completed([pool.submit(measure, job) for job in jobs]):
            yield done.result()


def turned(
    model: ModelSettings, folders: Sequence[str], wanted: float, length: int, out: Path, unit: DialUnit = "tokens"
) -> list[str]:
    """The memories with their dials turned until they hold so much of training documents of each kind; new folders."""
    prepare(model, tuple(CorpusTaskSettings(kind=kind, length=length) for kind in KINDS))  # type: ignore[arg-type]
    found = []
    for folder in folders:
        memory = PretrainedMemory.from_pretrained(folder)
        at = find_threshold(_held_by(memory, length, unit), wanted)
        found.append(str(out / f"{Path(folder).name}-{unit}-{wanted:g}"))
        spec = replace(memory.spec, threshold=at.threshold)
        memory.turned(spec, {f"kept_{unit}": wanted, "reached": at.kept}).save_pretrained(found[-1])
    return found


def _held_by(memory: PretrainedMemory, length: int, unit: DialUnit) -> Callable[[float], float]:
    """What a memory holds at a threshold, as a share of what the full cache holds of the same documents."""

    def held(spec: MemorySpec, genome: np.ndarray) -> float:
        units = plan_units(
            generation=0,
            memory_name=MEMORY,
            memory=spec,
            genomes=genome[None],
            examples={f"{kind}-{length}": tuple(range(DIAL_DOCUMENTS)) for kind in KINDS},
            split="train",
            settings=UnitSettings(candidates_per_unit=1, examples_per_unit=DIAL_DOCUMENTS),
            score="graded",
        )
        scored = [_EVALUATOR[0].score(each) for each in units]
        column = "held_tokens" if unit == "tokens" else "mean_bytes"
        return float(np.mean([getattr(each, column) for each in scored]))

    whole = held(RivalSpec(name="full", update_every=memory.spec.settings.update_every), np.zeros(0, np.float32))
    return lambda threshold: held(replace(memory.spec, threshold=threshold), memory.genome) / whole


def jobs_for(
    memories: Sequence[str],
    beside: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    template: Job,
    others: Sequence[str],
) -> list[Job]:
    """The longest first; ``sizes`` are lengths and how many documents of each.

    Kinds that were never evolved on (``others``) are asked at the first length only.
    """
    places = [(kind, *size) for size in sorted(sizes, reverse=True) for kind in KINDS]
    places += [(kind, *sizes[0]) for kind in others]
    jobs = [
        replace(template, memory=memory, kind=kind, length=length, documents=documents)
        for kind, length, documents in places
        for memory in (*memories, *beside)
    ]
    return [replace(job, rivals=()) if job.memory in beside else job for job in jobs]


# The tables ----------------------------------------------------------------------------------------------------------


def spread(values: Iterable[float], form: str = "{:.3f}") -> str:
    """Median, lowest and highest."""
    listed = list(values)
    low, median, high = (form.format(value) for value in (min(listed), statistics.median(listed), max(listed)))
    return median if low == high else f"{median} ({low}–{high})"


def table(rows: Sequence[Row]) -> str:
    """Exact match over the kinds that were evolved on: rivals down, lengths across."""
    evolved = [row for row in rows if row["kind"] in KINDS]
    lengths = sorted({row["length"] for row in evolved})
    scores = {(name, length): _by_seed(evolved, name, length, "exact") for name in _names(rows) for length in lengths}
    first = [FULL, MEMORY]
    names = first + sorted(
        (name for name in _names(rows) if name not in first),
        key=lambda name: -statistics.median(scores[name, lengths[0]]),
    )
    lines = [f"| memory | {' | '.join(f'{length:,}' for length in lengths)} |", f"|---|{'---|' * len(lengths)}"]
    lines += [_line(name, [spread(scores[name, length]) for length in lengths]) for name in names]
    figures: dict[str, Callable[[int], str]] = {
        "*kept by namm*": lambda length: spread(_by_seed(evolved, MEMORY, length, "kept_ratio"), "{:.1%}"),
        "*of the full cache's score*": lambda length: spread(
            map(_share, scores[MEMORY, length], scores[FULL, length]), "{:.1%}"
        ),
        "*mean KB, of full*": lambda length: " of ".join(
            spread([size / 1024 for size in _by_seed(evolved, name, length, "mean_bytes")], "{:,.0f}")
            for name in (MEMORY, FULL)
        ),
        "*state KB*": lambda length: spread(
            [size / 1024 for size in _by_seed(evolved, MEMORY, length, "state_bytes")], "{:,.0f}"
        ),
    }
    lines += [_line(title, [cell(length) for length in lengths]) for title, cell in figures.items()]
    return "\n".join(lines)


def differences(rows: Sequence[Row]) -> str:
    """How much more the memory answers than each rival, paired by document, with 95 % intervals."""
    evolved = [row for row in rows if row["kind"] in KINDS]
    lengths = sorted({row["length"] for row in evolved})
    rivals = [name for name in _names(rows) if name not in (FULL, MEMORY)]
    lines = [f"| namm less | {' | '.join(f'{length:,}' for length in lengths)} |", f"|---|{'---|' * len(lengths)}"]
    lines += [_line(rival, [_difference(evolved, rival, length) for length in lengths]) for rival in rivals]
    return "\n".join(lines)


def by_task(rows: Sequence[Row], length: int) -> str:
    """Tasks down, the memory and its strongest rivals across."""
    shown = [FULL, MEMORY, *(f"{name}-head" for name in ("tova", "h2o", "recent", "snapkv")), "snapkv-layer"]
    shown += ["snapkv-uniform", "truncation", CONTROL]
    shown = [name for name in shown if name in _names(rows)]
    at = [row for row in rows if row["length"] == length]
    lines = [f"| task, {length:,} tokens | {' | '.join(shown)} | kept |", f"|---|{'---|' * (len(shown) + 1)}"]
    for kind in dict.fromkeys(row["kind"] for row in at):
        these = [row for row in at if row["kind"] == kind]
        cells = [spread(_by_seed(these, name, length, "exact"), "{:.2f}") for name in shown]
        lines.append(_line(kind, [*cells, spread(_by_seed(these, MEMORY, length, "kept_ratio"), "{:.0%}")]))
    return "\n".join(lines)


def _share(mine: float, full: float) -> float:
    return mine / full if full else math.nan


def _line(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows))


def _by_seed(rows: Sequence[Row], name: str, length: int, key: str) -> list[float]:
    """Means over the kinds, seed by seed."""
    seeds: dict[str, list[float]] = {}
    for row in rows:
        if row["name"] == name and row["length"] == length:
            seeds.setdefault(row["memory"], []).append(row[key])
    return [statistics.fmean(values) for values in seeds.values()]


def _difference(rows: Sequence[Row], rival: str, length: int) -> str:
    """Documents are resampled kind by kind; seeds, which share the documents, are averaged first."""
    by_kind: list[np.ndarray] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        these = [row for row in rows if row["kind"] == kind and row["length"] == length]
        mine, other = (
            np.array([row["by_document"] for row in these if row["name"] == name]) for name in (MEMORY, rival)
        )
        by_kind.append((mine - other).mean(axis=0))
    rng = np.random.default_rng(0)
    resampled = [
        np.mean([each[rng.integers(len(each), size=len(each))].mean() for each in by_kind]) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return f"{np.mean([each.mean() for each in by_kind]):+.3f} ({low:+.3f}–{high:+.3f})"


def printed(rows: Sequence[Row]) -> str:
    """All tables."""
    rows = sorted(rows, key=lambda row: (row["memory"], row["length"], (*KINDS, *OTHER_KINDS).index(row["kind"])))
    shortest = min(row["length"] for row in rows)
    return "\n\n".join((table(rows), differences(rows), by_task(rows, shortest)))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a medium Llama")
    parser.add_argument("--memories", nargs="+", help="folders, one a seed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--beside", nargs="*", default=[], help="folders of memories without rivals of their own")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS, default=ALLOCATIONS)
    parser.add_argument("--others", nargs="*", default=OTHER_KINDS, help="kinds that were never evolved on")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--kept-ratio", type=float, help="turn the dial of each memory to this share of the tokens first")
    dial.add_argument("--kept-bytes", type=float, help="or to this share of the bytes, averaged over the text")
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--documents", nargs="+", type=int, default=[12, 8, 4], help="of each kind, by length")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/rivals.jsonl"))
    parser.add_argument("--print", type=Path, nargs="+", dest="earlier", metavar="FILE")
    options = parser.parse_args()
    if options.earlier is None:
        dtype = "float32" if options.device == "cpu" else "bfloat16"
        model = ModelSettings(path_or_id=options.model, device=options.device, dtype=dtype)
        sizes = list(zip(options.lengths, options.documents, strict=True))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        memories = options.memories
        wanted: tuple[tuple[float | None, DialUnit], ...] = (
            (options.kept_ratio, "tokens"),
            (options.kept_bytes, "bytes"),
        )
        for share, unit in wanted:
            if share is not None:
                memories = turned(model, memories, share, sizes[0][0], options.out.parent, unit)
        template = Job("", "", 0, 0, tuple(options.rivals), tuple(options.allocations))
        jobs = jobs_for(memories, options.beside, sizes, template, options.others)
        with options.out.open("w", encoding="utf-8") as lines:  # a line a job, so that nothing is lost with the rest
            for number, rows in enumerate(measured(model, jobs, options.processes), 1):
                lines.writelines(f"{json.dumps(row)}\n" for row in rows)
                lines.flush()
                print(f"{number} of {len(jobs)}", file=sys.stderr, flush=True)
    files = options.earlier or [options.out]
    print(printed([json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()

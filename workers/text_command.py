"""``python -m workers.training --preset medium``: the options, the progress line, the table and the card."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tasks.corpus_task import CorpusTaskSettings
from tasks.errors import TaskError
from workers.checksum import weights_sha256
from workers.errors import ModelError
from workers.evaluator import Evaluator, EvaluatorRecipe
from workers.language_model import load_tokenizer
from workers.memory.specs import RivalSpec
from workers.placement import require_device
from workers.settings import ModelSettings
from workers.text_curriculum import TRAINED_KINDS
from workers.text_model import TextShape
from workers.text_training import TextProgress, TextTraining, train_text
from workers.training_parts import at_least, exit_code, make_folder
from workers.unit import Unit

PRESETS = ("small", "medium")
MEASURED_LENGTHS = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class TextMeasurement:
    """How a model with its full cache fares on one task over real text."""

    task: str
    length: int
    num_examples: int
    """Held-out examples of four questions each."""
    exact: float
    """Share of questions answered exactly, the earlier answers of the example given right; NaN where a document of
    that length has no room for its questions."""


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for a model over real text."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--preset", default="small")
    try:
        return str(parser.parse_known_args(list(arguments))[0].preset) == "medium"
    except argparse.ArgumentError:
        return False


def main(arguments: Sequence[str], shape: TextShape | None = None) -> int:
    """Runs the command; returns the exit code. ``shape`` is the medium Llama's unless given."""
    options = _parser().parse_args(list(arguments))
    torch.set_num_threads(1 if options.device != "cpu" or options.minutes is None else _cores())
    return exit_code(lambda: _run(options, shape or TextShape(), arguments))


def _run(options: argparse.Namespace, shape: TextShape, arguments: Sequence[str]) -> None:
    require_device(options.device, "--device")
    if options.eval_only is not None:
        print(table(measure(options.eval_only, options.device, options.examples, options.corpus)))
    else:
        make_folder(options.out)
        _train(options, shape, arguments)


def _train(options: argparse.Namespace, shape: TextShape, arguments: Sequence[str]) -> None:
    training = TextTraining(
        shape=shape,
        seed=options.seed,
        minutes=None if options.steps_limit else options.minutes,
        steps=options.steps_limit,
        device=options.device,
        corpus=options.corpus,
        processes=options.processes,
    )
    started = time.monotonic()
    model = train_text(options.out, training, _Line(), lambda line: print(line, flush=True))
    minutes = (time.monotonic() - started) / 60
    num_parameters = sum(weight.numel() for weight in model.parameters())
    measurements = measure(options.out, options.device, options.examples, options.corpus)
    print(table(measurements))
    command = shlex.join(["python", "-m", "workers.training", *arguments])
    card = text_model_card(command, minutes, num_parameters, weights_sha256(options.out), measurements)
    (options.out / "README.md").write_text(card, encoding="utf-8")


class _Line:
    """A line of progress every few seconds."""

    def __init__(self) -> None:
        self._said = -math.inf

    def __call__(self, progress: TextProgress) -> None:
        if time.monotonic() - self._said < 5.0 and progress.share < 1.0:
            return
        self._said = time.monotonic()
        answers = "" if math.isnan(progress.accuracy) else f"  accuracy {progress.accuracy:.3f}"
        print(
            f"step {progress.step:6d}  {progress.share:6.1%}  {progress.level:10s}  loss {progress.loss:6.3f}{answers}"
            f"  {progress.tokens_per_second:,.0f} tokens/s",
            flush=True,
        )


def measure(
    folder: Path, device: str, num_examples: int, corpus: Path | None = None, kinds: Sequence[str] = TRAINED_KINDS
) -> list[TextMeasurement]:
    """Exact match on held-out examples by task and length, for all lengths that the model was made for.

    Raises:
        ModelError: there is no model in ``folder``.
        TaskError: the corpus has too little text.
    """
    longest = _max_tokens(folder)
    wanted = [(kind, length) for kind in kinds for length in MEASURED_LENGTHS if length <= longest]
    place = None if corpus is None else str(corpus)
    tasks = tuple(CorpusTaskSettings(kind=kind, length=length, corpus=place) for kind, length in wanted)  # type: ignore[arg-type]
    dtype = "float32" if device == "cpu" else "bfloat16"
    evaluator = EvaluatorRecipe(
        model=ModelSettings(path_or_id=str(folder), device=device, dtype=dtype), tasks=tasks
    ).build()
    return [_measured(evaluator, task, num_examples) for task in tasks]


def _max_tokens(folder: Path) -> int:
    if not (folder / "config.json").is_file():
        raise ModelError(f"no model in {folder}; train one: python -m workers.training --preset medium --out {folder}")
    return load_tokenizer(ModelSettings(path_or_id=str(folder)))[1]


def _measured(evaluator: Evaluator, task: CorpusTaskSettings, num_examples: int) -> TextMeasurement:
    unit = Unit(
        generation=0,
        memory_name="full",
        memory=RivalSpec(name="full"),
        task=task.name,
        split="heldout",
        examples=tuple(range(num_examples)),
        candidates=(0,),
        genomes=np.zeros((1, 0), np.float32),
    )
    try:
        exact = float(evaluator.score(unit).exact.mean())
    except TaskError:  # the questions of some kinds do not fit the shortest documents with every tokenizer
        exact = math.nan
    return TextMeasurement(task.kind, task.length, num_examples, exact)


def table(measurements: Sequence[TextMeasurement]) -> str:
    """Tasks down, lengths across, in Markdown."""
    lengths = sorted({row.length for row in measurements})
    exact = {(row.task, row.length): row.exact for row in measurements}
    lines = [f"| task | {' | '.join(f'{length:,}' for length in lengths)} |", f"|---{'|---:' * len(lengths)}|"]
    for task in dict.fromkeys(row.task for row in measurements):
        cells = [exact[task, length] for length in lengths]
        lines.append(f"| {task} | {' | '.join('–' if math.isnan(cell) else f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines)


def text_model_card(
    command: str, minutes: float, num_parameters: int, sha256: str, measurements: Sequence[TextMeasurement]
) -> str:
    """README.md of a trained model, in Hugging Face's format."""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, retrieval, namm]
---

# medium-llama

A `LlamaForCausalLM` of {num_parameters:,} parameters that looks things up in real code and prose. It exists so that
memories can be evolved on a real tokenizer, several layers and long prompts; as a language model it is of little use.
The SHA-256 of its weights, for `model.sha256`, is `{sha256}`.

## Training

    {command}

took {minutes:.1f} minutes. The text is that of the corpus's training files (by default the standard library of the
Python that ran, its docstrings and the language reference); held-out files and words were never seen.

## Accuracy

Exact match on {measurements[0].num_examples} held-out examples of each task and length, four questions each, earlier
answers of an example given right.

{table(measurements)}
"""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def minutes_above_zero(text: str) -> float:
    """A type for argparse: a time above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}; give a number of minutes above 0")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.training",
        description="Trains a Llama of 13 million parameters over real text from nothing. Interrupted, the same "
        "command goes on.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="medium", help="which model (default: small)")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="train a model, measure it and write it here")
    place.add_argument("--eval-only", type=Path, metavar="DIR", help="measure the model in this folder, change nothing")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="folder of text (default: Python's own library)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    counts = parser.add_argument_group("numbers")
    counts.add_argument(
        "--minutes", type=minutes_above_zero, default=10.0, help="wall-clock time (default: %(default)s)"
    )
    counts.add_argument("--steps-limit", type=at_least(1), metavar="N", help="count steps instead of minutes")
    counts.add_argument("--seed", type=at_least(0), default=1, help="decides weights and rows (default: %(default)s)")
    counts.add_argument(
        "--processes", type=at_least(0), default=0, metavar="N", help="that make rows beside the one that trains"
    )
    counts.add_argument(
        "--examples", type=at_least(1), default=8, metavar="N", help="held-out examples per figure (default: 8)"
    )
    return parser

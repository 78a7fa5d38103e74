"""Trains the small Llama that this repository ships: ``python -m workers.training --out DIR``.

A decoder of two layers learns to look facts up in documents of up to 1,024 tokens within a few CPU-minutes. Nothing
but the answers enters the loss. One head starts with a bias towards the previous token, because without it retrieval
does not appear in reasonable time, and the KV heads of the last layer are made to share the keys, so that no single one
does all the work; everything else is learned.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasks.registry import GeneratedTaskSettings, TaskKind, build_task
from tasks.task import Example
from tasks.words import BOS, EOS, KEYS, PAD, VOCABULARY, split_text
from workers import text_command
from workers.curriculum import LEVELS, Batch, Curriculum, draw_batch
from workers.errors import ModelError
from workers.language_model import load_language_model, without_progress_bars
from workers.model_card import Measurement, model_card
from workers.settings import ModelSettings
from workers.shapes import PEAK_LEARNING_RATE, SHAPES, SMALL_LLAMA, Shape
from workers.shared_retrieval import SHARED_STEPS_SHARE, keys_shared_among_kv_heads
from workers.training_parts import at_least, exit_code, learning_rate_share, look_at_previous_token, make_folder
from workers.word_tokenizer import TOKEN_IDS, build_tokenizer

MAX_LENGTH_TOKENS = 4096

MEASURED_CASES = ((256, 8), (512, 8), (1024, 8), (2048, 8), (256, 16), (512, 16))
"""Length in tokens and number of facts of the documents whose accuracy is on the model card."""


def new_model(seed: int, shape: Shape = SHAPES[SMALL_LLAMA]) -> LlamaForCausalLM:
    """A fresh model in float32, a function of ``seed`` and ``shape``; that of the shipped one has 264k parameters."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(shape))
    embedding = model.model.embed_tokens.weight.data
    # Tied or small embeddings stay at guessing: facts have to stand out from the residual stream from the start.
    embedding.normal_(std=1.0)
    model.lm_head.weight.data.copy_(0.04 * 128 / shape.hidden_size * embedding)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    look_at_previous_token(model)
    return model


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_query_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        attention_bias=True,
        tie_word_embeddings=False,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        initializer_range=shape.hidden_size**-0.5,
        bos_token_id=TOKEN_IDS[BOS],
        eos_token_id=TOKEN_IDS[EOS],
        pad_token_id=TOKEN_IDS[PAD],
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """What one optimiser step did."""

    step: int
    level: str
    loss: float
    """Cross entropy per answer token, nats."""
    accuracy: float
    """Share of answer tokens predicted, 0 to 1."""


def train(
    model: LlamaForCausalLM,
    seed: int,
    num_steps: int,
    report: Callable[[Progress], None],
    peak_learning_rate: float = PEAK_LEARNING_RATE,
    minutes: float | None = None,
) -> int:
    """Trains ``model`` in place; a function of its weights, seed, steps and learning rate on one thread.

    With ``minutes`` the clock decides how many steps there are, and ``num_steps`` only what they are trained on.

    Returns:
        Optimiser steps that were made.
    """
    run = _Run(model, np.random.default_rng([seed, num_steps]), peak_learning_rate)
    started = time.monotonic()

    def share(step: int) -> float:
        return step / num_steps if minutes is None else (time.monotonic() - started) / (60 * minutes)

    num_shared = round(SHARED_STEPS_SHARE * num_steps)
    step = 0
    model.train()
    with keys_shared_among_kv_heads(model, [model.model.layers[-1].self_attn], [TOKEN_IDS[key] for key in KEYS]):
        while step < num_shared if minutes is None else share(step) < SHARED_STEPS_SHARE:
            report(run.step(step, share(step)))
            step += 1
    while (done := share(step)) < 1.0:
        report(run.step(step, done))
        step += 1
    model.eval()
    return step


class _Run:
    """The state of a training run between steps."""

    def __init__(self, model: LlamaForCausalLM, rng: np.random.Generator, peak_learning_rate: float) -> None:
        self._model = model
        self._rng = rng
        self._peak_learning_rate = peak_learning_rate
        self._curriculum = Curriculum()
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )

    def step(self, step: int, share: float) -> Progress:
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_learning_rate * learning_rate_share(step, share)
        level = self._curriculum.next_level(self._rng)
        loss, accuracy = _answers_loss(self._model, draw_batch(LEVELS[level], self._rng))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._curriculum.report(level, accuracy)
        return Progress(step=step, level=LEVELS[level].name, loss=loss.item(), accuracy=accuracy)


def _answers_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = batch.is_answer[:, 1:]
    logits = model.lm_head(hidden[wanted])
    gold = batch.ids[:, 1:][wanted]
    accuracy = (logits.argmax(-1) == gold).float().mean().item()
    return functional.cross_entropy(logits, gold), accuracy


# Measuring -----------------------------------------------------------------------------------------------------------


def exact_match(model: LlamaForCausalLM, examples: Sequence[Example]) -> float:
    """Share of questions whose answer is the model's first choice, earlier questions of the example given right.

    Args:
        model: in evaluation mode.
        examples: of one token length.
    """
    hits: list[bool] = []
    rows_per_batch = max(1, 8192 // len(_row_ids(examples[0])))
    for start in range(0, len(examples), rows_per_batch):
        ids = torch.tensor([_row_ids(example) for example in examples[start : start + rows_per_batch]])
        with torch.inference_mode():
            choices = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        answers = _answer_places(examples[start])
        hits += (choices[:, answers - 1] == ids[:, answers]).flatten().tolist()
    return sum(hits) / len(hits)


def _row_ids(example: Example) -> list[int]:
    words = [BOS, *split_text(example.prompt)]
    for question in example.questions:
        words += [*split_text(question.text), question.answer]
    return [TOKEN_IDS[word] for word in words]


def _answer_places(example: Example) -> torch.Tensor:
    """int64 ``[questions]``: where the answers are in the row of an example; the same for all examples of a task."""
    ends = np.cumsum([len(split_text(question.text)) + 1 for question in example.questions])
    return torch.from_numpy(len(split_text(example.prompt)) + ends)


def measure(model: LlamaForCausalLM, num_examples: int) -> list[Measurement]:
    """Accuracy on held-out examples by kind, length and number of facts."""
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    return [_measure_case(model, kind, *case, num_examples) for case in MEASURED_CASES for kind in kinds]


def _measure_case(
    model: LlamaForCausalLM, kind: TaskKind, length: int, num_facts: int, num_examples: int
) -> Measurement:
    task = build_task(GeneratedTaskSettings(kind=kind, length=length, num_facts=num_facts))
    examples = [task.example("heldout", index) for index in range(num_examples)]
    return Measurement(kind, length, num_facts, num_examples, exact_match(model, examples))


# The command ---------------------------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes weights, configuration and tokenizer to ``folder``."""
    model.generation_config = GenerationConfig(
        bos_token_id=TOKEN_IDS[BOS], eos_token_id=TOKEN_IDS[EOS], pad_token_id=TOKEN_IDS[PAD], do_sample=False
    )
    with without_progress_bars():
        model.save_pretrained(folder)
    build_tokenizer(MAX_LENGTH_TOKENS).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if text_command.is_meant(given):
        return text_command.main(given)
    options = _parser().parse_args(given)
    torch.set_num_threads(1)  # the result must not depend on the machine's cores, and more threads are slower
    return exit_code(lambda: _train(options) if options.eval_only is None else _evaluate(options))


def _evaluate(options: argparse.Namespace) -> None:
    folder: Path = options.eval_only
    if not (folder / "model.safetensors").is_file():
        remedy = f"train a model with: python -m workers.training --out {folder}"
        raise ModelError(f"no model.safetensors in {folder}; {remedy}")
    model = load_language_model(ModelSettings(path_or_id=str(folder))).model
    if model.config.vocab_size != len(VOCABULARY):
        raise ModelError(
            f"the model in {folder} knows {model.config.vocab_size:,} tokens, the small one {len(VOCABULARY)} words: "
            "measure a model of real text with --preset medium"
        )
    _print_table(measure(model, options.examples))


def _train(options: argparse.Namespace) -> None:
    make_folder(options.out)
    start_seconds = time.process_time()
    shape = SHAPES[options.shape]
    num_steps = options.steps_limit or shape.num_steps
    model = new_model(options.seed, shape)
    made = train(model, options.seed, num_steps, _print_progress, shape.peak_learning_rate, options.minutes)
    length = f"--steps-limit {num_steps}" if options.minutes is None else f"--minutes {options.minutes:g}"
    print(f"{made} steps")
    cpu_seconds = time.process_time() - start_seconds
    save(model, options.out)
    measurements = measure(model, options.examples)
    _print_table(measurements)
    card = model_card(options.shape, options.seed, length, cpu_seconds, measurements, model.num_parameters())
    (options.out / "README.md").write_text(card, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.training", description=__doc__)
    parser.add_argument(
        "--preset",
        choices=text_command.PRESETS,
        default="small",
        help="small: the model of this repository; medium: one that reads real text (its own options: --preset medium "
        "--help)",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="DIR", help="train a model, measure it and write it here")
    place.add_argument("--eval-only", type=Path, metavar="DIR", help="measure the model in this folder, change nothing")
    counts = parser.add_argument_group("numbers")
    counts.add_argument(
        "--seed",
        type=at_least(0),
        default=1,
        help="decides weights and documents (default: %(default)s, the seed of the model that is kept)",
    )
    length = counts.add_mutually_exclusive_group()
    length.add_argument(
        "--steps-limit",
        type=at_least(1),
        metavar="N",
        help="optimiser steps, over which the learning rate falls (default: the shape's, about five CPU-minutes)",
    )
    length.add_argument(
        "--minutes", type=text_command.minutes_above_zero, metavar="M", help="wall-clock time instead of steps"
    )
    parser.add_argument(
        "--shape", choices=tuple(SHAPES), default=SMALL_LLAMA, help="of the model (default: %(default)s)"
    )
    counts.add_argument(
        "--examples",
        type=at_least(1),
        default=64,
        metavar="N",
        help="held-out examples per accuracy figure (default: %(default)s)",
    )
    return parser


def _print_progress(progress: Progress) -> None:
    if progress.step % 25 == 0:
        answers = f"loss {progress.loss:6.3f}  accuracy {progress.accuracy:.3f}"
        print(f"step {progress.step:5d}  {progress.level:10s}  {answers}", flush=True)


def _print_table(measurements: Sequence[Measurement]) -> None:
    for row in measurements:
        print(f"{row.kind:12s} length {row.length:5d}  facts {row.num_facts:3d}  exact match {row.exact_match:.3f}")


if __name__ == "__main__":
    sys.exit(main())

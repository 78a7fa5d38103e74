"""Trains a Llama over real text from nothing: ``python -m workers.training --preset medium --out DIR --minutes 10``.

A byte-pair tokenizer is learned from the corpus, then a decoder of six layers learns to look things up in code and
prose of up to 8,192 tokens (``workers.text_curriculum``). Matrices are trained by Muon, the rest by AdamW; one head
starts with a bias towards the previous token. An interrupted training goes on where it was last saved.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.corpus import read_corpus
from workers.errors import ModelError
from workers.line_encoder import LineEncoder
from workers.text_curriculum import LEVELS, Level, Row, RowMaker, TextCurriculum
from workers.training_parts import learning_rate_share, look_at_previous_token

MUON_LEARNING_RATE, ADAM_LEARNING_RATE, EMBEDDING_LEARNING_RATE = 0.02, 2e-3, 6e-3
SAVE_SECONDS = 60.0
"""Between two savings of an unfinished training."""
STEPS_AHEAD = 4
"""Steps whose rows are asked for in advance, so that rows are made while the model learns. Their levels are chosen then
too, by what was known of the curriculum at that step: the result does not depend on who is faster."""
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
STATE = "training"
"""Folder, in that of the model, that an unfinished training is kept in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """What is trained, and on how much at a time; the defaults are the medium Llama's."""

    vocabulary: int = 4096
    hidden: int = 384
    layers: int = 6
    query_heads: int = 6
    kv_heads: int = 3
    head_size: int = 64
    mlp: int = 1024
    max_tokens: int = 8192
    """Longest text that the model is made for; longer levels are left out."""
    tokens_per_step: int = 65_536

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those of the curriculum that fit."""
        return tuple(level for level in LEVELS if level.length <= self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTraining:
    """How long, where and from which seed."""

    shape: TextShape
    seed: int = 1
    minutes: float | None = None
    """Wall-clock time; the learning rate falls with it. None counts steps instead."""
    steps: int | None = None
    device: str = "cpu"
    corpus: Path | None = None
    """Folder of text; None for the standard library of this Python."""
    processes: int = 0
    """That make rows beside the one that trains; 0 makes them in it."""


@dataclass(frozen=True, slots=True)
class TextProgress:
    """What one step did."""

    step: int
    share: float
    """Of the training that is done, 0 to 1."""
    level: str
    loss: float
    """Cross entropy by the weighted token, nats."""
    accuracy: float
    """Share of answer tokens predicted; NaN in a batch without answers."""
    tokens_per_second: float


def train_text(
    folder: Path,
    training: TextTraining,
    report: Callable[[TextProgress], None],
    say: Callable[[str], None] = lambda _line: None,
) -> LlamaForCausalLM:
    """Train, or go on with what ``folder`` holds, and write the finished model there.

    By steps, on one thread, the result is a function of the settings, however often it was interrupted.

    Raises:
        ModelError: the folder holds a training of other settings.
    """
    say("getting ready: the tokenizer, the processes that make rows, the compiler (up to two minutes)")
    run = _Run(folder, training)
    with _row_makers(run.maker, training.processes) as order:
        saved = time.monotonic()
        for progress in run.steps(order):
            report(progress)
            if time.monotonic() - saved > SAVE_SECONDS:
                run.save()
                saved = time.monotonic()
    run.model.eval()
    _write_model(run.model, run.tokenizer, folder)
    run.discard()
    return run.model


def learn_tokenizer(corpus_folder: Path | None, shape: TextShape) -> PreTrainedTokenizerFast:
    """The pairs of the corpus's training text."""
    texts = (source.text for source in read_corpus(corpus_folder).of("train"))
    return pair_tokenizer(texts, shape.vocabulary, shape.max_tokens)


def pair_tokenizer(texts: Iterable[str], vocabulary: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from texts; every line break and digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    isolated = [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*isolated, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_text_model(shape: TextShape, seed: int) -> LlamaForCausalLM:
    """A fresh model in float32, a function of ``seed``."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attention_bias=True,
        tie_word_embeddings=False,
        initializer_range=shape.hidden**-0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.normal_(std=1.0)
    model.lm_head.weight.data.copy_(0.04 * model.model.embed_tokens.weight.data)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    look_at_previous_token(model)
    return model


# One training --------------------------------------------------------------------------------------------------------


Rows = Callable[[], list[Row]]
"""Gives the rows of a step, once they are made."""


@contextmanager
def _row_makers(maker: RowMaker, processes: int) -> Iterator[Callable[[Level, int, int], Rows]]:
    """A function that orders (level, step, number of rows); the rows are the same, in order, whoever makes them."""
    if not processes:
        yield lambda level, step, count: lambda: maker.rows(level, step, range(count))
        return
    # Spawned, because a fork of a process that uses an accelerator may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_take_maker, initargs=(maker,)) as pool:

        def order(level: Level, step: int, count: int) -> Rows:
            size = max(1, count // (2 * processes))  # short rows by the dozen: a message takes longer than such a row
            pieces = [range(start, min(start + size, count)) for start in range(0, count, size)]
            made = [pool.submit(_made, level, step, piece) for piece in pieces]
            return lambda: [row for piece in made for row in piece.result()]

        try:
            yield order
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_MAKERS: list[RowMaker] = []
"""Of this process, once it has been told."""


def _take_maker(maker: RowMaker) -> None:
    _MAKERS[:] = [maker]


def _made(level: Level, step: int, numbers: range) -> list[Row]:
    return _MAKERS[0].rows(level, step, numbers)


class _Run:
    """The state of a training between steps."""

    def __init__(self, folder: Path, training: TextTraining) -> None:
        self._state = folder / STATE
        self._training = training
        self._identity = json.loads(json.dumps({**asdict(training), "minutes": None, "device": None}, default=str))
        self._identity.pop("processes")
        self.step, self.seconds = 0, 0.0
        self.curriculum = TextCurriculum()
        self._planned: list[int] = []
        """Levels of this step and the next ones, whose rows are asked for already."""
        saved = self._saved()
        self.tokenizer = (
            PreTrainedTokenizerFast.from_pretrained(self._state)
            if saved
            else learn_tokenizer(training.corpus, training.shape)
        )
        self.model = new_text_model(training.shape, training.seed).to(training.device)
        self._optimizers = _optimizers(self.model)
        if saved:
            self._load(saved)
        corpus = read_corpus(training.corpus)
        self.maker = RowMaker(corpus, LineEncoder(self.tokenizer), self.tokenizer.bos_token_id, training.seed)

    @property
    def share(self) -> float:
        """Of the training that is done, 0 to 1."""
        if self._training.minutes is not None:
            return min(1.0, self.seconds / (60.0 * self._training.minutes))
        return min(1.0, self.step / (self._training.steps or 1))

    def steps(self, order: Callable[[Level, int, int], Rows]) -> Iterator[TextProgress]:
        """Train until it is done."""
        self.model.train()
        levels = self._training.shape.levels
        ordered: deque[Rows] = deque()
        self._get_ready()
        is_ready = False
        while self.share < 1.0:
            started = time.monotonic()
            while len(self._planned) <= STEPS_AHEAD:
                rng = np.random.default_rng([self._training.seed, self.step + len(self._planned)])
                self._planned.append(min(self.curriculum.next_level(rng, self.share), len(levels) - 1))
            for number in self._planned[len(ordered) :]:
                count = max(1, self._training.shape.tokens_per_step // levels[number].length)
                ordered.append(order(levels[number], self.step + len(ordered), count))
            number, rows = self._planned.pop(0), ordered.popleft()()
            if not is_ready:  # what starting the processes took is no training: the learning rate falls by the clock
                is_ready, started = True, time.monotonic()
            loss, accuracy = self._learn(rows)
            if not np.isnan(accuracy):
                self.curriculum.report(number, accuracy)
            seconds = time.monotonic() - started
            self.step += 1
            self.seconds += seconds
            num_tokens = sum(len(row.ids) for row in rows)
            yield TextProgress(self.step, self.share, levels[number].name, loss, accuracy, num_tokens / seconds)

    def _get_ready(self) -> None:
        """Have the layers compiled, on rows of nothing, before the clock runs."""
        if self._training.device == "cpu":
            return
        for layer in self.model.model.layers:  # one graph for all of them, of any number of rows and tokens
            layer.compile(dynamic=True)
        with torch.autocast(self._training.device.split(":")[0], torch.bfloat16):
            nothing = torch.zeros((4, 160), dtype=torch.int64, device=self._training.device)
            torch.autograd.backward(self.model.model(input_ids=nothing, use_cache=False).last_hidden_state.sum())
        self.model.zero_grad(set_to_none=True)

    def _learn(self, rows: list[Row]) -> tuple[float, float]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_share(self.step, self.share)
        ids, weights = _padded(rows, self._training.device)
        with torch.autocast(self._training.device.split(":")[0], torch.bfloat16, self._training.device != "cpu"):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            counted = weights[:, 1:] > 0
            logits = self.model.lm_head(hidden[counted])
        gold, importance = ids[:, 1:][counted], weights[:, 1:][counted]
        losses = functional.cross_entropy(logits.float(), gold, reduction="none")
        loss = (losses * importance).sum() / importance.sum()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        is_answer = importance == 1.0
        hits = (logits.argmax(-1) == gold)[is_answer]
        return float(loss.detach()), float(hits.float().mean()) if len(hits) else float("nan")

    # Saved and gone on with ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write all that the training needs to go on; what was saved before is replaced once all is on disk."""
        partial = self._state.with_name(f"{STATE}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(partial)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, optimizer in enumerate(self._optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in state.items()}
        contiguous = {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, partial / "state.safetensors")
        document = {"step": self.step, "seconds": self.seconds, "curriculum": asdict(self.curriculum)}
        document |= {"planned": self._planned}
        (partial / "state.json").write_text(json.dumps(document | {"identity": self._identity}), encoding="utf-8")
        self.discard()
        os.replace(partial, self._state)

    def discard(self) -> None:
        """Remove what was saved."""
        for path in sorted(self._state.glob("*")):
            path.unlink()
        if self._state.is_dir():
            self._state.rmdir()

    def _saved(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self._state / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if document["identity"] != self._identity:
            changed = [key for key, value in self._identity.items() if document["identity"].get(key) != value]
            raise ModelError(
                f"{self._state.parent} holds an unfinished training with other settings ({', '.join(changed)}): go on "
                "with those, or choose another folder"
            )
        return document

    def _load(self, document: dict[str, Any]) -> None:
        tensors = load_file(self._state / "state.safetensors")
        self.model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()
                                    if name.startswith("model.")})  # fmt: skip
        for number, optimizer in enumerate(self._optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                kind, _, rest = name.partition(".")
                if kind == "optimizer" and rest.startswith(f"{number}."):
                    _, index, key = rest.split(".", 2)
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step, self.seconds = document["step"], document["seconds"]
        self.curriculum = TextCurriculum(**document["curriculum"])
        self._planned = document.get("planned", [])


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, biases and norms; each group knows its peak rate."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    embeddings = [model.model.embed_tokens.weight]
    others = [
        weight
        for name, weight in model.named_parameters()
        if not (weight.ndim == 2 and ".layers." in name) and weight is not embeddings[0]
    ]
    groups = [
        {"params": embeddings, "peak": EMBEDDING_LEARNING_RATE},
        {"params": others, "peak": ADAM_LEARNING_RATE},
    ]
    muon = torch.optim.Muon([{"params": matrices, "peak": MUON_LEARNING_RATE}], lr=MUON_LEARNING_RATE, weight_decay=0.0)
    return [muon, torch.optim.AdamW(groups, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)]


def _padded(rows: list[Row], device: str) -> tuple[Tensor, Tensor]:
    """Ids int64 and weights float32, both ``[rows, longest]``, padded on the right, where nothing looks."""
    longest = max(len(row.ids) for row in rows)
    ids, weights = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], weights[number, : len(row.ids)] = row.ids, row.weights
    return torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device)


def _write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[2, line_break], pad_token_id=0, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

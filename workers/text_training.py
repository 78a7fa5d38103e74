"""Trains a Llama over real text from nothing: ``python -m workers.training --preset medium --out DIR --minutes 10``.

A byte-pair tokenizer is learned from the corpus, then a decoder of six layers learns to look things up in code and
prose of up to 8,192 tokens (``workers.text_curriculum``). Matrices are trained by Muon, the rest by AdamW; a few heads
of the first two layers begin by looking a few tokens back (``workers.text_model``). An interrupted training goes on
where it was last saved.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.corpus import read_corpus
from workers.errors import ModelError
from workers.line_encoder import LineEncoder
from workers.muon import Muon
from workers.row_makers import Rows, row_makers
from workers.text_curriculum import (
    ANSWERS_WEIGHT,
    BREAK_WEIGHT,
    LANGUAGE_WEIGHT,
    Level,
    Role,
    Row,
    RowMaker,
    TextCurriculum,
)
from workers.text_model import TextShape, new_text_model, write_text_model
from workers.text_tokenizer import learn_tokenizer
from workers.training_parts import learning_rate_share

MUON_LEARNING_RATE, ADAM_LEARNING_RATE, EMBEDDING_LEARNING_RATE = 0.02, 2e-3, 6e-3
SAVE_SECONDS, SAVE_PAUSE = 60.0, 20.0
"""Between two savings of an unfinished training, at least; and how many times as long as the last one took."""
STEPS_AHEAD = 8
"""Steps whose rows are asked for in advance, so that rows are made while the model learns. Their levels are chosen then
too, by what was known of the curriculum at that step: the result does not depend on who is faster."""
STATE = "training"
"""Folder, in that of the model, that an unfinished training is kept in."""


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


Outcome = Tensor | list[float]
"""Loss and accuracy of a step, on the device that computed them or read from a file."""


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
    started, took = time.monotonic(), 0.0
    run = _Run(folder, training)
    with row_makers(run.maker, training.processes) as order:
        saved = started
        for progress in run.steps(order):
            if saved == started:
                saved = time.monotonic()
                say(f"ready after {saved - started:.0f} s")
            report(progress)
            if (begun := time.monotonic()) - saved > max(SAVE_SECONDS, SAVE_PAUSE * took):
                run.save()
                saved = time.monotonic()
                took = saved - begun
    run.model.eval()
    write_text_model(run.model, run.tokenizer, folder)
    run.discard()
    return run.model


# One training --------------------------------------------------------------------------------------------------------


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
        self._untold: tuple[int, Outcome] | None = None
        """Level and outcome of the last step: they are read when the next one is under way, so that an accelerator
        never waits for them."""
        saved = self._saved()
        self.tokenizer = (
            PreTrainedTokenizerFast.from_pretrained(self._state)
            if saved
            else learn_tokenizer(training.corpus, training.shape.vocabulary, training.shape.max_tokens)
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
        is_ready = False
        while self.share < 1.0:
            started = time.monotonic()
            while len(self._planned) <= STEPS_AHEAD:
                rng = np.random.default_rng([self._training.seed, self.step + len(self._planned)])
                self._planned.append(min(self.curriculum.next_level(rng, self.share), len(levels) - 1))
            for number in self._planned[len(ordered) :]:
                count = max(1, self._training.shape.tokens_per_step // levels[number].length)
                ordered.append(order(levels[number], self.step + len(ordered), count))
            if not is_ready:  # while the processes start
                self._get_ready()
            number, rows = self._planned.pop(0), ordered.popleft()()
            if not is_ready:  # getting ready is no training: the learning rate falls by the clock
                is_ready, started = True, time.monotonic()
            last, self._untold = self._untold, (number, self._learn(rows))
            self.step += 1
            progress = self._told(last, self.step - 1, sum(len(row.ids) for row in rows), started)
            self.seconds += time.monotonic() - started
            if progress is not None:
                yield progress
        progress = self._told(self._untold, self.step, 0, time.monotonic())
        if progress is not None:
            yield progress

    def _told(
        self, outcome: tuple[int, Outcome] | None, step: int, num_tokens: int, started: float
    ) -> TextProgress | None:
        """What came of a step, once it is known; the curriculum hears of it."""
        if outcome is None:
            return None
        number, values = outcome
        loss, accuracy = torch.as_tensor(values).tolist()
        if not np.isnan(accuracy):
            self.curriculum.report(number, accuracy)
        speed = num_tokens / max(1e-9, time.monotonic() - started)
        return TextProgress(step, self.share, self._training.shape.levels[number].name, loss, accuracy, speed)

    def _get_ready(self) -> None:
        """Have the layers compiled, on rows of nothing, before the clock runs."""
        if self._training.device == "cpu":
            return
        for layer in self.model.model.layers:  # one graph for all of them, of any number of rows and tokens
            layer.compile(dynamic=True)
        with torch.autocast(self._training.device.split(":")[0], torch.bfloat16):
            levels = self._training.shape.levels
            for level in (levels[0], levels[-1]):
                shape = (max(1, self._training.shape.tokens_per_step // level.length), level.length)
                nothing = torch.zeros(shape, dtype=torch.int64, device=self._training.device)
                torch.autograd.backward(self.model.model(input_ids=nothing, use_cache=False).last_hidden_state.sum())
        self.model.zero_grad(set_to_none=True)

    def _learn(self, rows: list[Row]) -> Tensor:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_share(self.step, self.share)
        batch = Batch.of(rows, self._training.device)
        with torch.autocast(self._training.device.split(":")[0], torch.bfloat16, self._training.device != "cpu"):
            hidden = self.model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)[batch.places])
        loss = functional.cross_entropy(logits.float(), batch.gold, reduction="none") @ batch.importance
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        hits = (logits.argmax(-1) == batch.gold).float() @ batch.is_answer
        return torch.stack([loss.detach(), hits / batch.is_answer.sum()])

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
        untold = None if self._untold is None else (self._untold[0], torch.as_tensor(self._untold[1]).tolist())
        document |= {"planned": self._planned, "untold": untold}
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
        self._planned = document["planned"]
        self._untold = document["untold"]


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
    muon = Muon([{"params": matrices, "peak": MUON_LEARNING_RATE, "lr": MUON_LEARNING_RATE}])
    return [muon, torch.optim.AdamW(groups, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a step on the device."""

    ids: Tensor
    """int64 ``[rows, longest]``, padded on the right, where nothing looks."""
    places: Tensor
    """int64 ``[predicted]``: tokens whose next one is predicted, counted through all rows."""
    gold: Tensor
    """int64 ``[predicted]``: those next ones."""
    importance: Tensor
    """float32 ``[predicted]``; the sum over all answers, and that over all plain text, is fixed."""
    is_answer: Tensor
    """float32 ``[predicted]``, 1 or 0."""

    @classmethod
    def of(cls, rows: list[Row], device: str) -> Batch:
        """All that can be is made here, so that the device never has to be waited for."""
        longest = max(len(row.ids) for row in rows)
        ids, roles = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.uint8)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            roles[number, : len(row.ids)] = np.frombuffer(row.roles, np.uint8)
        places = np.flatnonzero(roles[:, 1:].ravel())
        places += places // (longest - 1)  # the last token of a row predicts nothing
        gold, role = ids.ravel()[places + 1], roles.ravel()[places + 1]
        arrays = [ids, places, gold, _importance(role), (role == Role.ANSWER).astype(np.float32)]
        tensors = [torch.from_numpy(values) for values in arrays]
        if device == "cpu":
            return cls(*tensors)
        return cls(*(values.pin_memory().to(device, non_blocking=True) for values in tensors))


def _importance(role: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.array([0.0, 1.0, BREAK_WEIGHT, 1.0], np.float32)[role]
    is_language = role == Role.LANGUAGE
    for chosen, total in ((is_language, LANGUAGE_WEIGHT), (~is_language, ANSWERS_WEIGHT)):
        weight[chosen] *= total / max(1e-9, weight[chosen].sum())
    weight /= weight.sum()
    return weight

"""A genome to start the search from: the scorer fitted, by gradient, to the attention that later queries really pay.

The model reads training prompts with its whole cache. At some updates the features of every cached token are noted,
and while the questions are answered the most attention that any later query pays to it. A token whose attention is
among the best ``kept_ratio`` of all, over all layers and heads together, should be kept: a logistic regression with the
scorer in the place of a line. What a gradient cannot see, what forgetting itself does to all that is read later, is
left to evolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.task import Example
from workers.evaluator import Evaluator
from workers.memory.allocation import SHARE_SCALE
from workers.memory.attention import memory_attached
from workers.memory.heads import OFFSET_SCALE
from workers.memory.memory import Decision, LayerView, Memory
from workers.memory.namm import Moments, Namm
from workers.memory.scorer import importances, unfold_genomes
from workers.memory.specs import NammSettings, Normalisation
from workers.settings import WarmStartSettings

SPREAD = 0.1
"""Standard deviation of the numbers that the fit starts from: zeros are a saddle, which no gradient leads away from."""
LEARNING_RATE = 0.01
SMALLEST_SHARE = 0.01
"""Of a head, where heads are all that a genome knows."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What was fitted."""

    genome: npt.NDArray[np.float32]
    """``[genome_size]``"""
    normalisation: Normalisation
    """Of the prompts that were read."""
    agreement: float
    """Share of cached tokens on which the fitted scorer and the attention agree, on the updates of the last steps."""


@dataclass(frozen=True, slots=True)
class _Update:
    """All layers at one update of one example."""

    features: Tensor
    """float32 ``[layers, H, K, F]``, the spectrum as it is."""
    received: Tensor
    """float32 ``[layers, H, K]``: the most attention that any query of the questions paid later."""


class _Recorder(Memory):
    """Keeps everything and notes the features at some updates; once ``listens``, the most attention that is paid."""

    reads_attention = True

    def __init__(self, settings: NammSettings, updates: Sequence[int], device: torch.device) -> None:
        # Whatever is fitted, the features are those of a network.
        read = replace(settings, choice="network", offsets=False, layout=None)
        self._namm = Namm(read, torch.zeros(1, read.genome_size, device=device), None)
        self.update_every = settings.update_every
        self.updates = tuple(updates)
        """Tokens seen at the updates to note."""
        self.listens = False
        self.noted: dict[tuple[int, int], Tensor] = {}
        """Features ``[1, H, K, F]`` by (tokens seen, layer)."""
        self.moments = Moments()

    def empty_trace_channels(self) -> int:
        """The spectrogram's, after one for the most attention received."""
        return 1 + self._namm.empty_trace_channels()

    def observe(self, trace: Tensor, attention: Tensor) -> Tensor:
        """Stream the rows through the spectrogram, and note the highest."""
        highest = trace[..., :1]
        if self.listens:
            highest = torch.maximum(highest, attention.float().amax(dim=2)[..., None])
        return torch.cat([highest, self._namm.observe(trace[..., 1:], attention)], dim=-1)

    def decide(self, view: LayerView) -> Decision:
        """Keep every token."""
        if view.seen_tokens in self.updates and not self.listens:
            inner = LayerView(
                layer=view.layer,
                seen_tokens=view.seen_tokens,
                keys=view.keys,
                values=view.values,
                positions=view.positions,
                trace=view.trace[..., 1:],
            )
            features = self._namm.features(inner)
            self.noted[view.seen_tokens, view.layer] = features
            recency, bins = self._namm.settings.recency_size, self._namm.settings.num_bins
            self.moments.add(features[..., recency : recency + bins].flatten(0, 2))
        return Decision(view.occupied, torch.zeros(view.positions.shape, device=view.positions.device))


def warm_start(
    evaluator: Evaluator, task_names: Sequence[str], memory: NammSettings, settings: WarmStartSettings, seed: int
) -> WarmStart:
    """Fit a genome for ``memory`` on training examples; a function of the arguments, on one machine.

    Args:
        evaluator: hosts the model and the tasks, which must ask questions.
        task_names: whose examples to read.
        memory: the architecture.
        settings: how much to read and to fit, and what to aim at.
        seed: decides where the fit starts, and the order of its steps.

    Raises:
        ValueError: a task has completions, or no example is long enough for an update.
    """
    rng = np.random.default_rng([seed, 0x57A7])
    rngs = torch.Generator().manual_seed(seed)
    updates, moments = _recorded(evaluator, task_names, memory, settings.examples, rng)
    normalisation = Normalisation(tuple(moments.mean.tolist()), tuple(moments.variance.tolist()))
    boundary = _boundary(updates, settings.kept_ratio)
    if memory.choice != "network":
        shares = torch.stack([_wanted(update, boundary).mean(-1) for update in updates]).mean(0)
        genes = shares.clamp(min=SMALLEST_SHARE).log().flatten() / SHARE_SCALE
        return WarmStart(genes.cpu().numpy().astype(np.float32), normalisation, 1.0)
    start = SPREAD * torch.randn(memory.genome_size, generator=rngs)
    start[memory.network_size :] = 0.0
    genome, agreement = _fitted(
        start.to(updates[0].features.device), updates, boundary, memory, normalisation, settings.steps, rng
    )
    return WarmStart(genome.cpu().numpy(), normalisation, agreement)


def _recorded(
    evaluator: Evaluator, task_names: Sequence[str], memory: NammSettings, num_examples: int, rng: np.random.Generator
) -> tuple[list[_Update], Moments]:
    """Two updates of each example, the last one of its prompt among them; and the statistics of the spectrum there."""
    moments = Moments()
    updates: list[_Update] = []
    for name in task_names:
        for index in range(num_examples):
            example = evaluator.tasks[name].example("train", index)
            if not isinstance(example, Example):
                raise ValueError(f"search.warm_start needs tasks with questions, {name} has completions: leave it out")
            updates += _record(evaluator, example, memory, moments, rng)
    if not updates:
        raise ValueError(
            f"search.warm_start found no prompt of at least memory.update_every ({memory.update_every}) tokens: lower "
            "that, or ask for longer documents"
        )
    return updates, moments


@torch.inference_mode()
def _record(
    evaluator: Evaluator, example: Example, memory: NammSettings, moments: Moments, rng: np.random.Generator
) -> list[_Update]:
    encoded = evaluator.prompts.questions(example)
    num_updates = encoded.prompt_tokens // memory.update_every
    if not num_updates:
        return []
    chosen = {num_updates, int(rng.integers(num_updates)) + 1}
    model, device = evaluator.language_model.model, evaluator.language_model.input_device
    recorder = _Recorder(memory, [memory.update_every * number for number in sorted(chosen)], device)
    recorder.moments = moments
    ids = torch.tensor([encoded.ids], device=device)
    with memory_attached(model, recorder) as cache:
        for piece in (ids[:, : encoded.prompt_tokens], ids[:, encoded.prompt_tokens :]):
            model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            recorder.listens = True
        held = [layer.held.at_work().trace[0, :, :, 0].to(device) for layer in cache.layers if layer.held is not None]
    return [
        _Update(
            features=torch.cat([recorder.noted[seen, layer].to(device) for layer in range(len(held))]),
            received=torch.stack([received[:, :seen] for received in held]),
        )
        for seen in recorder.updates
    ]


def _boundary(updates: Sequence[_Update], kept_ratio: float) -> float:
    """Attention from which a token belongs to the best ``kept_ratio`` of all."""
    received = torch.cat([update.received.flatten() for update in updates])
    place = max(0, min(len(received) - 1, round((1.0 - kept_ratio) * len(received))))
    return float(received.sort().values[place])


def _wanted(update: _Update, boundary: float) -> Tensor:
    return (update.received >= boundary).float()


def _fitted(
    start: Tensor,
    updates: Sequence[_Update],
    boundary: float,
    memory: NammSettings,
    normalisation: Normalisation,
    num_steps: int,
    rng: np.random.Generator,
) -> tuple[Tensor, float]:
    """The genome after so many steps of Adam, and how far it agrees with the attention."""
    genome = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([genome], lr=LEARNING_RATE)
    agreements = []
    for step in range(num_steps):
        update = updates[int(rng.integers(len(updates)))]
        wanted = _wanted(update, boundary)
        importance = _importance(genome, update.features, memory, normalisation)
        loss = functional.binary_cross_entropy_with_logits(importance, wanted)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - step / num_steps)
        agreements.append(float(((importance >= 0) == (wanted > 0)).float().mean()))
    return genome.detach(), float(np.mean(agreements[-20:]))


def _importance(genome: Tensor, raw: Tensor, memory: NammSettings, normalisation: Normalisation) -> Tensor:
    """As the memory has it, but with gradients: ``[layers, H, K]``."""
    spectrum = slice(memory.recency_size, memory.recency_size + memory.num_bins)
    mean, deviation = raw.new_tensor(normalisation.mean), raw.new_tensor(normalisation.variance).sqrt().clamp(min=1e-7)
    features = raw.clone()
    features[..., spectrum] = (raw[..., spectrum] - mean) / deviation
    importance = importances(features, unfold_genomes(genome[None], memory))
    if memory.layout and memory.offsets:
        importance = importance + OFFSET_SCALE * genome[memory.network_size :].view(*memory.layout, 1)
    return importance

"""A model without a memory, and the same model under one: what the benchmarks of speed and memory compare.

Weights are random: time and bytes depend on shapes and on how much is kept, not on what a text says. The genomes are
random too, each with the one bias by which it keeps as many tokens as asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from workers.decoding import prefill, read_block
from workers.memory.attention import memory_attached
from workers.memory.build import build_memory
from workers.memory.memory import Memory
from workers.memory.namm import Namm, StatisticsPass
from workers.memory.replay import Decoder
from workers.memory.specs import NammSettings, Normalisation, RivalSpec

PLAIN = "plain SDPA"
MEMORIES = ("even", "ragged")
RIVALS = ("h2o", "recent")
GENOME_SIGMA = 0.3


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama."""

    hidden: int
    layers: int
    query_heads: int
    kv_heads: int
    mlp: int
    vocabulary: int

    def model(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """With random weights, a function of nothing else."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.mlp,
            num_hidden_layers=self.layers, num_attention_heads=self.query_heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=65_536, tie_word_embeddings=False, attn_implementation="sdpa", dtype=dtype,
        )  # fmt: skip
        with torch.device(device):
            former = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                return LlamaForCausalLM(config).eval()
            finally:
                torch.set_default_dtype(former)

    def flops(self, prompt: int, attended: Callable[[int], float]) -> float:
        """Of reading a prompt when the token at ``position`` attends to ``attended(position)`` tokens."""
        head = self.hidden // self.query_heads
        weights = self.hidden * head * 2 * (self.query_heads + self.kv_heads) + 3 * self.hidden * self.mlp
        scores = sum(attended(position) for position in range(prompt)) * self.hidden * 2
        return 2.0 * self.layers * (weights * prompt + scores) + 2.0 * self.hidden * self.vocabulary


SMALL = Shape(hidden=256, layers=8, query_heads=8, kv_heads=4, mlp=688, vocabulary=1_024)
LARGE = Shape(hidden=4_096, layers=32, query_heads=32, kv_heads=8, mlp=14_336, vocabulary=128_256)
"""Llama 3 8B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One contender on one prompt, once."""

    contender: str
    prompt: int
    """Tokens read before the first is decoded."""
    rows: int
    """Examples in the batch."""
    genomes: int
    """In the block."""
    decoded: int
    """Tokens."""
    prefill_seconds: float
    decode_seconds: float
    prefill_cpu_seconds: float
    decode_cpu_seconds: float
    held_bytes: int
    """Keys and values at the end, of all rows."""
    state_bytes: int
    """What the memory keeps beside them."""
    held_tokens: float
    """By row, layer and KV head, on the mean."""


class Clock:
    """Wall and CPU seconds since the last lap; waits for the accelerator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Wall and CPU seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter(), time.process_time()
        former, self._now = getattr(self, "_now", now), now
        return now[0] - former[0], now[1] - former[1]


def prompt_ids(shape: Shape, rows: int, tokens: int, device: torch.device) -> Tensor:
    """Random token ids ``[rows, tokens]``."""
    return torch.randint(3, shape.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(1)).to(device)


def decode(step: Callable[[Tensor], Tensor], logits: Tensor, tokens: int) -> None:
    """Greedily, without asking the device anything on the way."""
    for _ in range(tokens):
        logits = step(logits.argmax(-1, keepdim=True))


@torch.inference_mode()
def read_plain(model: PreTrainedModel, ids: Tensor, decoded: int) -> Reading:
    """transformers' own way: one forward call over the prompt, fused attention, the full cache."""
    cache, clock = DynamicCache(), Clock(ids.device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    reading = clock.lap()
    decode(lambda ids: model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1], logits, decoded)
    decoding = clock.lap()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return Reading(
        contender=PLAIN, prompt=ids.shape[1], rows=len(ids), genomes=1, decoded=decoded,
        prefill_seconds=reading[0], prefill_cpu_seconds=reading[1],
        decode_seconds=decoding[0], decode_cpu_seconds=decoding[1],
        held_bytes=held, state_bytes=0, held_tokens=float(cache.get_seq_length()),
    )  # fmt: skip


@torch.inference_mode()
def read_under(model: PreTrainedModel, name: str, memory: Memory, ids: Tensor, decoded: int) -> Reading:
    """As the evaluator does: what no genome can have changed is read once."""
    copies, clock = memory.num_genomes, Clock(ids.device)
    with memory_attached(model, memory) as cache:
        if copies == 1:
            logits = prefill(model, cache, ids)
        else:
            logits = read_block(
                model, cache, ids, copies, ids.shape[1] - 1, lambda part, rest, _shared: prefill(model, part, rest)
            )
        reading = clock.lap()
        decode(Decoder(model, cache), logits, decoded)
        decoding = clock.lap()
        return Reading(
            contender=name, prompt=ids.shape[1], rows=len(ids), genomes=copies, decoded=decoded,
            prefill_seconds=reading[0], prefill_cpu_seconds=reading[1],
            decode_seconds=decoding[0], decode_cpu_seconds=decoding[1],
            held_bytes=cache.cache_bytes, state_bytes=cache.state_bytes,
            held_tokens=float(cache.held_tokens().double().mean()),
        )  # fmt: skip


def rival(name: str, shape: Shape, kept: int) -> Memory:
    """A heuristic that keeps as many tokens as the memory does."""
    return build_memory(RivalSpec(name=name, budget=((kept,) * shape.kv_heads,) * shape.layers), None)  # type: ignore[arg-type]


@torch.inference_mode()
def calibrated(model: PreTrainedModel, shape: Shape, name: str, kept: Sequence[int], prompt: int) -> Namm:
    """Random genomes, one for each of ``kept``, with the bias by which it holds about so many tokens after an update.

    Tokens are by layer and KV head, on the mean, of those of a ``prompt`` up to its last update.
    """
    settings = NammSettings(heads="ragged" if name == "ragged" else "even")  # all else as published
    tokens = prompt // settings.update_every * settings.update_every
    device = next(model.parameters()).device
    ids = prompt_ids(shape, 1, tokens, device)
    generator = torch.Generator().manual_seed(0)
    genomes = (GENOME_SIGMA * torch.randn(len(kept), settings.genome_size, generator=generator)).to(device)
    statistics = StatisticsPass(settings)
    with memory_attached(model, statistics) as cache:
        prefill(model, cache, ids[:, :1_024])
    moments = statistics.moments
    normalisation = Normalisation(tuple(moments.mean.tolist()), tuple(moments.variance.tolist()))
    genomes[:, settings.genome_size - 2 - settings.num_features + 1 + 3] -= 3.0  # the longest sine: it forgets with age
    low, high = torch.full((len(kept),), -16.0), torch.full((len(kept),), 16.0)
    for _ in range(10):
        middle = (low + high) / 2
        with memory_attached(model, Namm(settings, genomes, normalisation, tuple(middle.tolist()))) as cache:
            prefill(model, cache, ids.expand(len(kept), -1))
            is_too_much = cache.held_tokens().double().mean((1, 2)) > torch.tensor(kept, dtype=torch.float64)
        low, high = torch.where(is_too_much, middle, low), torch.where(is_too_much, high, middle)
    genomes[:, -1] -= ((low + high) / 2).to(device)  # the scorer's bias takes the threshold's place
    return Namm(settings, genomes, normalisation)


def capped(name: str, kept: int, count: int, model: PreTrainedModel) -> Namm:
    """Random genomes that want every token and are held to ``kept`` of them in a head by the cap: no fitting needed."""
    settings = NammSettings(heads="ragged" if name == "ragged" else "even", cap=kept)
    genomes = GENOME_SIGMA * torch.randn(count, settings.genome_size, generator=torch.Generator().manual_seed(0))
    genomes[:, -1] += 100.0
    return Namm(settings, genomes.to(next(model.parameters()).device), None)

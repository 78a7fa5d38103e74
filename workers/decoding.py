"""Reading prompts and answering under many genomes at once.

Shapes: E examples of equal length, G genomes, B = G * E rows (genome by genome), n tokens, A answers per example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache
from workers.memory.memory import KeepAll, Memory
from workers.memory.replay import Decoder

PREFILL_TOKENS = {"cpu": 1024}
MOST_PREFILL_TOKENS = 4096
"""Most tokens of a row in one forward call, by kind of device; no result depends on the machine beyond that."""

CPU_GROUP_TOKENS = 1536
"""Tokens of all rows of a block in one forward call on a CPU: what stays in a core's caches."""
GROUP_ACTIVATIONS = 1 << 28
"""Elsewhere calls are what costs: as many tokens as have so many activations in a layer, where they are most."""
Reader = Callable[[MemoryCache, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Answers:
    """How the gold answers fare: all ``[B, A]``, on the CPU."""

    probability: Tensor
    """float64: of the whole answer."""
    is_greedy: Tensor
    """bool: whether greedy decoding would have produced it."""
    mean_log_probability: Tensor
    """float64: natural logarithm, mean over the answer's tokens."""


@dataclass(frozen=True, slots=True)
class Completions:
    """What was decoded: ``ids`` int64 ``[B, new]`` and the float32 ``logits [B, new, vocabulary]`` behind each."""

    ids: Tensor
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the rows of a batch hold, on the CPU; without padding."""

    seen: Tensor
    """int64 ``[B]``: tokens read."""
    held: Tensor
    """int32 ``[B, layers, H]``: tokens in the cache."""
    mean_bytes: Tensor
    """float64 ``[B]``: bytes of keys and values, averaged over the tokens read."""
    peak_bytes: Tensor
    """int64 ``[B]``: most bytes of keys and values at any moment."""
    state_bytes: Tensor
    """int64 ``[B]``: bytes that the memory keeps beside them."""

    @classmethod
    def of(cls, cache: MemoryCache) -> Footprint:
        """What a cache holds now."""
        area, peak, seen = cache.meter.area, cache.meter.peak, cache.seen_tokens()
        assert area is not None
        assert peak is not None
        return cls(seen, cache.held_tokens(), area.double() / seen, peak, cache.row_state_bytes())

    def updated(self, later: Footprint, rows: Tensor) -> Footprint:
        """With some rows (bool ``[B]``) as they are later."""

        def chosen(name: str) -> Tensor:
            new, old = getattr(later, name), getattr(self, name)
            return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new, old)

        return Footprint(*(chosen(field.name) for field in fields(self)))


def chunk_tokens(device: torch.device) -> int:
    """Of a row in one forward call."""
    return PREFILL_TOKENS.get(device.type, MOST_PREFILL_TOKENS)


def prefill(model: PreTrainedModel, cache: MemoryCache, ids: Tensor, tokens: int | None = None) -> Tensor:
    """Read ``ids [B, n]`` in chunks of ``tokens``; returns the logits after the last token, ``[B, vocabulary]``."""
    logits = torch.empty(0)
    for chunk in ids.split(tokens or chunk_tokens(ids.device), dim=1):
        logits = model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    return logits


@torch.inference_mode()
def decode_greedily(
    model: PreTrainedModel,
    cache: MemoryCache,
    ids: Tensor,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    prefill_tokens: int | None = None,
) -> Completions:
    """Greedy decoding of prompts ``ids [B, n]``; the last decoded token is not fed back (spec 1.6).

    Stops when every row has produced one of ``stop_ids``; rows that stopped earlier are filled with that id.
    """
    logits = prefill(model, cache, ids, prefill_tokens)
    decoded, seen_logits = [logits.argmax(-1)], [logits]
    stops = torch.tensor(list(stop_ids), device=ids.device)
    stopped, decoder = torch.isin(decoded[0], stops), Decoder(model, cache)
    while len(decoded) < max_new_tokens and not bool(stopped.all()):
        logits = decoder(decoded[-1][:, None])
        token = torch.where(stopped, decoded[-1], logits.argmax(-1))
        stopped |= torch.isin(token, stops)
        decoded.append(token)
        seen_logits.append(logits)
    return Completions(torch.stack(decoded, dim=1), torch.stack(seen_logits, dim=1).float())


def read_block(
    model: PreTrainedModel, cache: MemoryCache, ids: Tensor, copies: int, shareable: int, read: Reader
) -> Tensor:
    """Read texts ``ids [E, n]`` under every genome of a block: what no genome can have changed once for all of them.

    Until the first update every genome holds the same tokens, so the first ``update_every`` of ``shareable`` tokens
    are read with E rows. What follows is arithmetic that every row needs for itself: it is read a few genomes at a
    time, whose activations are few, and only what they hold is there for all B = ``copies * E`` rows together.

    Args:
        model: with a memory attached, whose new cache is ``cache``; it holds all rows in the end.
        cache: of a memory with ``copies`` genomes, or any other with ``copies`` 1.
        ids: the texts, equally long.
        copies: G.
        shareable: no logits of the first so many tokens are wanted; less than n.
        read: given a cache, rows and how many tokens were read before, reads them and returns what is wanted of each.

    Returns:
        What ``read`` returned, for all rows.
    """
    memory = cache.memory
    shared = min(memory.update_every or 0, shareable)
    cache.memory = KeepAll(memory)
    if shared:
        prefill(model, cache, ids[:, :shared])
    rest, parts, found = ids[:, shared:], [], []
    together = max(1, _group_tokens(model, ids) // (len(ids) * min(chunk_tokens(ids.device), rest.shape[1])))
    for first in range(0, copies, together):
        genomes = slice(first, min(first + together, copies))
        count = genomes.stop - first
        part = cache.branch(memory.part(genomes), count)
        found.append(read(part, rest.repeat(count, 1), shared))
        parts.append(part)
    cache.join(memory, parts)
    return torch.cat(found)


def _group_tokens(model: PreTrainedModel, ids: Tensor) -> int:
    """Tokens of all rows in one forward call."""
    if ids.device.type == "cpu":
        return CPU_GROUP_TOKENS
    config = model.config.get_text_config(decoder=True)
    widest: int = max(config.hidden_size, getattr(config, "intermediate_size", None) or 0)
    return GROUP_ACTIVATIONS // widest


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    memory: Memory,
    ids: Tensor,
    copies: int,
    *,
    max_new_tokens: int,
    has_ended: Callable[[Tensor], Tensor],
) -> tuple[list[list[int]], Footprint]:
    """Greedy completions of prompts under many genomes; the last token of each is not fed back (spec 1.6).

    Rows that end early are decoded on with their batch, but what they hold is noted when they end: a row does not
    depend on its batch mates.

    Args:
        model: the frozen model.
        memory: with ``copies`` genomes, or any other memory with ``copies`` 1.
        ids: int64 ``[E, n]``, prompts of equal length.
        copies: G.
        max_new_tokens: longest completion, at least 1.
        has_ended: given the completions so far, int64 ``[B, new]``, which rows end with their last token, bool ``[B]``.

    Returns:
        The completions of B = G * E rows, the ending token included, and what their caches held in the end.
    """
    with memory_attached(model, memory) as cache:
        logits = read_block(
            model, cache, ids, copies, ids.shape[1] - 1, lambda part, rest, _shared: prefill(model, part, rest)
        )
        completions = logits.argmax(-1)[:, None]
        ended = has_ended(completions)
        lengths = torch.ones(len(completions), dtype=torch.int64)
        held, decoder = Footprint.of(cache), Decoder(model, cache)
        while completions.shape[1] < max_new_tokens and not bool(ended.all()):
            logits = decoder(completions[:, -1:])
            completions = torch.cat([completions, logits.argmax(-1)[:, None]], dim=1)
            lengths += ~ended.cpu()
            ending = ~ended & has_ended(completions)
            if bool(ending.any()) or completions.shape[1] == max_new_tokens:
                held = held.updated(Footprint.of(cache), ~ended.cpu())
            ended |= ending
    return [row[:length] for row, length in zip(completions.tolist(), lengths.tolist(), strict=True)], held


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel,
    memory: Memory,
    ids: Tensor,
    spans: Sequence[tuple[int, int]],
    copies: int,
) -> tuple[Answers, MemoryCache]:
    """Probability of gold answers, each given the text before it with the earlier gold answers in place.

    An answer whose every token is the model's first choice is just what greedy decoding would have produced.

    Args:
        model: the frozen model.
        memory: with ``copies`` genomes, or any other memory with ``copies`` 1.
        ids: int64 ``[E, n]``, the whole text of each example: prompt, questions and answers.
        spans: token positions (start, stop) of each answer, the same in all examples, ascending.
        copies: G.

    Returns:
        The answers of B = G * E rows, and the cache as it stands after the last token.
    """
    with memory_attached(model, memory) as cache:
        predicting = torch.cat([torch.arange(start - 1, stop - 1) for start, stop in spans]).to(ids.device)

        def read(part: MemoryCache, rest: Tensor, shared: int) -> Tensor:
            return _logits_at(model, part, rest, predicting - shared)

        logits = read_block(model, cache, ids, copies, spans[0][0] - 1, read)
    targets = ids[:, predicting + 1].repeat(copies, 1)
    log_p = torch.log_softmax(logits.double(), dim=-1).gather(-1, targets[..., None])[..., 0]
    hits = logits.argmax(-1) == targets
    lengths = [stop - start for start, stop in spans]
    probability = torch.stack([part.sum(-1).exp() for part in log_p.split(lengths, dim=1)], dim=1)
    mean_log = torch.stack([part.mean(-1) for part in log_p.split(lengths, dim=1)], dim=1)
    is_greedy = torch.stack([part.all(-1) for part in hits.split(lengths, dim=1)], dim=1)
    return Answers(probability.cpu(), is_greedy.cpu(), mean_log.cpu()), cache


def _logits_at(model: PreTrainedModel, cache: MemoryCache, ids: Tensor, indices: Tensor) -> Tensor:
    """Logits ``[B, len(indices), vocabulary]`` at the given columns of ``ids [B, n]``, read in chunks."""
    pieces, tokens = [], chunk_tokens(ids.device)
    for start in range(0, ids.shape[1], tokens):
        chunk = ids[:, start : start + tokens]
        wanted = indices[(indices >= start) & (indices < start + chunk.shape[1])] - start
        keep = wanted if len(wanted) else torch.zeros(1, dtype=torch.long, device=ids.device)
        logits = model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
        pieces.append(logits[:, : len(wanted)])
    return torch.cat(pieces, dim=1)

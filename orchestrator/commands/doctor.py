"""What ``namm doctor`` says: whether a memory can be attached to a model, from the model's configuration alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import RenderableType

from orchestrator.storage import folder_at, local_copy
from orchestrator.terminal import Answer, facts, grid
from workers.memory.pretrained import PretrainedMemory
from workers.memory.support import misfit
from workers.survey import LayerFacts, Survey, load_config, survey

REFUSED = ("beam search", "assisted decoding", "cache.crop()", "right padding", "a static cache (cache_implementation)")
"""What no cache that forgets can do; each is refused with an error that names it."""


def doctor(model: str, *, memory: str | None) -> Answer:
    """Look at a model, and at whether a saved memory's settings fit it. No weights are read, no remote code is run.

    Args:
        model: name, folder or hub id (``ID@REVISION``).
        memory: folder of a saved memory, also by address; None for no particular one.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
        MemoryFileError: the memory cannot be read.
    """
    pretrained = _saved_memory(memory) if memory else None
    config = load_config(model)
    found = survey(config)
    document = {
        "model": model,
        "works": None if found.untried else not found.obstacles,
        **dataclasses.asdict(found),
        "token_bytes": found.token_bytes,
        "refused": REFUSED,
        "memory": None if pretrained is None else fit(pretrained, found, config),
    }
    return Answer(document, _parts(found, document))


def fit(memory: PretrainedMemory, found: Survey, config: Any) -> dict[str, Any]:
    """How a memory's settings suit the model of ``config``: ``fits``, its own bytes a token, and remarks."""
    settings = memory.spec.settings
    other = None if found.obstacles else misfit(settings.layout, config, found.architecture)
    never = found.max_tokens is not None and settings.update_every > found.max_tokens
    channels = memory.build().empty_trace_channels()
    heads = sum(layer.kv_heads for layer in found.layers)
    return {
        "fits": not (found.obstacles or never or other),
        "update_every": settings.update_every,
        "heads": settings.heads,
        "state_token_bytes": heads * 4 * (channels + 1),  # float32 traces, and an int32 position
        "remarks": [*([other] if other else []), *_remarks(memory, found, never=never)],
    }


def _remarks(memory: PretrainedMemory, found: Survey, *, never: bool) -> Iterator[str]:
    every = memory.spec.settings.update_every
    if never:
        yield f"never evicts: due every {every:,} tokens, but the model reads {found.max_tokens:,} at most"
    windows = {layer.sliding_window for layer in found.layers if layer.sliding_window is not None}
    if windows and every >= min(windows):
        yield (
            f"layers with a window of {min(windows):,} tokens need no more than that, but hold up to {every:,} between "
            "two updates"
        )
    if memory.spec.normalisation is None:
        yield "it has no feature statistics: it reads raw features"
    if origin := memory.origin.get("model"):
        yield f"it was evolved on {origin}: on another model, measure before you trust it"


def _saved_memory(place: str) -> PretrainedMemory:
    with local_copy(folder_at(place)) as path:
        return PretrainedMemory.from_pretrained(path)


def _parts(found: Survey, document: dict[str, Any]) -> list[RenderableType]:
    pairs = [("architecture", found.architecture), ("a memory can be attached", _verdict(found))]
    pairs += [("because", reason) for reason in found.obstacles]
    if found.layers:
        pairs += [
            ("would be hooked", f"the attention of {len(found.layers)} layers, by transformers' registry"),
            ("full cache", f"{found.token_bytes:,} bytes a token in {found.dtype}{_at_most(found)}"),
        ]
    if not found.obstacles:
        pairs.append(("refused while attached", ", ".join(REFUSED)))
    memory = document["memory"]
    if memory is not None:
        pairs += [
            ("the memory fits", "yes" if memory["fits"] else "no"),
            ("the memory's own", f"at least {memory['state_token_bytes']:,} bytes a token held by all heads"),
            *(("remark", remark) for remark in memory["remarks"]),
        ]
    if not found.layers:
        return [facts(pairs)]
    headings = ("layers", "attention", "KV heads", "key", "value", "bytes a token")
    return [facts(pairs), "", grid(headings, list(_layer_rows(found.layers)), left=2)]


def _verdict(found: Survey) -> str:
    if found.untried:
        return f"nothing speaks against it, but it could not be tried without weights ({found.untried})"
    return "no" if found.obstacles else "yes"


def _at_most(found: Survey) -> str:
    if found.max_tokens is None:
        return ""
    return f", {found.token_bytes * found.max_tokens:,} at {found.max_tokens:,} tokens"


def _layer_rows(layers: tuple[LayerFacts, ...]) -> Iterator[list[str]]:
    """A row for every run of layers that are alike."""
    for layer, run in groupby(enumerate(layers), key=lambda numbered: numbered[1]):
        indices = [index for index, _ in run]
        first, last = indices[0], indices[-1]
        sizes = (layer.kv_heads, layer.key_size, layer.value_size, layer.token_bytes)
        yield [str(first) if first == last else f"{first}-{last}", _kind(layer), *(f"{size:,}" for size in sizes)]


def _kind(layer: LayerFacts) -> str:
    words = ["full" if layer.sliding_window is None else f"window of {layer.sliding_window:,}"]
    if layer.softcap is not None:
        words.append(f"scores capped at {layer.softcap:g}")
    if layer.has_sinks:
        words.append("sinks")
    return ", ".join(words)

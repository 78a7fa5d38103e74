"""What ``namm generate`` does: complete a prompt under a memory, and show what of it was kept."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from orchestrator.errors import InputError
from orchestrator.storage import folder_at, local_copy
from orchestrator.terminal import Answer, facts, grid, visible
from workers.decoding import decode_greedily
from workers.language_model import SMALL_LLAMA, LanguageModel, load_language_model
from workers.memory.attention import memory_attached
from workers.memory.cache import MemoryCache, MemoryLayer
from workers.memory.memory import KeepAll, Memory
from workers.memory.pretrained import PretrainedMemory
from workers.memory.room import is_lack_of_room
from workers.memory.support import input_device
from workers.settings import ModelSettings
from workers.token_text import token_spans

FULL = "full"
Show = Literal["kept", "completion"]

LEGEND = "bold: held by every KV head, dim: by less than half, struck out: by none"
PLAIN_LEGEND = "[-like this-]: held by no KV head any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token of the prompt as text."""

    text: str
    """The token's characters with what stands before them; empty for special tokens."""
    heads: int
    """KV heads, of all layers together, that still hold the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a prompt."""

    text: str
    prompt_tokens: int
    new_tokens: int
    seen_tokens: int
    """Tokens that the model has read: the prompt, and all that it decoded but the last."""
    held_tokens: tuple[tuple[int, ...], ...]
    """Tokens in the cache in the end, by layer and KV head."""
    cache_bytes: int
    """Bytes of the keys and values in the end, the room for more left out."""
    full_cache_bytes: int
    """Bytes that the same cache would hold if nothing had been evicted."""
    peak_bytes: int
    """Most bytes of keys and values at any moment."""
    state_bytes: int
    """Bytes that the memory itself keeps beside the cache."""
    prompt: tuple[Piece, ...]

    @property
    def kept_ratio(self) -> float:
        """Tokens held / tokens seen, mean over layers and KV heads."""
        return float(np.mean(self.held_tokens)) / self.seen_tokens


def generate(
    memory: str, *, model: str | None, device: str, dtype: str, prompt: str, max_new_tokens: int, show: Show
) -> Answer:
    """Complete the prompt in the file ``prompt`` (``-``: standard input) under a saved memory.

    Args:
        memory: folder of a saved memory, or ``full``.
        model: name, folder or hub id (``ID@REVISION``); None for the model that the memory was evolved on.
        device: of torch.
        dtype: of the model's weights.
        prompt: file to read, ``-`` for standard input.
        max_new_tokens: most tokens to decode.
        show: ``completion`` for the bare text.

    Raises:
        InputError: the prompt cannot be read, is empty or too long for the model or its device.
        ModelError: the model cannot be loaded.
        MemoryFileError: the memory cannot be read.
    """
    pretrained = None if memory == FULL else _saved_memory(memory)
    text = read_prompt(prompt)
    settings = model_settings(model, pretrained, device=device, dtype=dtype)
    policy = pretrained.build() if pretrained else KeepAll()
    completion = _with_room(load_language_model(settings), policy, text, max_new_tokens)
    document = {
        "memory": memory,
        "model": settings.path_or_id,
        "kept_ratio": completion.kept_ratio,
        **dataclasses.asdict(completion),
    }
    said: list[RenderableType] = [visible(completion.text)]
    return Answer(document, said if show == "completion" else [*said, "", *kept_parts(completion)])


def _with_room(language_model: LanguageModel, memory: Memory, prompt: str, max_new_tokens: int) -> Completion:
    """As ``complete``.

    Raises:
        InputError: also where the device has no memory left for the prompt.
    """
    try:
        return complete(language_model, memory, prompt, max_new_tokens)
    except RuntimeError as error:
        if not is_lack_of_room(error):
            raise
        raise InputError(
            f"there is no room on {language_model.input_device} for this prompt of "
            f"{len(language_model.prompt_ids(prompt)):,} tokens: shorten it, use a narrower --dtype or another "
            "--device, or a memory that keeps less"
        ) from error


def _saved_memory(place: str) -> PretrainedMemory:
    with local_copy(folder_at(place)) as path:
        return PretrainedMemory.from_pretrained(path)


def read_prompt(source: str) -> str:
    """Text of a file or of standard input, less the line feed that editors and ``echo`` put behind a last line."""
    name = "standard input" if source == "-" else source
    try:
        text = (sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()).decode()
    except OSError as error:
        raise InputError(
            f"cannot read the prompt in {name}: {error.strerror}; name a text file, or - for standard input"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt in {name} is not UTF-8 text (byte {error.start}): convert it first") from error
    if not text.strip():
        raise InputError(f"the prompt in {name} is empty: write something to complete")
    return text.removesuffix("\n").removesuffix("\r")


def model_settings(model: str | None, memory: PretrainedMemory | None, *, device: str, dtype: str) -> ModelSettings:
    """Which model to load: the one that is named, or else the one that the memory was evolved on."""
    if model is None:
        origin = memory.origin if memory else {}
        name, revision = origin.get("model", SMALL_LLAMA), origin.get("model_revision")
    else:
        name, _, pinned = model.partition("@")
        revision = pinned or None
    return ModelSettings(path_or_id=name, revision=revision, device=device, dtype=dtype)


def complete(language_model: LanguageModel, memory: Memory, prompt: str, max_new_tokens: int) -> Completion:
    """Decode greedily after ``prompt`` until the model stops or ``max_new_tokens`` are there.

    Raises:
        InputError: prompt and completion are longer than the model can read.
    """
    ids = language_model.prompt_ids(prompt)
    if len(ids) + max_new_tokens > language_model.max_tokens:
        raise InputError(
            f"the prompt has {len(ids):,} tokens and {max_new_tokens:,} are to follow, but the model reads "
            f"{language_model.max_tokens:,} at most: shorten the prompt or --max-new-tokens"
        )
    model, stops = language_model.model, stop_ids(language_model)
    with memory_attached(model, memory) as cache:
        batch = torch.tensor([ids], device=input_device(model))
        decoded = decode_greedily(model, cache, batch, max_new_tokens=max_new_tokens, stop_ids=stops).ids[0].tolist()
    said = decoded[:-1] if decoded[-1] in stops else decoded
    held = cache.held_tokens()[0]
    return Completion(
        text=str(language_model.tokenizer.decode(said)),
        prompt_tokens=len(ids),
        new_tokens=len(said),
        seen_tokens=cache.get_seq_length(),
        held_tokens=tuple(map(tuple, held.tolist())),
        cache_bytes=cache.cache_bytes - cache.spare_bytes,
        full_cache_bytes=sum(_bytes_of_everything(layer) for layer in cache.layers),
        peak_bytes=int(cache.meter.peak[0]) if cache.meter.peak is not None else 0,
        state_bytes=cache.state_bytes,
        prompt=prompt_pieces(language_model, prompt, heads_by_position(cache, len(ids))),
    )


def stop_ids(language_model: LanguageModel) -> list[int]:
    """Ids that end a completion: what the model's generation settings say, or else the tokenizer's."""
    configured = language_model.model.generation_config
    stops: Any = getattr(configured, "eos_token_id", None)
    if stops is None:
        stops = language_model.tokenizer.eos_token_id
    return [] if stops is None else list(stops) if isinstance(stops, Sequence) else [int(stops)]


def heads_by_position(cache: MemoryCache, tokens: int) -> list[int]:
    """How many KV heads, of all layers together, still hold each of the first ``tokens`` tokens of the only row."""
    counts = np.zeros(tokens, np.int64)
    for layer in cache.layers:
        if layer.held is not None:
            positions = layer.held.at_work().positions[0].cpu().numpy()
            counts += np.bincount(positions[(positions >= 0) & (positions < tokens)], minlength=tokens)
    return [int(count) for count in counts]


def prompt_pieces(language_model: LanguageModel, prompt: str, heads: Sequence[int]) -> tuple[Piece, ...]:
    """The prompt cut into its tokens; joined, the texts are the prompt again."""
    spans = token_spans(language_model.tokenizer, prompt)
    return tuple(Piece(text=prompt[start:stop], heads=count) for (start, stop), count in zip(spans, heads, strict=True))


class MarkedText:
    """The prompt with the tokens marked that were forgotten: by style on a terminal, as ``[-…-]`` in plain text."""

    def __init__(self, pieces: Sequence[Piece], num_heads: int) -> None:
        """Take the prompt's tokens, and how many KV heads there are in all layers together."""
        self._pieces = pieces
        self._num_heads = num_heads

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for it."""
        is_plain = console.color_system is None
        yield Text(PLAIN_LEGEND if is_plain else LEGEND, style="italic")
        yield Text()
        yield Text(mark_plainly(self._pieces)) if is_plain else self._styled()

    def _styled(self) -> Text:
        text = Text()
        for piece in self._pieces:
            text.append(visible(piece.text), style_of(piece.heads, self._num_heads))
        return text


def style_of(heads: int, num_heads: int) -> str:
    """How a token is shown that ``heads`` of ``num_heads`` KV heads hold."""
    if heads == 0:
        return "dim strike"
    if heads == num_heads:
        return "bold"
    return "dim" if heads < num_heads / 2 else ""


def mark_plainly(pieces: Sequence[Piece]) -> str:
    """The text with each run of tokens that nobody holds in ``[-…-]``, as ``wdiff`` writes deletions."""
    marked = []
    for is_held, run in groupby(pieces, key=lambda piece: piece.heads > 0):
        text = visible("".join(piece.text for piece in run))
        word = text.lstrip()
        marked.append(text if is_held or not word else f"{text[: len(text) - len(word)]}[-{word}-]")
    return "".join(marked)


def kept_parts(completion: Completion) -> list[RenderableType]:
    """What was kept: sums, a table by layer and KV head, and the prompt with its forgotten tokens marked."""
    seen, held = completion.seen_tokens, completion.held_tokens
    rows = [
        [f"layer {index}", *(f"{tokens:,} ({tokens / seen:.0%})" for tokens in layer)]
        for index, layer in enumerate(held)
    ]
    pairs = [
        ("tokens seen", f"{seen:,}, of which {completion.prompt_tokens:,} are the prompt"),
        ("tokens kept", f"{completion.kept_ratio:.1%} in the mean over layers and KV heads"),
        (
            "cache",
            f"{completion.cache_bytes:,} of {completion.full_cache_bytes:,} bytes, {completion.peak_bytes:,} at most",
        ),
        ("memory", f"{completion.state_bytes:,} bytes of its own"),
    ]
    return [
        facts(pairs),
        "",
        grid(("tokens held", *(f"KV head {index}" for index in range(len(held[0])))), rows),
        "",
        MarkedText(completion.prompt, sum(map(len, held))),
    ]


def _bytes_of_everything(layer: MemoryLayer) -> int:
    """What the layer would hold if it had kept all that it has seen."""
    if layer.held is None:
        return 0
    held = layer.held.lengths
    token_bytes = (layer.held.cache_bytes - layer.held.spare_bytes) // int(held.sum())
    return token_bytes * layer.seen_tokens * held.numel()

"""What ``namm explain`` does: read one text under a memory, and show what became of every token and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from orchestrator import schemas
from orchestrator.analysis.traced_text import TracedText, read_under, tokens_table, trace_table
from orchestrator.commands.contenders import Contender, contender_named
from orchestrator.commands.generate import Piece, mark_plainly, model_settings, read_prompt
from orchestrator.files import write_atomic
from orchestrator.pages.explained import explained_page, kept_by_kind
from orchestrator.terminal import Answer, facts, grid, visible
from tasks.token_kinds import Language, guess_language
from workers.language_model import LanguageModel, load_language_model
from workers.memory.build import build_memory
from workers.memory.memory import Memory
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalSpec

PAGE, TRACE, TOKENS = "index.html", "trace.parquet", "tokens.parquet"
RIVAL_UPDATES = 64
"""Tokens between two updates of a rival by itself."""

SHADES = ("", "on #cfe3f0", "on #9fc9e3", "on #56b4e9", "on #2f97d0")
"""Backgrounds by lifetime, lightest for the shortest; blue alone, so that no colour has to be told from another."""
LEGEND = "the darker, the longer and in the more heads a token lived; struck out: held by no KV head any more"
PLAIN_LEGEND = "[-like this-]: held by no KV head any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be explained."""

    memory: str
    """Folder of a saved memory, run folder, or name of a rival."""
    model: str | None
    device: str
    dtype: str
    text: str
    """File to read, ``-`` for standard input."""
    language: Language | None
    """None guesses."""
    kept_ratio: float | None
    """Of a rival: tokens held after an update / tokens of the text."""
    folder: Path


def explain(request: Request) -> Answer:
    """Trace the text, write the page and the tables, and say it in a terminal.

    Raises:
        InputError: the text cannot be read, is empty or too long, or there is no such memory.
        ModelError: the model cannot be loaded.
        MemoryFileError: the memory cannot be read.
    """
    text = read_prompt(request.text)
    contender = contender_named(request.memory)
    pretrained = contender if isinstance(contender, PretrainedMemory) else None
    settings = model_settings(request.model, pretrained, device=request.device, dtype=request.dtype)
    language_model = load_language_model(settings)
    memory = _built(contender, language_model, len(language_model.prompt_ids(text)), request.kept_ratio or 0.25)
    source = "standard input" if request.text == "-" else Path(request.text).name
    language = request.language or ("python" if source.endswith(".py") else guess_language(text))
    read = read_under(language_model, memory, text, language)
    pairs = [
        ("memory", request.memory),
        ("model", settings.path_or_id),
        ("text", f"{source}: {len(read.ids):,} tokens, read as {language}"),
        ("updates", f"{read.trace.num_updates}, every {memory.update_every} tokens" if memory.update_every else "none"),
        ("kept", f"{_kept_ratio(read):.1%} of the tokens read, mean over layers and KV heads"),
    ]
    data = f"The same as tables: {TRACE} and {TOKENS}, beside this page."
    page = explained_page(read, memory=request.memory, source=source, facts=pairs, data=data)
    places = _write(request.folder, read, page)
    document = {
        "memory": request.memory,
        "model": settings.path_or_id,
        "language": language,
        "num_tokens": len(read.ids),
        "update_tokens": read.trace.update_tokens.tolist(),
        "kept_ratio": _kept_ratio(read),
        "held_tokens": read.trace.held_tokens().tolist(),
        "kinds": [{"kind": kind, "tokens": count, "kept": kept} for kind, count, kept in kept_by_kind(read)],
        **places,
    }
    return Answer(document, _parts(read, [*pairs, *places.items()]))


def _built(contender: Contender, language_model: LanguageModel, num_tokens: int, kept_ratio: float) -> Memory:
    if isinstance(contender, PretrainedMemory):
        return contender.build()
    budget = max(1, round(kept_ratio * num_tokens))
    shape = ((budget,) * language_model.num_kv_heads,) * language_model.num_layers
    spec = RivalSpec(name=contender, update_every=RIVAL_UPDATES, budget=shape)
    return build_memory(spec, np.zeros((1, 0), np.float32))


def _kept_ratio(read: TracedText) -> float:
    """Of all tokens read, those after the last update included, as ``namm generate`` counts."""
    since = len(read.ids) - read.trace.num_judged
    return float(read.trace.held_tokens().mean() + since) / len(read.ids)


def _write(folder: Path, read: TracedText, page: str) -> dict[str, str]:
    write_atomic(folder / TRACE, schemas.encode(trace_table(read)))
    write_atomic(folder / TOKENS, schemas.encode(tokens_table(read)))
    write_atomic(folder / PAGE, page.encode())
    return {"page": str(folder / PAGE), "trace": str(folder / TRACE), "tokens": str(folder / TOKENS)}


# --- what a terminal shows --------------------------------------------------------------------------------------------


def _parts(read: TracedText, pairs: Sequence[tuple[str, str]]) -> list[RenderableType]:
    heads = read.trace.num_kv_heads
    judged = max(1, read.trace.num_judged)
    by_head = [
        [f"layer {layer}", *(f"{tokens:,} ({tokens / judged:.0%})" for tokens in held)]
        for layer, held in enumerate(read.trace.held_tokens().tolist())
    ]
    by_kind = [[kind, f"{count:,}", f"{kept:.1%}"] for kind, count, kept in kept_by_kind(read)]
    return [
        ShadedText(read),
        "",
        grid(("kind of token", "tokens", "kept"), by_kind),
        "",
        grid(("held after the last update", *(f"KV head {head}" for head in range(heads))), by_head),
        "",
        facts(pairs),
    ]


class ShadedText:
    """The text with its tokens shaded by how long they lived; as ``[-…-]`` where there are no colours."""

    def __init__(self, read: TracedText) -> None:
        """Take the text and what became of it."""
        self._read = read

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for it."""
        is_plain = console.color_system is None
        yield Text(PLAIN_LEGEND if is_plain else LEGEND, style="italic")
        yield Text()
        yield Text(mark_plainly(self._pieces())) if is_plain else self._styled()

    def _pieces(self) -> list[Piece]:
        held = self._read.held_heads().tolist()
        return [Piece(text=text, heads=count) for text, count in zip(self._read.token_texts(), held, strict=True)]

    def _styled(self) -> Text:
        text = Text()
        for piece, lifetime in zip(self._pieces(), self._read.lifetimes().tolist(), strict=True):
            text.append(visible(piece.text), style_of(lifetime, is_held=piece.heads > 0))
        return text


def style_of(lifetime: float, *, is_held: bool) -> str:
    """How a token is shown that has outlived such a share of the updates it faced (NaN: it faced none)."""
    if not is_held:
        return "dim strike"
    if lifetime != lifetime:
        return ""
    shade = SHADES[min(len(SHADES) - 1, int(lifetime * len(SHADES)))]
    return f"black {shade}" if shade else ""

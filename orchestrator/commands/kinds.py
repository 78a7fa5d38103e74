"""What ``namm kinds`` does: count which kinds of tokens a memory forgets, beside rivals that hold as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import schemas
from orchestrator.analysis.forgetting import Forgetting, TextToRead, forgetting, renumbered
from orchestrator.analysis.queries import Database, database_of
from orchestrator.commands.contenders import contender_named
from orchestrator.commands.generate import model_settings, read_prompt
from orchestrator.config import config_from_dict, load_config
from orchestrator.errors import InputError
from orchestrator.files import write_atomic
from orchestrator.history import has_run, read_journal
from orchestrator.pages.figures import now
from orchestrator.pages.forgetting_figures import forgetting_figures
from orchestrator.pages.page import render
from orchestrator.run import evaluation_tasks
from orchestrator.run_report import held_out_texts, one_thread, require_libraries
from orchestrator.storage import folder_at
from orchestrator.terminal import Answer, facts, grid
from tasks.token_kinds import KINDS, SPECIAL, Language
from workers.language_model import count_tokens, load_language_model, load_tokenizer
from workers.memory.pretrained import PretrainedMemory
from workers.settings import ModelSettings

PAGE = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked about."""

    memory: str
    """Folder of a saved memory, or run folder."""
    model: str | None
    device: str
    dtype: str
    texts: tuple[str, ...]
    """Files to read; empty for held-out examples of the run's tasks, or of the small preset's."""
    language: Language | None
    """None guesses for each text."""
    examples: int
    """Most examples of each task, where no files are named."""
    folder: Path


def kinds(request: Request) -> Answer:
    """Count, and say it as a table, as a page with charts, and as Parquet.

    Raises:
        InputError: a text cannot be read or used, a library is not installed, or there is no such memory.
        ModelError: the model cannot be loaded.
        MemoryFileError: the memory cannot be read.
    """
    require_libraries()
    memory = contender_named(request.memory)
    if not isinstance(memory, PretrainedMemory):
        raise InputError(
            f"{request.memory} is a rival, and stands beside every memory anyway: name a saved memory or run"
        )
    settings = model_settings(request.model, memory, device=request.device, dtype=request.dtype)
    texts = _texts(request, settings)
    language_model = load_language_model(settings)
    with one_thread():
        found = forgetting(language_model, memory, texts)
    pairs = [
        ("memory", request.memory),
        ("model", settings.path_or_id),
        ("texts", f"{len(texts)} ({', '.join(dict.fromkeys(one.task for one in texts))})"),
    ]
    with database_of({"survival": found.survival}) as tables:
        places = _write(request, found, tables, pairs)
        sql = "SELECT language, kind, memory_name, tokens, texts, survival, margin FROM survival_by_kind"
        rows = sorted(tables.ask(sql).records(), key=_place)
    document = {
        "memory": request.memory,
        "model": settings.path_or_id,
        "num_texts": len(texts),
        "kinds": rows,
        **places,
    }
    return Answer(document, [_table(rows), "", facts([*pairs, *places.items()])])


def _texts(request: Request, settings: ModelSettings) -> list[TextToRead]:
    if request.texts:
        read = [(Path(name).name if name != "-" else "standard input", read_prompt(name)) for name in request.texts]
        return renumbered(
            [
                TextToRead.of(name, 0, text, request.language or ("python" if name.endswith(".py") else None))
                for name, text in read
            ]
        )
    folder = folder_at(request.memory)
    config = config_from_dict(read_journal(folder).attempts[-1].config) if has_run(folder) else load_config("small")
    tokens_of = partial(count_tokens, load_tokenizer(settings)[0])
    return held_out_texts(evaluation_tasks(config), request.examples, tokens_of, request.language)


def _write(request: Request, found: Forgetting, tables: Database, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    page = render(
        "forgetting.html",
        title=f"What {request.memory} forgets",
        has_charts=True,
        memory=request.memory,
        facts=pairs,
        made=now(),
        answers=forgetting_figures(tables),
    )
    for name in ("survival", "traces", "traced_tokens"):
        write_atomic(request.folder / f"{name}.parquet", schemas.encode(getattr(found, name)))
    write_atomic(request.folder / PAGE, page.encode())
    return {"page": str(request.folder / PAGE), "survival": str(request.folder / "survival.parquet")}


def _place(row: dict[str, Any]) -> tuple[str, int]:
    return row["language"], [*KINDS[row["language"]], SPECIAL].index(row["kind"])


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    """A line per kind; a column per memory."""
    names = list(
        dict.fromkeys(row["memory_name"] for row in sorted(rows, key=lambda row: row["memory_name"] != "namm"))
    )
    lines = []
    for language, kind in dict.fromkeys((row["language"], row["kind"]) for row in rows):
        cells = {row["memory_name"]: row for row in rows if (row["language"], row["kind"]) == (language, kind)}
        told = [_told(cells[name]) if name in cells else "–" for name in names]
        lines.append([language, kind, f"{next(iter(cells.values()))['tokens']:,}", *told])
    return grid(("text", "kind of token", "tokens", *(f"kept by {name}" for name in names)), lines, left=2)


def _told(row: dict[str, Any]) -> str:
    margin = "" if row["margin"] is None else f" ± {100 * row['margin']:.1f}"
    return f"{100 * row['survival']:.1f}{margin} %"

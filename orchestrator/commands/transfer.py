"""What ``namm transfer`` does: a memory, untouched, on models, modalities and problems that it was not evolved on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from orchestrator.commands.contenders import contender_named
from orchestrator.commands.evaluate import score_on
from orchestrator.errors import InputError
from orchestrator.evolved_there import memory_there
from orchestrator.files import json_bytes, require_output, write_atomic
from orchestrator.fleet import fleet_for
from orchestrator.progress import reporting
from orchestrator.targets import kind_of, models_named, target_for
from orchestrator.terminal import Answer, grid
from orchestrator.transfer import (
    STATISTICS,
    Comparison,
    Figure,
    Statistics,
    Stopwatch,
    Target,
    Wanted,
    carried,
    compare,
    headings,
    lines,
)
from workers.memory.pretrained import PretrainedMemory
from workers.memory.specs import RivalName

THERE = "there"
"""Stands for a memory that was evolved on the model that the other is carried to."""

WORDS_COLUMNS = 3
"""Columns of the table that are words; the others are figures."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be carried where."""

    memory: str
    """A folder, a run folder, or an address of one."""
    to: tuple[str, ...]
    """Models, or names of groups."""
    wanted: Wanted
    statistics: tuple[Statistics, ...] = STATISTICS
    output: Path | None = None
    """``.json`` or ``.md``."""
    form: str = "table"
    quiet: bool = False


def transfer(request: Request) -> Answer:
    """Carry the memory over, and compare.

    Raises:
        InputError, ConfigError, ModelError, TaskError, PromptError, MemoryFileError: what the user can mend, found
            before any worker starts.
    """
    memory = _memory(request.memory)
    if request.output is not None:
        require_output(request.output, (".json", ".md"))
    models = [model for name in request.to for model in models_named(name)]
    kinds = {kind_of(model) for model in models}
    if len(kinds) > 1:
        raise InputError(f"--to names models of several kinds ({', '.join(sorted(kinds))}): ask for one kind at a time")
    watch = Stopwatch()
    say = _say(quiet=request.quiet)
    targets = [target_for(model, request.wanted, say) for model in models]
    watch.lap("models")
    comparisons: list[Comparison] = []
    documents = []
    for target in targets:
        found, document = _compared(target, memory, request)
        comparisons += found
        documents.append(document)
        watch.lap("scores")
    figure = targets[0].figure
    document = {
        "memory": request.memory,
        "figure": figure.title,
        "table": [comparison.document() for comparison in comparisons],
        "models": documents,
        "seconds": watch.seconds,
    }
    if request.output is not None:
        write_atomic(request.output, _encoded(request.output, document, comparisons, figure))
    return Answer(document, _parts(request.form, comparisons, figure, watch.seconds))


def _compared(target: Target, memory: PretrainedMemory, request: Request) -> tuple[list[Comparison], dict[str, Any]]:
    with ExitStack() as stack:
        fleet = stack.enter_context(fleet_for(target.recipe, target.cluster))
        score = score_on(fleet, stack.enter_context(reporting(0, sys.stderr, quiet=request.quiet)))
        memories: dict[str, PretrainedMemory] = {way: carried(memory, way, target, score) for way in request.statistics}
        if target.search_there is not None:
            told = _say(quiet=request.quiet)
            memories[THERE] = memory_there(target, memory.spec.settings, target.search_there, score, told)
        comparisons, results = compare(target, memories, score)
    return comparisons, {
        "model": target.model,
        **target.settings,
        "results": [result.document() for result in results],
    }


def _memory(place: str) -> PretrainedMemory:
    found = contender_named(place)
    if not isinstance(found, PretrainedMemory):
        raise InputError(f"{place} is a rival, not a saved memory: rivals are compared with in any case")
    return found


def _say(*, quiet: bool) -> Callable[[str], None]:
    return (lambda _line: None) if quiet else lambda line: print(line, file=sys.stderr, flush=True)


def rivals_named(text: str | None) -> tuple[RivalName, ...] | None:
    """Rivals from ``a,b`` or ``none``; None for all.

    Raises:
        InputError: there is none of that name, or it is the full cache, which is always there.
    """
    if text is None:
        return None
    names = () if text == "none" else tuple(text.split(","))
    known = [name for name in get_args(RivalName) if name != "full"]
    for name in names:
        if name not in known:
            raise InputError(f"--rivals: there is no rival {name!r} to compare with: name some of {', '.join(known)}")
    return names  # type: ignore[return-value]  # checked just now


# --- what is written --------------------------------------------------------------------------------------------------


def markdown(comparisons: Sequence[Comparison], digits: int) -> str:
    """The printed table in GitHub's Markdown."""
    titles = headings(comparisons)
    rules = ["---"] * WORDS_COLUMNS + ["---:"] * (len(titles) - WORDS_COLUMNS)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rules, *lines(comparisons, digits)))


def _encoded(path: Path, document: Mapping[str, Any], comparisons: Sequence[Comparison], figure: Figure) -> bytes:
    return json_bytes(document) if path.suffix == ".json" else markdown(comparisons, figure.digits).encode()


def _parts(form: str, comparisons: Sequence[Comparison], figure: Figure, seconds: Mapping[str, float]) -> list[Any]:
    if form == "markdown":
        return [markdown(comparisons, figure.digits).rstrip("\n")]
    examples = ", ".join(sorted({f"{comparison.num_examples:,}" for comparison in comparisons}))
    took = ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items())
    return [
        f"{figure.title}; 95 % intervals over {examples} examples; rivals hold as many bytes as the memory",
        grid(headings(comparisons), lines(comparisons, figure.digits), left=WORDS_COLUMNS),
        "",
        f"time  {took}",
    ]

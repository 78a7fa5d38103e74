"""What ``namm watch`` does: show a run while it is alive, from its journal alone.

The journal grows by a line for each generation, and that is all that is read: watching costs a run nothing, on a disk
or an object store, and works wherever the folder is seen. ``namm status`` also counts the units of the moment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.commands.status import HAS_ENDED
from orchestrator.config import config_from_dict
from orchestrator.driver_lock import driver_in
from orchestrator.history import GenerationRecord, JournalContents, read_journal
from orchestrator.progress import RECENT_GENERATIONS, Standing, clock, describe
from orchestrator.storage import Folder, Place, folder_at
from orchestrator.terminal import Answer, facts, spark_line, visible

CURVES = {
    "best fitness": "fitness/best",
    "median fitness": "fitness/median",
    "kept ratio": "cache/kept_ratio_mean",
    "units / s": "cluster/units_per_second",
    "workers": "cluster/workers",
}
"""Spark lines: what they show, and the metric behind it."""

LOG_LINES = 8
"""Generations that are told in words."""


def watch(place: Place, *, seconds: float, stream: TextIO) -> Answer:
    """Show a run until nobody is at work on it any more.

    Args:
        place: path or address of the run folder.
        seconds: between two looks.
        stream: where to show it: a terminal gets a live display, anything else a line per generation.

    Raises:
        RunFolderError: there is no run, a damaged one, or one of another version.
    """
    folder = folder_at(place)
    contents = (_live if stream.isatty() else _lines)(folder, seconds, stream)
    return Answer(_document(folder, contents), display(str(folder), contents))


def _live(folder: Folder, seconds: float, stream: TextIO) -> JournalContents:
    contents = read_journal(folder)
    with Live(console=Console(file=stream), transient=True, auto_refresh=False) as live:
        while _state(contents) not in HAS_ENDED:
            live.update(Group(*display(str(folder), contents)), refresh=True)
            time.sleep(seconds)
            contents = read_journal(folder)
    return contents


def _lines(folder: Folder, seconds: float, stream: TextIO) -> JournalContents:
    told = 0
    while True:
        contents = read_journal(folder)
        for line in log_lines(contents, told):
            stream.write(f"{visible(line)}\n")
        stream.flush()
        told = len(contents.generations)
        if _state(contents) in HAS_ENDED:
            return contents
        time.sleep(seconds)


def display(name: str, contents: JournalContents) -> list[RenderableType]:
    """Everything that is shown, top to bottom."""
    total, records = _total(contents), contents.generations
    bar = Table.grid(padding=(0, 2))
    bar.add_row(Text(f"{len(records)} of {total} generations"), ProgressBar(total, len(records), width=40))
    driver = driver_in(contents)
    pairs = [
        ("run", name),
        ("driver", f"pid {driver.pid} on {driver.host} is {driver.state}" if driver else "none: the run was closed"),
        ("attempts", str(len(contents.attempts))),
        ("workers", _workers(records)),
        ("left", _left(total, records)),
    ]
    curves = [(title, curve(records, metric)) for title, metric in CURVES.items() if records]
    log = [Text(visible(line)) for line in log_lines(contents, max(0, len(records) - LOG_LINES))]
    return [bar, facts([*pairs, *curves]), *([Text(), *log] if log else [])]


def curve(records: Sequence[GenerationRecord], metric: str) -> str:
    """A metric over the generations as a spark line, with its first and last value."""
    values = [record.metrics[metric] for record in records if metric in record.metrics]
    return f"{spark_line(values)}  {values[0]:.3g} to {values[-1]:.3g}" if values else "not measured"


def log_lines(contents: JournalContents, first: int) -> list[str]:
    """The generations from ``first`` on in a line each, with the time when they ended."""
    total = _total(contents)
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(record.timestamp_ms / 1000))}  "
        f"generation {record.generation + 1}/{total}  {describe(record)}"
        for record in contents.generations[first:]
    ]


def _document(folder: Folder, contents: JournalContents) -> dict[str, Any]:
    records = contents.generations
    return {
        "folder": str(folder),
        "state": _state(contents),
        "generations": _total(contents),
        "generations_done": len(records),
        "curves": {metric: [record.metrics.get(metric) for record in records] for metric in CURVES.values()},
    }


def _state(contents: JournalContents) -> str:
    """As ``namm status`` has it, but that a run counts as finished with its last generation."""
    if driver := driver_in(contents):
        return driver.state
    return "finished" if len(contents.generations) >= _total(contents) else "stopped"


def _total(contents: JournalContents) -> int:
    return config_from_dict(contents.attempts[-1].config).search.generations


def _workers(records: Sequence[GenerationRecord]) -> str:
    if not records:
        return "not known before the first generation has ended"
    last = records[-1].metrics
    return (
        f"{last['cluster/workers']:.0f}, {last['cluster/units_per_second']:.1f} units/s; "
        f"{last['cluster/deaths']:.0f} lost, {last['cluster/retries']:.0f} units sent again by this driver"
    )


def _left(total: int, records: Sequence[GenerationRecord]) -> str:
    if not records:
        return "not known yet"
    known = Standing(total)
    for record in records[-RECENT_GENERATIONS:]:
        known.take(record)
    return f"about {clock(known.seconds_left(records[-1]))} for the generations"

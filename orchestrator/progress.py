"""Where a run stands while it runs: a live display on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from workers.unit import FULL_CACHE_PASS

if TYPE_CHECKING:  # evolution knows the fleet, and with it Ray: too heavy for a display
    from orchestrator.evolution import Progress
    from orchestrator.journal import GenerationRecord

Report = Callable[["Progress"], None]
Part = Literal["full cache", "generation", "evaluation"]

SECONDS_BETWEEN_LINES = 5.0
"""Plain lines come no closer than this, but for the last generation's."""

RECENT_GENERATIONS = 8
"""Generations over which the time left is estimated."""


class Standing:
    """What is known from the progress reported so far."""

    def __init__(self, generations: int) -> None:
        """Know how many generations there will be; 0 for an evaluation alone."""
        self.generations = generations
        self._recent_seconds: list[float] = []

    def part(self, progress: Progress) -> Part:
        """What is being done."""
        if progress.generation == FULL_CACHE_PASS:
            return "full cache"
        return "generation" if progress.generation < self.generations else "evaluation"

    def take(self, record: GenerationRecord) -> str:
        """Take a finished generation in; returns what is to be said of it."""
        self._recent_seconds = [*self._recent_seconds, sum(record.seconds.values())][-RECENT_GENERATIONS:]
        return f"{describe(record)}  {clock(self.seconds_left(record))} left"

    def seconds_left(self, record: GenerationRecord, part_done: float = 0.0) -> float:
        """Estimate for the generations to come; the evaluation after them is not in it.

        Args:
            record: the last generation that was taken in.
            part_done: of the generation after it, from 0 to 1.
        """
        # The median: the first generation after a start also waits for the workers to load.
        generations_left = self.generations - record.generation - 1 - part_done
        return statistics.median(self._recent_seconds) * max(0.0, generations_left)


def describe(record: GenerationRecord) -> str:
    """A finished generation in one line, without its number."""
    metrics = record.metrics
    workers, deaths = int(metrics["cluster/workers"]), int(metrics["cluster/deaths"])
    lost = f", {deaths} lost" if deaths else ""
    return (
        f"fitness best {metrics['fitness/best']:.3f} mean {metrics['fitness/mean']:.3f}  "
        f"kept {metrics['cache/kept_ratio_mean']:.0%}  "
        f"{metrics['cluster/units_per_second']:.1f} units/s  "
        f"{workers} worker{'' if workers == 1 else 's'}{lost}"
    )


def clock(seconds: float) -> str:
    """``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def reporting(generations: int, stream: TextIO, *, opening: str = "", quiet: bool) -> Iterator[Report]:
    """What to call with every progress; the display ends with the block.

    Args:
        generations: how many there will be; 0 for an evaluation alone.
        stream: where to show it; a terminal gets a live display.
        opening: said with the first progress: not before, because a run that cannot begin has one line to say.
        quiet: show nothing.
    """
    if quiet:
        yield lambda _: None
    elif stream.isatty():
        with LiveReport(generations, Console(file=stream), opening) as report:
            yield report
    else:
        yield PlainReport(generations, stream, opening)


class PlainReport:
    """A line when a part begins and when a generation ends, at most every few seconds."""

    def __init__(
        self, generations: int, stream: TextIO, opening: str = "", now: Callable[[], float] = time.monotonic
    ) -> None:
        """Write to ``stream``, ``opening`` first; ``now`` tells the time in seconds."""
        self._standing = Standing(generations)
        self._stream = stream
        self._opening = opening
        self._now = now
        self._part: Part | None = None
        self._last_line = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """Say it, if it is time."""
        if self._opening:
            self._write(self._opening)
            self._opening = ""
        part = self._standing.part(progress)
        if part != self._part and part != "generation":
            self._write(f"{part}: {progress.units_total} units")
        self._part = part
        if progress.record is None:
            return
        line = self._standing.take(progress.record)
        is_last = progress.generation == self._standing.generations - 1
        if is_last or self._now() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._now()
            self._write(f"generation {progress.generation + 1}/{self._standing.generations}  {line}")

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class _Bars(Bars):
    """Bars with a line of text below them."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """As rich asks for them."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


class LiveReport:
    """Two bars, generations and the units of what is being done, with the last generation's figures below."""

    def __init__(self, generations: int, console: Console, opening: str = "") -> None:
        """Show on ``console`` while used as a context manager; ``opening`` stays above."""
        self._opening = opening
        self._standing = Standing(generations)
        self._bars = _Bars(
            TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
        )
        self._generations: TaskID | None = None
        if generations:
            self._generations = self._bars.add_task("generations", total=generations)
        self._units = self._bars.add_task("starting", total=None)

    def __enter__(self) -> LiveReport:
        """Begin to show."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the display."""
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show it."""
        if self._opening:
            self._bars.console.print(self._opening, highlight=False, markup=False)
            self._opening = ""
        part = self._standing.part(progress)
        name = f"{part} {progress.generation + 1}" if part == "generation" else part
        self._bars.update(self._units, description=name, completed=progress.units_done, total=progress.units_total)
        if progress.record is not None and self._generations is not None:
            self._bars.below = self._standing.take(progress.record)
            self._bars.update(self._generations, completed=progress.generation + 1)

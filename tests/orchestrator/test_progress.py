"""Where a run stands, said on a terminal, in a log, or not at all."""

import io

import pytest
from rich.console import Console

from orchestrator.evolution import Progress
from orchestrator.journal import GenerationRecord
from orchestrator.progress import SECONDS_BETWEEN_LINES, LiveReport, PlainReport, clock, describe, reporting
from workers.unit import FULL_CACHE_PASS


def record(generation, *, seconds=2.0, workers=2, deaths=0):
    metrics = {
        "fitness/best": 0.9,
        "fitness/mean": 0.5,
        "cache/kept_ratio_mean": 0.42,
        "cluster/units_per_second": 12.34,
        "cluster/workers": workers,
        "cluster/deaths": deaths,
    }
    return GenerationRecord(
        generation=generation,
        losses=[],
        population_hash="",
        examples={},
        timestamp_ms=0,
        metrics=metrics,
        seconds={"score": seconds},
    )


def committed(generation, **values):
    return Progress(generation=generation, units_done=4, units_total=4, record=record(generation, **values))


def a_whole_run(generations):
    """What a run reports, in order."""
    yield Progress(generation=FULL_CACHE_PASS, units_done=1, units_total=2)
    yield Progress(generation=FULL_CACHE_PASS, units_done=2, units_total=2)
    for generation in range(generations):
        yield Progress(generation=generation, units_done=4, units_total=4)
        yield committed(generation)
    yield Progress(generation=generations, units_done=1, units_total=7)


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_a_generation_is_told_in_one_line():
    assert describe(record(3)) == "fitness best 0.900 mean 0.500  kept 42%  12.3 units/s  2 workers"
    assert describe(record(3, workers=1, deaths=2)).endswith("1 worker, 2 lost")


def test_a_log_gets_a_line_for_every_part():
    stream = io.StringIO()
    report = PlainReport(2, stream, "evolving", now=Clock())
    for progress in a_whole_run(2):
        report(progress)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == [
        "evolving",
        "full cache: 2 units",
        "generation 1/2",
        "generation 2/2",
        "evaluation: 7 units",
    ]


def test_lines_come_seconds_apart_but_the_last_generation_is_always_told():
    stream, now = io.StringIO(), Clock()
    report = PlainReport(5, stream, now=now)
    for generation in range(5):
        report(committed(generation))
        now.seconds += SECONDS_BETWEEN_LINES * 0.6
    told = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert told == ["generation 1/5", "generation 3/5", "generation 5/5"]


def test_the_time_left_is_not_spoilt_by_a_slow_first_generation():
    stream = io.StringIO()
    report = PlainReport(13, stream, now=Clock())
    for generation, seconds in enumerate([60.0, 2.0, 2.0]):
        report(committed(generation, seconds=seconds))
    report(committed(12))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("12:00 left")
    assert lines[-1].endswith("0:00 left")
    standing = report._standing
    assert standing.seconds_left(record(2)) == 20.0


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0:00"), (65, "1:05"), (7265.0, "2:01:05")])
def test_times_are_told_as_clocks_do(seconds, told):
    assert clock(seconds) == told


@pytest.mark.parametrize("width", [60, 160])
def test_a_terminal_shows_bars_with_the_figures_below(width):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with LiveReport(2, console, "evolving in [runs]/small") as report:
        for progress in a_whole_run(2):
            report(progress)
        report._bars.refresh()
    shown = stream.getvalue()
    for told in ("evolving in [runs]/small", "generations", "2/2", "evaluation", "1/7", "fitness best 0.900"):
        assert told in shown


def test_quiet_says_nothing():
    stream = io.StringIO()
    with reporting(2, stream, opening="evolving", quiet=True) as report:
        for progress in a_whole_run(2):
            report(progress)
    assert stream.getvalue() == ""


def test_the_stream_decides_how_progress_is_shown():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with reporting(2, io.StringIO(), quiet=False) as plain, reporting(2, Terminal(), quiet=False) as live:
        assert isinstance(plain, PlainReport)
        assert isinstance(live, LiveReport)

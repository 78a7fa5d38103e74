"""Processes that make the rows of a training while the model learns."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from workers.text_curriculum import Level, Row, RowMaker

Rows = Callable[[], list[Row]]
"""Gives the rows of a step, once they are made."""


@contextmanager
def row_makers(maker: RowMaker, processes: int) -> Iterator[Callable[[Level, int, int], Rows]]:
    """A function that orders (level, step, number of rows); the rows are the same, in order, whoever makes them."""
    if not processes:
        yield lambda level, step, count: lambda: maker.rows(level, step, range(count))
        return
    # Spawned, because a fork of a process that uses an accelerator may hang. The maker holds all text: an argument is
    # written to a pipe that is not read before a process has imported what it needs, and the one that trains would wait
    # for that, ten seconds for each of them; a queue is written to by a thread of its own.
    spawn = multiprocessing.get_context("spawn")
    makers: multiprocessing.Queue[RowMaker] = spawn.Queue()
    for _ in range(processes):
        makers.put(maker)
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_take_maker, initargs=(makers,)) as pool:
        for _ in range(processes):  # all of them now, not when the first slow rows are asked for
            pool.submit(os.getpid)

        def order(level: Level, step: int, count: int) -> Rows:
            # Several steps are asked for in advance, so each needs fewer pieces than there are processes; and a message
            # takes the process that trains as long as a row takes one of these.
            size = max(1, 2 * count // processes)
            pieces = [range(start, min(start + size, count)) for start in range(0, count, size)]
            made = [pool.submit(_made, level, step, piece) for piece in pieces]
            return lambda: [row for piece in made for row in piece.result()]

        try:
            yield order
        finally:
            makers.cancel_join_thread()
            pool.shutdown(wait=True, cancel_futures=True)


_MAKERS: list[RowMaker] = []
"""Of this process, once it has been told."""


def _take_maker(makers: multiprocessing.Queue[RowMaker]) -> None:
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    _MAKERS[:] = [makers.get()]


def _end_with_the_trainer() -> None:
    """A trainer that is killed tells its processes nothing: they would wait for orders for ever."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _made(level: Level, step: int, numbers: range) -> list[Row]:
    return _MAKERS[0].rows(level, step, numbers)

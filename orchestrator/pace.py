"""How long units take: which ones to begin with, and which ones are slow. Pure; nothing here can change a score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from workers.unit import Unit

SLOW_FACTOR = 3.0
"""A unit is slow after this many times its expected seconds: a second copy that was not needed holds a worker up."""

SLOW_SECONDS = 1.0
"""And not before: machines hesitate that long for reasons of their own."""


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / self.count


class Pace:
    """Running means of the seconds of one candidate on one example, by example and by task."""

    def __init__(self) -> None:
        self._by_example: dict[tuple[str, str, int], _Mean] = defaultdict(_Mean)
        self._by_task: dict[str, _Mean] = defaultdict(_Mean)

    def learn(self, unit: Unit, seconds: float) -> None:
        """Take in how long a unit took."""
        share = seconds / (len(unit.candidates) * len(unit.examples))
        self._by_task[unit.task].add(share)
        for example in unit.examples:
            self._by_example[unit.task, unit.split, example].add(share)

    def expected(self, unit: Unit) -> float | None:
        """Seconds that a unit will take; None when nothing of its task was scored yet."""
        if unit.task not in self._by_task:
            return None
        typical = self._by_task[unit.task].value
        keys = [(unit.task, unit.split, example) for example in unit.examples]
        shares = [self._by_example[key].value if key in self._by_example else typical for key in keys]
        return len(unit.candidates) * sum(shares)

    def longest_first(self, units: Sequence[Unit]) -> list[Unit]:
        """The order in which to begin: all wait for a long unit that is begun last. Unknown ones stand first."""

        def seconds(unit: Unit) -> float:
            expected = self.expected(unit)
            return float("inf") if expected is None else expected

        return sorted(units, key=seconds, reverse=True)

    def is_slow(self, unit: Unit, seconds: float) -> bool:
        """Whether a unit that has been in work for so long is worth a second copy."""
        expected = self.expected(unit)
        return expected is not None and seconds > max(SLOW_SECONDS, SLOW_FACTOR * expected)

"""Workers without a model, for fleets: what they do to a unit depends on its first example."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.orchestrator.scored import score_unit
from workers.unit import ScoredUnit, Unit


@dataclass(frozen=True)
class FakeRecipe:
    """Scores units, slowly if wished, and fails on the examples named."""

    folder: Path | None = None
    """Where every attempt leaves a file named by unit and process id; None leaves none."""
    seconds: float = 0.0
    deadly: tuple[int, ...] = ()
    raising: tuple[int, ...] = ()
    raising_once: tuple[int, ...] = ()
    slow_once: tuple[int, ...] = ()
    """Takes ten minutes for these, the first time."""
    hurry: Path | None = None
    """Once this file is there, no unit takes any time."""
    room: int | None = None
    """Most rows for which its accelerator has room; it writes down what it is told when a unit has more."""

    def build(self) -> "FakeScorer":
        return FakeScorer(self)


@dataclass(frozen=True)
class BrokenRecipe:
    """Cannot be built: with a message, or by dying."""

    is_deadly: bool = False

    def build(self) -> "FakeScorer":
        if self.is_deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no model in /nowhere:\nset model.path_or_id to a folder that has one")


@dataclass(frozen=True)
class SlowToBuild:
    """Takes longer to load than any test lasts."""

    def build(self) -> "FakeScorer":
        time.sleep(600.0)
        return FakeScorer(FakeRecipe())


class OtherLibraryError(Exception):
    """Like those of several libraries, it can be pickled but not unpickled."""

    def __init__(self, example: int, trouble: str) -> None:
        super().__init__(f"example {example} {trouble}")


@dataclass(frozen=True)
class FakeScorer:
    recipe: FakeRecipe
    limits: dict[str, int] = field(default_factory=dict)

    def score(self, unit: Unit) -> ScoredUnit:
        first = unit.examples[0]
        is_first_attempt = not attempts(self.recipe.folder, unit.key)
        if self.recipe.folder is not None:
            (self.recipe.folder / f"{unit.key}.{os.getpid()}").touch()
        if self.recipe.room is not None and unit.task not in self.limits:
            with (self.recipe.folder / "limits").open("a") as told:
                told.write(str(self.limits).replace(" ", "") + " ")
            self.limits[unit.task] = self.recipe.room
        if first in self.recipe.slow_once and is_first_attempt:
            time.sleep(600.0)
        if self.recipe.hurry is None or not self.recipe.hurry.exists():
            time.sleep(self.recipe.seconds)
        if first in self.recipe.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if first in self.recipe.raising or (first in self.recipe.raising_once and is_first_attempt):
            raise OtherLibraryError(first, "does not compute")
        return score_unit(unit)


def attempts(folder: Path | None, key: str) -> set[int]:
    """Process ids that have tried to score a unit."""
    return set() if folder is None else {int(path.suffix[1:]) for path in folder.glob(f"{key}.*")}

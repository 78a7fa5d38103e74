"""The order of things, with fake scores: whatever a crash leaves behind, the run ends as if there had been none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from orchestrator.config import RunConfig, config_hash, config_to_dict, load_config
from orchestrator.errors import DrainedError, RunFolderError, UnitQuarantinedError
from orchestrator.evolution import Evolved, Parts, Progress, evolve
from orchestrator.journal import Journal, read_journal
from orchestrator.rounds import InProcessFleet
from orchestrator.search import Search
from orchestrator.store import Store
from tests.orchestrator.disk import Disk, Killed, last_attempt
from tests.orchestrator.scored import score_unit
from workers.unit import ScoredUnit, Unit

CONFIG = load_config(
    "small",
    (
        "memory.window=4",
        "memory.hop=2",
        "memory.hidden_size=2",
        "search.generations=2",
        "search.population=4",
        "units.candidates_per_unit=2",
        "examples.pool=2",
        "examples.per_generation=1",
    ),
)


class CountingRecipe:
    """Fake scores, and a count of how often each unit was finished."""

    def __init__(self) -> None:
        self.finished: Counter[str] = Counter()
        self.limits: dict[str, int] = {}

    def build(self) -> CountingRecipe:
        return self

    def score(self, unit: Unit) -> ScoredUnit:
        scored = score_unit(unit)
        self.finished[unit.key] += 1
        return scored


def drive(
    folder: Path, recipe: CountingRecipe, config: RunConfig = CONFIG, seen: list[Progress] | None = None
) -> Evolved:
    """One driver, from opening the run folder to the end of the search."""
    with InProcessFleet(recipe) as fleet:
        return drive_on(fleet, folder, config, seen if seen is not None else [])


def drive_on(fleet: InProcessFleet, folder: Path, config: RunConfig, seen: list[Progress]) -> Evolved:
    with Journal.open(folder, config_hash(config), config_to_dict(config), takeover=True) as journal:
        return evolve(
            Parts(
                config=config,
                fleet=fleet,
                store=Store(journal.folder),
                journal=journal,
                search=Search(config.search, config.memory.genome_size, config.seed),
                report=seen.append,
            )
        )


def same(some: Evolved, others: Evolved) -> bool:
    return some.population_hash == others.population_hash and np.array_equal(some.genome, others.genome)


@pytest.mark.parametrize(
    "fails_after_the_step", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"]
)
def test_a_driver_killed_at_any_step_resumes_to_the_same_end(fails_after_the_step, tmp_path, monkeypatch):
    undisturbed = drive(tmp_path / "undisturbed", CountingRecipe())
    disk = Disk(monkeypatch)
    drive(tmp_path / "counted", CountingRecipe())
    num_steps, disk.fails_after_the_step = disk.steps, fails_after_the_step
    assert num_steps > 80
    for step in range(num_steps):
        folder, recipe = tmp_path / f"step-{step}", CountingRecipe()
        disk.steps, disk.fail_at = 0, step
        with pytest.raises(Killed):
            drive(folder, recipe)
        disk.fail_at = None
        durable = {key for key in recipe.finished if Store(folder).get_unit(key) is not None}
        assert same(drive(folder, recipe), undisturbed), f"killed at step {step}"
        assert {key for key, count in recipe.finished.items() if count > 1}.isdisjoint(durable)
        assert sum(recipe.finished.values()) <= len(recipe.finished) + 1, "more than the unit in flight was repeated"


def test_a_killed_driver_before_tell_is_told_by_the_journal(tmp_path, monkeypatch):
    undisturbed = drive(tmp_path / "undisturbed", CountingRecipe())
    tell = Search.tell

    def die(search, losses):
        if search.generation == 1:
            raise Killed
        tell(search, losses)

    recipe = CountingRecipe()
    with monkeypatch.context() as patch:
        patch.setattr(Search, "tell", die)
        with pytest.raises(Killed):
            drive(tmp_path / "run", recipe)
    assert same(drive(tmp_path / "run", recipe), undisturbed)
    assert set(recipe.finished.values()) == {1}


def test_a_torn_last_line_is_a_generation_to_commit_again_from_stored_units(tmp_path):
    recipe = CountingRecipe()
    undisturbed = drive(tmp_path, recipe)
    journal = last_attempt(tmp_path)
    *before, _last_generation, _closing = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(before) + _last_generation[:-20])
    assert same(drive(tmp_path, recipe), undisturbed)
    assert set(recipe.finished.values()) == {1}


def test_every_table_is_the_same_after_a_crash(tmp_path, monkeypatch):
    drive(tmp_path / "undisturbed", CountingRecipe())
    disk = Disk(monkeypatch)
    drive(tmp_path / "counted", CountingRecipe())
    disk.steps, disk.fail_at = 0, disk.steps // 2
    recipe = CountingRecipe()
    with pytest.raises(Killed):
        drive(tmp_path / "run", recipe)
    disk.fail_at = None
    drive(tmp_path / "run", recipe)
    for name in ("candidates", "genomes", "evaluations", "evictions"):
        assert Store(tmp_path / "run").table(name).equals(Store(tmp_path / "undisturbed").table(name))


def test_heldout_examples_never_enter_the_fitness(tmp_path):
    recipe = CountingRecipe()
    splits = set()

    def score(unit):
        splits.add(unit.split)
        return score_unit(unit)

    recipe.score = score
    drive(tmp_path, recipe)
    assert splits == {"train"}


def test_progress_counts_units_and_ends_each_generation_with_its_record(tmp_path):
    seen: list[Progress] = []
    drive(tmp_path, CountingRecipe(), seen=seen)
    assert [progress.generation for progress in seen if progress.record] == [0, 1]
    assert all(progress.units_done <= progress.units_total for progress in seen)
    assert seen[-1].record.metrics["fitness/best"] == -min(seen[-1].record.losses)


def test_a_journal_that_this_installation_cannot_repeat_is_refused(tmp_path):
    drive(tmp_path, CountingRecipe())
    journal = last_attempt(tmp_path)
    first, second = (record.population_hash for record in read_journal(tmp_path).generations)
    assert first != second
    journal.write_text(journal.read_text().replace(second, "0" * 64))
    longer = dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, generations=3))
    with pytest.raises(RunFolderError, match="generation 1 cannot be repeated"):
        drive(tmp_path, CountingRecipe(), longer)


class FailingRecipe(CountingRecipe):
    """Fails on one unit of generation 1, as often as it is tried."""

    def score(self, unit: Unit) -> ScoredUnit:
        if unit.generation == 1 and unit.candidates[0] == 2 and unit.task.startswith("facts_code"):
            raise ValueError("does not compute")
        return super().score(unit)


def test_a_unit_set_aside_counts_as_wrong_and_the_search_goes_on(tmp_path, caplog):
    drive(tmp_path, FailingRecipe())
    assert "was set aside" in caplog.text
    units = Store(tmp_path).table("units").to_pylist()
    (declared,) = [unit for unit in units if unit["is_declared"]]
    assert (declared["generation"], declared["task"]) == (1, "facts_code-256")
    rows = Store(tmp_path).table("evaluations").filter(ds.field("unit") == declared["unit"]).to_pylist()
    assert {(row["exact"], row["graded"]) for row in rows} == {(0.0, 0.0)}
    assert {row["candidate"] for row in rows} == {2, 3}
    record = read_journal(tmp_path).generations[1]
    assert record.metrics["cluster/units_set_aside"] == 1
    assert all(np.isfinite(record.losses))


def test_a_declared_unit_is_not_tried_again_when_the_run_is_resumed(tmp_path):
    longer = dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, generations=3))
    ended = drive(tmp_path / "run", FailingRecipe(), longer)
    (tmp_path / "cut").mkdir()
    drive(tmp_path / "cut", FailingRecipe())
    recipe = CountingRecipe()
    assert same(drive(tmp_path / "cut", recipe, longer), ended)
    assert {key.split("_")[0] for key in recipe.finished} == {"g000002"}


def test_the_full_cache_pass_cannot_do_without_a_unit(tmp_path):
    recipe = CountingRecipe()

    def fail(unit):
        raise ValueError("does not compute")

    recipe.score = fail
    with pytest.raises(UnitQuarantinedError, match="does not compute"):
        drive(tmp_path, recipe)


def test_a_drained_run_stores_what_came_back_and_ends_like_any_other(tmp_path):
    undisturbed, recipe = drive(tmp_path / "undisturbed", CountingRecipe()), CountingRecipe()
    with InProcessFleet(recipe) as fleet:
        score = recipe.score

        def score_and_drain(unit):
            if len(recipe.finished) == 5:
                fleet.drain()
            return score(unit)

        recipe.score = score_and_drain
        with pytest.raises(DrainedError):
            drive_on(fleet, tmp_path / "run", CONFIG, [])
    assert 5 <= len(recipe.finished) <= 7, "the one in work, and the one behind it"
    assert same(drive(tmp_path / "run", recipe), undisturbed)
    assert set(recipe.finished.values()) == {1}

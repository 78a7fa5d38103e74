"""Full-cache scores beside the run folders: what decides them, and what happens when they cannot be had."""

import dataclasses
import logging

import numpy as np
import pytest

from orchestrator.config import UnitSettings, load_config
from orchestrator.full_cache import EDGE_BYTES, FullCacheLibrary, folder_digest, full_cache_hash, full_cache_settings
from orchestrator.storage import folder_at
from orchestrator.store import Store
from orchestrator.units import plan_units
from tasks.registry import GeneratedTaskSettings
from tests.orchestrator.scored import score_unit
from workers.memory.specs import RivalSpec
from workers.unit import FULL_CACHE_PASS

PROSE = GeneratedTaskSettings(kind="facts_prose")


def name_of(*overrides, task=PROSE, has_statistics=True):
    return full_cache_hash(full_cache_settings(load_config("small", overrides)), task, has_statistics=has_statistics)


def test_what_decides_the_scores_decides_the_name():
    others = [
        name_of("model.dtype=bfloat16"),
        name_of("prompts.bos=false"),
        name_of("memory.window=16", "memory.hop=8"),
        name_of("units.examples_per_unit=1"),
        name_of("fitness.score=exact"),
        name_of(task=dataclasses.replace(PROSE, seed=1)),
        name_of(has_statistics=False),
    ]
    assert len({name_of(), *others}) == 1 + len(others)


def test_what_does_not_decide_them_leaves_it():
    assert name_of("seed=3", "search.population=4", "cluster.workers=4", "fitness.kept_price=0.1") == name_of()


def units(task, count=4):
    return plan_units(
        generation=FULL_CACHE_PASS,
        memory_name="full",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((1, 3), np.float32),
        examples={task: tuple(range(count))},
        split="train",
        settings=UnitSettings(candidates_per_unit=1, examples_per_unit=1),
    )


def scored_through(library, own, wanted):
    """What was scored anew, and what came out."""
    fresh = []

    def score():
        there = own.get_units([unit.key for unit in wanted])
        for unit in wanted:
            if unit.key not in there:
                there[unit.key] = score_unit(unit)
                own.put_unit(there[unit.key])
                fresh.append(unit.key)
        return [there[unit.key] for unit in wanted]

    return fresh, library.through(own, wanted, score)


def test_a_second_run_scores_only_what_the_first_did_not(tmp_path):
    config = load_config("small")
    task = config.tasks[0].name
    library = FullCacheLibrary.beside(folder_at(tmp_path / "runs" / "one"), config)
    first, one = scored_through(library, Store(tmp_path / "runs" / "one"), units(task, 3))
    second, two = scored_through(library, Store(tmp_path / "runs" / "two"), units(task, 4))
    assert (len(first), second) == (3, [units(task, 4)[-1].key])
    assert [unit.exact.tolist() for unit in two[:3]] == [unit.exact.tolist() for unit in one]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["full-cache", "one", "two"]


def test_a_library_that_cannot_be_read_costs_a_warning(tmp_path, caplog):
    config = load_config("small")
    task = config.tasks[0].name
    library = FullCacheLibrary.beside(folder_at(tmp_path / "one"), config)
    scored_through(library, Store(tmp_path / "one"), units(task))
    for path in (tmp_path / "full-cache").rglob("*.parquet"):
        path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        fresh, _ = scored_through(library, Store(tmp_path / "two"), units(task))
    assert len(fresh) == 4
    assert "full-cache scores of earlier runs are not used" in caplog.text


@pytest.mark.parametrize("size", [10, 65 * 2**20])
def test_weights_are_told_apart_by_their_content_or_by_both_ends_of_large_files(size, tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(size)
    digests = [folder_digest(tmp_path)]
    for place in (0, max(0, size - EDGE_BYTES // 2)):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        digests.append(folder_digest(tmp_path))
    assert len(set(digests)) == (3 if size > 10 else 2)

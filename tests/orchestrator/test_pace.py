import numpy as np
import pytest

from orchestrator.config import UnitSettings
from orchestrator.pace import SLOW_FACTOR, SLOW_SECONDS, Pace
from orchestrator.units import plan_units
from workers.memory.specs import RivalSpec


def units(task="qa", count=4, generation=0, candidates=2):
    return plan_units(
        generation=generation,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((candidates, 3), dtype=np.float32),
        examples={task: tuple(range(count))},
        split="train",
        settings=UnitSettings(candidates_per_unit=candidates, examples_per_unit=1),
    )


def test_before_anything_was_scored_the_order_is_the_plans():
    assert [unit.key for unit in Pace().longest_first(units())] == [unit.key for unit in units()]
    assert Pace().expected(units()[0]) is None
    assert not Pace().is_slow(units()[0], 1e9)


def test_what_an_example_took_is_expected_of_it_in_later_generations():
    pace = Pace()
    for unit, seconds in zip(units(), (1.0, 4.0, 2.0, 3.0), strict=True):
        pace.learn(unit, seconds)
    later = units(generation=7)
    assert [pace.expected(unit) for unit in later] == [1.0, 4.0, 2.0, 3.0]
    assert [unit.examples[0] for unit in pace.longest_first(later)] == [1, 3, 2, 0]
    assert pace.expected(units(candidates=4)[1]) == 8.0, "twice the candidates take twice as long"


def test_an_example_not_seen_before_takes_what_its_task_takes():
    pace = Pace()
    pace.learn(units()[0], 1.0)
    pace.learn(units()[1], 3.0)
    assert pace.expected(units()[2]) == pytest.approx(2.0)


def test_an_unknown_task_stands_first():
    pace = Pace()
    pace.learn(units()[0], 1.0)
    known, unknown = units()[0], units(task="code")[0]
    assert pace.longest_first([known, unknown]) == [unknown, known]


def test_a_unit_is_slow_after_several_times_what_was_expected():
    pace = Pace()
    pace.learn(units()[0], 2.0)
    assert not pace.is_slow(units()[0], 2.0 * SLOW_FACTOR)
    assert pace.is_slow(units()[0], 2.0 * SLOW_FACTOR + 0.1)


def test_no_unit_is_slow_within_a_second():
    pace = Pace()
    pace.learn(units()[0], 0.001)
    assert not pace.is_slow(units()[0], SLOW_SECONDS)
    assert pace.is_slow(units()[0], SLOW_SECONDS + 0.1)

"""The views over a run's tables, on tables of units that were scored in the test."""

import numpy as np
import pytest

from orchestrator import tables
from orchestrator.analysis.queries import database_of
from orchestrator.config import UnitSettings
from orchestrator.units import plan_units
from tests.orchestrator.scored import score_unit
from workers.memory.specs import RivalSpec


def evaluated(examples_per_unit):
    """Six held-out examples under two memories, in units of so many."""
    return [
        score_unit(unit)
        for name in ("full", "recent")
        for unit in plan_units(
            generation=2,
            memory_name=name,
            memory=RivalSpec(name=name),
            genomes=np.zeros((1, 0), np.float32),
            examples={"a": tuple(range(6))},
            split="heldout",
            settings=UnitSettings(candidates_per_unit=1, examples_per_unit=examples_per_unit),
        )
    ]


def answers(units, sql):
    found = {"evaluations": tables.evaluations_table(units), "evictions": tables.evictions_table(units)}
    with database_of(found) as database:
        return database.ask(sql).records()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT memory_name, examples, exact, ratio, margin, kept_ratio FROM comparison ORDER BY memory_name",
        "SELECT memory_name, example, score, full_score, kept_ratio FROM heldout_examples ORDER BY 1, 2",
    ],
    ids=["comparison", "heldout_examples"],
)
def test_an_example_counts_once_however_often_the_units_were_cut_anew(sql):
    """A finished run was resumed with another ``evaluation.examples_per_unit``: n cuts counted an example n^2 times."""
    assert answers([*evaluated(2), *evaluated(3)], sql) == answers(evaluated(2), sql)

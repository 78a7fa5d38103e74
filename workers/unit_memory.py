"""The memory that a unit is scored under, and what it has gathered."""

from __future__ import annotations

from workers.memory.build import build_memory
from workers.memory.memory import Memory
from workers.memory.namm import StatisticsPass
from workers.memory.specs import NammSpec
from workers.unit import FeatureStatistics, Unit


def memory_of(unit: Unit) -> Memory:
    """The unit's memory under its genomes; for a unit that records statistics, one that keeps all and gathers them.

    Raises:
        ValueError: statistics are wanted of a memory that reads no features.
    """
    if not unit.record_statistics:
        return build_memory(unit.memory, unit.genomes)
    if not isinstance(unit.memory, NammSpec):
        raise ValueError(f"statistics are gathered for an evolved memory, not for {unit.memory.name!r}")
    return StatisticsPass(unit.memory.settings)


def gathered(memory: Memory) -> FeatureStatistics | None:
    """The statistics that a memory has gathered, if it does."""
    if not isinstance(memory, StatisticsPass):
        return None
    moments = memory.moments
    return FeatureStatistics(moments.count, moments.mean.cpu().numpy(), moments.variance.cpu().numpy())

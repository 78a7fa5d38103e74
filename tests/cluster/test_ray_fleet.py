"""Fleets on real Ray: one cluster for the module, whose machines come and go."""

import dataclasses
import os
import signal
import threading
import time

import numpy as np
import pytest

from orchestrator import fleet as fleet_module
from orchestrator.config import ClusterSettings, UnitSettings
from orchestrator.errors import DrainedError, FleetError, UnitQuarantinedError
from orchestrator.fleet import FleetStats, InProcessFleet, RayFleet
from orchestrator.units import plan_units
from tests.cluster.conftest import HEAD_CPUS
from tests.orchestrator.recipes import BrokenRecipe, FakeRecipe, attempts
from workers.memory.specs import RivalSpec
from workers.unit import ScoredUnit

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own log files
]

COUNT = 24


@pytest.fixture
def settings(cluster):
    return ClusterSettings(address=cluster.address, workers=2, cpus_per_worker=0.25)


def units(generation=0, count=COUNT):
    return plan_units(
        generation=generation,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.arange(16, dtype=np.float32).reshape(4, 4),
        examples={"qa": tuple(range(count))},
        split="train",
        settings=UnitSettings(candidates_per_unit=4, examples_per_unit=1),
    )


def same(some, others):
    """Whether two rounds gave the same units with the same content, in whatever order."""

    def content(unit):
        values = [getattr(unit, field.name) for field in dataclasses.fields(ScoredUnit)]
        return [value.tobytes() if isinstance(value, np.ndarray) else value for value in values]

    return sorted(map(content, some)) == sorted(map(content, others))


def in_process(generation=0, count=COUNT):
    with InProcessFleet(FakeRecipe()) as fleet:
        return list(fleet.score(units(generation, count)))


def loaded_workers(fleet, count):
    """Wait until that many workers are loaded; only rounds take in news, so play some."""
    deadline = time.monotonic() + 240
    while len(fleet.worker_pids()) < count and time.monotonic() < deadline:
        list(fleet.score(units(count=1)))
    return fleet.worker_pids()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_are_those_of_one_process_with_any_number_of_workers(settings, workers):
    with RayFleet(FakeRecipe(), dataclasses.replace(settings, workers=workers)) as fleet:
        for generation in range(2):
            assert same(fleet.score(units(generation)), in_process(generation))
        assert fleet.stats().deaths == 0


def test_a_worker_killed_in_mid_generation_changes_nothing_but_the_counts(settings):
    with RayFleet(FakeRecipe(seconds=0.05), settings) as fleet:
        killed = set(loaded_workers(fleet, 2).values())
        arriving = fleet.score(units())
        result = [next(arriving)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        result += arriving
        assert same(result, in_process())
        assert fleet.stats().deaths == 2
        assert fleet.stats().retries >= 2
        assert not killed & set(loaded_workers(fleet, 2).values())


def test_a_worker_killed_between_generations_is_replaced_without_blaming_a_unit(settings):
    with RayFleet(FakeRecipe(), settings) as fleet:
        for pid in loaded_workers(fleet, 2).values():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        assert same(fleet.score(units()), in_process())
        assert (fleet.stats().deaths, fleet.stats().retries) == (2, 0)


def test_a_unit_that_kills_two_workers_is_set_aside_and_the_rest_is_scored(settings, tmp_path):
    result = []
    recipe = FakeRecipe(folder=tmp_path, deadly=(3,))
    with RayFleet(recipe, settings) as fleet, pytest.raises(UnitQuarantinedError) as caught:
        result.extend(fleet.score(units()))
    bad = units()[3].key
    assert set(caught.value.stories) == {bad}
    # A worker that dies may take the result of the unit before with it: that one is then blamed in its place, once.
    assert len(caught.value.stories[bad]) == 2 <= len(attempts(tmp_path, bad))
    assert all("was lost: ActorDiedError" in attempt for attempt in caught.value.stories[bad])
    assert same(result, [unit for unit in in_process() if unit.key != bad])


def test_a_unit_that_raises_once_is_scored_by_another_worker(settings, tmp_path):
    with RayFleet(FakeRecipe(folder=tmp_path, raising_once=(5,), seconds=0.02), settings) as fleet:
        loaded_workers(fleet, 2)
        assert same(fleet.score(units(generation=1)), in_process(generation=1))
        assert fleet.stats().deaths == 0
        assert fleet.stats().retries == 1
    assert len(attempts(tmp_path, units(generation=1)[5].key)) == 2


def test_a_unit_that_raises_twice_is_set_aside_with_what_it_raised(settings):
    with RayFleet(FakeRecipe(raising=(5,)), settings) as fleet, pytest.raises(UnitQuarantinedError) as caught:
        list(fleet.score(units()))
    (story,) = caught.value.stories.values()
    assert len(story) == 2
    assert all("OtherLibraryError: example 5 does not compute" in attempt for attempt in story)


def test_an_abandoned_round_does_not_leak_into_the_next(settings):
    with RayFleet(FakeRecipe(seconds=0.05), settings) as fleet:
        next(fleet.score(units()))
        assert same(fleet.score(units(generation=1)), in_process(generation=1))


def test_a_recipe_that_cannot_be_built_is_told_once(settings):
    with (
        RayFleet(BrokenRecipe(), settings) as fleet,
        pytest.raises(FleetError, match="ValueError: no model in /nowhere"),
    ):
        list(fleet.score(units()))


def test_waiting_for_the_first_worker_needs_no_units_and_tells_what_is_missing(settings):
    with RayFleet(FakeRecipe(), settings) as fleet:
        fleet.wait_for_a_worker()
        assert fleet.worker_pids()
        assert same(fleet.score(units()), in_process())
    with (
        RayFleet(BrokenRecipe(), settings) as fleet,
        pytest.raises(FleetError, match=r"no worker can be built: .*no model in /nowhere.*\(on [\d.]+; every machine"),
    ):
        fleet.wait_for_a_worker()


def test_workers_that_die_while_loading_are_not_replaced_for_ever(settings):
    with RayFleet(BrokenRecipe(is_deadly=True), settings) as fleet:
        with pytest.raises(FleetError, match="workers die while they load, 3 in a row"):
            list(fleet.score(units()))
        assert fleet.stats().deaths <= 2 * 3


def test_a_fleet_that_waits_for_room_says_so(settings, monkeypatch, caplog):
    """The first fleet leaves no room for the second until it is gone."""
    monkeypatch.setattr(fleet_module, "PATIENCE_SECONDS", 0.5)
    filling = dataclasses.replace(settings, workers=1, cpus_per_worker=HEAD_CPUS)
    with RayFleet(FakeRecipe(), filling) as first, RayFleet(FakeRecipe(), filling) as second:
        list(first.score(units()))
        arriving = second.score(units())
        threading.Timer(10.0, first._disconnect).start()
        assert same(arriving, in_process())
    assert "no worker has loaded for another 0.5 s" in caplog.text


def test_a_fleet_finds_the_running_cluster_by_itself(settings, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with RayFleet(FakeRecipe(), dataclasses.replace(settings, address="auto")) as fleet:
        assert same(fleet.score(units()), in_process())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accelerators_per_worker": 2},
            r"needs 0\.25 CPU and 2 GPU on one machine, but the cluster has 2 CPU and 0 GPU",
        ),
        ({"cpus_per_worker": 99}, "needs 99 CPU and 0 GPU"),
    ],
    ids=["accelerators", "cpus"],
)
def test_a_worker_that_fits_on_no_machine_is_refused_at_the_start(settings, changes, message):
    start = time.monotonic()
    with pytest.raises(FleetError, match=message), RayFleet(FakeRecipe(), dataclasses.replace(settings, **changes)):
        pass
    assert time.monotonic() - start < 60, "it would wait for ever"


def test_losing_a_machine_blames_no_unit(cluster, settings):
    """Both workers fill a machine each. Before Ray notices that one has gone, the other has a copy of its unit."""
    machine = cluster.add_node(num_cpus=HEAD_CPUS)
    filling = dataclasses.replace(settings, cpus_per_worker=HEAD_CPUS)
    with RayFleet(FakeRecipe(seconds=0.1), filling) as fleet:
        loaded_workers(fleet, 2)
        arriving = fleet.score(units())
        result = [next(arriving)]
        cluster.remove_node(machine, allow_graceful=False)
        result += arriving
        assert same(result, in_process())
        deadline = time.monotonic() + 240
        while not fleet.stats().deaths:
            assert same(fleet.score(units()), in_process())
            assert time.monotonic() < deadline
        assert fleet.stats().deaths == 1


def give_notice(machine):
    """What ``ray drain-node`` says of a spot machine that is about to go."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    in_two_minutes = time.time_ns() // 1_000_000 + 120_000
    is_accepted, why = global_worker.gcs_client.drain_node(machine.node_id, reason, "spot", in_two_minutes)
    assert is_accepted, why


def test_a_machine_that_was_given_notice_gets_no_more_units_and_its_worker_a_successor(cluster, settings):
    """Each worker fills a machine, so that the successor can only be on the one that joins."""
    going = cluster.add_node(num_cpus=HEAD_CPUS)
    with RayFleet(FakeRecipe(seconds=0.1), dataclasses.replace(settings, cpus_per_worker=HEAD_CPUS)) as fleet:
        former = loaded_workers(fleet, 2)
        arriving = fleet.score(units())
        result = [next(arriving)]
        give_notice(going)
        coming = cluster.add_node(num_cpus=HEAD_CPUS)
        assert same([*result, *arriving], in_process())
        deadline = time.monotonic() + 120
        while len(set(fleet.worker_pids().values()) - set(former.values())) < 1 or len(fleet.worker_pids()) != 2:
            assert same(fleet.score(units(generation=1)), in_process(generation=1))
            assert time.monotonic() < deadline, fleet.worker_pids()
        assert (fleet.stats().deaths, fleet.stats().retries) == (0, 0), "nothing was lost, nothing is done twice"
    for machine in (going, coming):
        cluster.remove_node(machine, allow_graceful=False)


def test_notice_for_the_drivers_own_machine_drains_the_run(settings, monkeypatch, caplog):
    with RayFleet(FakeRecipe(seconds=0.1), settings) as fleet:
        loaded_workers(fleet, 1)
        own = fleet_module.fleet_cluster.own_machine()
        monkeypatch.setattr(fleet_module.fleet_cluster, "leaving_machines", lambda: {own})
        with pytest.raises(DrainedError):
            list(fleet.score(units(count=400)))
    assert "the driver's machine is about to go" in caplog.text


def test_a_slow_unit_gets_a_second_copy_and_the_first_result_counts(settings, tmp_path):
    """Unit 5 takes ten minutes on the worker that gets it first, and no time on the next one."""
    recipe = FakeRecipe(folder=tmp_path, slow_once=(5,))
    with RayFleet(recipe, settings) as fleet:
        loaded_workers(fleet, 2)
        start = time.monotonic()
        assert same(fleet.score(units()), in_process())
        assert time.monotonic() - start < 300
        assert fleet.stats() == FleetStats(workers=2, deaths=0, retries=0)
    assert len(attempts(tmp_path, units()[5].key)) == 2


def test_a_worker_that_hangs_is_replaced(settings, tmp_path):
    recipe = FakeRecipe(folder=tmp_path, slow_once=(0,))
    impatient = dataclasses.replace(settings, workers=1, unit_timeout_seconds=20.0)
    with RayFleet(recipe, impatient) as fleet:
        assert same(fleet.score(units(count=3)), in_process(count=3))
        assert fleet.stats().deaths == 1


def test_a_worker_that_hangs_beyond_its_round_is_replaced_too(settings, tmp_path):
    """Another worker scores the unit; the one that hangs would keep its accelerator for ever."""
    recipe = FakeRecipe(folder=tmp_path, slow_once=(5,))
    with RayFleet(recipe, dataclasses.replace(settings, unit_timeout_seconds=20.0)) as fleet:
        loaded_workers(fleet, 2)
        assert same(fleet.score(units()), in_process())
        deadline = time.monotonic() + 240
        while not fleet.stats().deaths:
            assert same(fleet.score(units(generation=1, count=2)), in_process(generation=1, count=2))
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert fleet.stats() == FleetStats(workers=1, deaths=1, retries=0)
        assert len(loaded_workers(fleet, 2)) == 2


def test_a_fleet_grows_into_machines_that_join_and_uses_them_at_once(cluster, settings, tmp_path):
    growing = dataclasses.replace(settings, workers=(1, 3), cpus_per_worker=HEAD_CPUS)
    recipe = FakeRecipe(folder=tmp_path, seconds=0.3, hurry=tmp_path / "hurry")
    with RayFleet(recipe, growing) as fleet:
        (first,) = loaded_workers(fleet, 1).values()
        arriving = fleet.score(units(count=600))
        result = [next(arriving)]
        assert len(fleet.worker_pids()) == 1
        machine = cluster.add_node(num_cpus=HEAD_CPUS)
        while len(fleet.worker_pids()) == 1:
            result.append(next(arriving))
        open_units = [unit.key for unit in units(count=600) if not attempts(tmp_path, unit.key)]
        (second,) = set(fleet.worker_pids().values()) - {first}
        while not any(second in attempts(tmp_path, key) for key in open_units[:4]):
            result.append(next(arriving))  # one of the next units is the second worker's
        (tmp_path / "hurry").touch()
        result += arriving
        assert len(fleet.worker_pids()) == 2, "there was room for two workers, not for three"
        cluster.remove_node(machine, allow_graceful=False)
        assert same(result, in_process(count=600))
        deadline = time.monotonic() + 240
        while len(fleet.worker_pids()) > 1:  # the fleet shrinks to what there is
            assert same(fleet.score(units()), in_process())
            assert time.monotonic() < deadline


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (1.0, 2), (2.0, 1)])
def test_accelerators_are_shared_or_held_by_several(cluster, settings, share, count):
    """A machine with two of them has room for four halves, two wholes, or one worker that needs both."""
    machine = cluster.add_node(num_cpus=HEAD_CPUS, num_gpus=2)
    growing = dataclasses.replace(settings, workers=(1, 8), cpus_per_worker=0.1, accelerators_per_worker=share)
    try:
        with RayFleet(FakeRecipe(), growing) as fleet:
            assert len(loaded_workers(fleet, count)) == count
            time.sleep(2 * fleet_module.LOOK_SECONDS)
            assert same(fleet.score(units()), in_process())
            assert len(fleet.worker_pids()) == count
    finally:
        cluster.remove_node(machine)


def test_killing_one_of_eight_workers_loses_its_units_in_flight_and_no_more(settings):
    many = dataclasses.replace(settings, workers=8, cpus_per_worker=0.1)
    with RayFleet(FakeRecipe(seconds=0.05), many) as fleet:
        pids = loaded_workers(fleet, 8)
        arriving = fleet.score(units(count=64))
        result = [next(arriving)]
        os.kill(pids[min(pids)], signal.SIGKILL)
        assert same([*result, *arriving], in_process(count=64))
        assert fleet.stats().deaths == 1
        assert fleet.stats().retries <= 2


def test_a_drained_fleet_gives_what_was_in_flight_and_no_more(settings, tmp_path):
    result = []
    with RayFleet(FakeRecipe(folder=tmp_path, seconds=0.2), settings) as fleet:
        loaded_workers(fleet, 2)
        arriving = fleet.score(units())
        result.append(next(arriving))
        fleet.drain()
        with pytest.raises(DrainedError) as caught:
            result.extend(arriving)
    tried = [unit for unit in units() if attempts(tmp_path, unit.key)]
    assert sorted(unit.key for unit in result) == sorted(unit.key for unit in tried)
    assert caught.value.num_open == COUNT - len(tried) > 0


def test_a_drained_fleet_asks_the_cluster_nothing(settings, monkeypatch):
    """A signal to all processes of a job ends Ray too, and what it is asked then is not answered for a minute."""

    def unanswered(*_: object) -> None:
        raise AssertionError("asked of a Ray that may have ended")

    with RayFleet(FakeRecipe(seconds=0.5), settings) as fleet:
        pids = loaded_workers(fleet, 2)
        arriving = fleet.score(units())
        next(arriving)
        monkeypatch.setattr(fleet_module, "LOOK_SECONDS", 0.05)
        monkeypatch.setattr(fleet_module, "NOTICE_SECONDS", 0.0)
        for name in ("leaving_machines", "free_places", "is_alive"):
            monkeypatch.setattr(fleet_module.fleet_cluster, name, unanswered)
        fleet.drain()
        os.kill(pids[min(pids)], signal.SIGKILL)
        with pytest.raises(DrainedError):
            list(arriving)


def test_draining_does_not_wait_for_ever(settings, tmp_path):
    hurried = dataclasses.replace(settings, workers=1, drain_seconds=1.0)
    with RayFleet(FakeRecipe(folder=tmp_path, slow_once=(1,)), hurried) as fleet:
        arriving = fleet.score(units(count=3))
        next(arriving)
        start = time.monotonic()
        fleet.drain()
        with pytest.raises(DrainedError):
            list(arriving)
        assert time.monotonic() - start < 300, "the unit in work takes ten minutes"


def test_a_new_worker_knows_what_others_on_such_machines_had_no_room_for(settings, tmp_path):
    with RayFleet(FakeRecipe(folder=tmp_path, room=2), dataclasses.replace(settings, workers=1)) as fleet:
        list(fleet.score(units(count=2)))
        (pid,) = fleet.worker_pids().values()
        os.kill(pid, signal.SIGKILL)
        list(fleet.score(units(count=2)))
        assert fleet.stats().deaths == 1
        assert (tmp_path / "limits").read_text().split() == ["{}"], "only the first worker had to find out"

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dispatch import (
    Dispatch,
    DrainAsked,
    Drained,
    Finished,
    InvalidEventError,
    Quarantine,
    Replace,
    Score,
    UnitFailed,
    UnitScored,
    UnitSlow,
    WorkerLeaving,
    WorkerLost,
    WorkerReady,
)


@pytest.fixture
def dispatching():
    """A Dispatch of the named units; its invariants are checked after the test, whatever the test is about."""
    made = []

    def make(keys, num_workers=1):
        made.append(Dispatch(list(keys), num_workers=num_workers, attempts_per_unit=2))
        return made[-1]

    yield make
    for dispatch in made:
        dispatch.validate()


def test_a_ready_worker_gets_the_first_unit_and_the_next_one_behind_it(dispatching):
    assert dispatching("abcd").handle(WorkerReady(0)) == [Score(0, "a"), Score(0, "b")]


def test_a_worker_never_holds_more_than_two_units(dispatching):
    dispatch = dispatching("abcdef")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(UnitScored(0, "a")) == [Score(0, "c")]


def test_idle_workers_are_served_before_anything_is_queued(dispatching):
    dispatch = dispatching("ab")
    assert dispatch.handle(WorkerReady(0)) == [Score(0, "a")]
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "b")]


def test_the_last_units_wait_for_an_idle_worker_instead_of_queueing_behind_a_long_one(dispatching):
    """1. Two workers score a and c; 2. d and e are left, one for each; 3. whoever is done first takes both."""
    dispatch = dispatching("abcde", num_workers=2)
    assert dispatch.handle(WorkerReady(0)) == [Score(0, "a"), Score(0, "b")]
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "c")]
    assert dispatch.handle(UnitScored(1, "c")) == [Score(1, "d")]
    assert dispatch.handle(UnitScored(1, "d")) == [Score(1, "e")]


def test_units_are_kept_for_workers_that_are_still_loading(dispatching):
    assert dispatching("abcd", num_workers=3).handle(WorkerReady(0)) == [Score(0, "a")]


def test_the_round_is_finished_when_the_last_unit_is_back(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(UnitScored(0, "a")) == [Score(0, "b")]
    assert dispatch.handle(UnitScored(0, "b")) == [Finished()]


def test_the_units_of_a_lost_worker_are_scored_by_others_in_their_order(dispatching):
    dispatch = dispatching("abcd")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(WorkerLost(0, "killed")) == [Replace(0)]
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "a"), Score(1, "b")]
    assert dispatch.num_retries == 2


def test_a_unit_in_work_on_two_workers_that_died_is_set_aside_with_its_story(dispatching):
    dispatch = dispatching("abcd")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerLost(0, "killed"))
    dispatch.handle(WorkerReady(1))
    story = ("worker 0 was lost: killed", "worker 1 was lost: killed again")
    assert dispatch.handle(WorkerLost(1, "killed again")) == [Replace(1), Quarantine("a", story)]
    assert dispatch.handle(WorkerReady(2)) == [Score(2, "b"), Score(2, "c")]


def test_a_unit_that_only_queued_behind_a_deadly_one_is_not_blamed(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    for worker in range(2):
        dispatch.handle(WorkerLost(worker, "killed"))
        dispatch.handle(WorkerReady(worker + 1))
    assert dispatch.handle(UnitScored(2, "b")) == [Finished()]


def test_losing_whole_machines_is_not_the_fault_of_a_unit_unless_it_goes_on_and_on(dispatching):
    dispatch = dispatching("a")
    for worker in range(7):
        dispatch.handle(WorkerReady(worker))
        assert dispatch.handle(WorkerLost(worker, "node died", with_its_machine=True)) == [Replace(worker)]
    dispatch.handle(WorkerReady(7))
    commands = dispatch.handle(WorkerLost(7, "node died", with_its_machine=True))
    assert [type(command) for command in commands] == [Replace, Quarantine, Finished]


def test_a_unit_that_raises_is_tried_once_more_on_another_worker(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    assert dispatch.handle(UnitFailed(0, "a", "bad luck")) == []
    assert dispatch.handle(UnitScored(1, "b")) == [Score(1, "a")]
    assert dispatch.handle(UnitScored(1, "a")) == [Finished()]


def test_a_unit_that_raises_twice_is_set_aside_with_its_story(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    dispatch.handle(UnitFailed(0, "a", "ValueError: x"))
    dispatch.handle(UnitScored(1, "b"))
    story = ("on worker 0: ValueError: x", "on worker 1: ValueError: y")
    assert dispatch.handle(UnitFailed(1, "a", "ValueError: y")) == [Quarantine("a", story), Finished()]


def test_the_only_worker_gets_back_the_unit_that_raised_there(dispatching):
    dispatch = dispatching("a")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(UnitFailed(0, "a", "bad luck")) == [Score(0, "a")]


def test_a_unit_waiting_for_another_worker_goes_back_when_the_others_are_lost(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    dispatch.handle(UnitFailed(0, "a", "bad luck"))
    assert dispatch.handle(WorkerLost(1, "killed")) == [Replace(1), Score(0, "b")]


def test_deaths_of_workers_do_not_use_up_the_attempts_of_a_unit(dispatching):
    dispatch = dispatching("a")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerLost(0, "killed"))
    dispatch.handle(WorkerReady(1))
    assert dispatch.handle(UnitFailed(1, "a", "bad luck")) == [Score(1, "a")]


def test_an_idle_worker_is_replaced_too(dispatching):
    dispatch = dispatching("a")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    assert dispatch.handle(WorkerLost(1, "killed")) == [Replace(1)]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (UnitScored(0, "c"), r"holds \['a', 'b'\]"),
        (UnitScored(9, "a"), r"holds \[\]"),
        (UnitFailed(0, "z", "x"), "not a unit of this round"),
        (WorkerReady(0), "second time"),
        (WorkerLost(9, "killed"), "never ready"),
    ],
    ids=["not-in-flight", "unknown-worker", "unknown-unit", "ready-twice", "lost-unknown"],
)
def test_what_cannot_have_happened_is_refused(dispatching, event, message):
    dispatch = dispatching("abc")
    for worker in range(3):
        dispatch.handle(WorkerReady(worker))
    with pytest.raises(InvalidEventError, match=message):
        dispatch.handle(event)


def test_a_unit_cannot_come_back_twice(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(UnitScored(0, "a"))
    with pytest.raises(InvalidEventError, match="reports unit a"):
        dispatch.handle(UnitScored(0, "a"))


def test_a_slow_unit_gets_a_second_copy_when_a_worker_has_nothing_to_do(dispatching):
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    assert dispatch.handle(UnitSlow("a")) == []
    assert dispatch.handle(UnitScored(1, "b")) == [Score(1, "a")]
    assert dispatch.handle(WorkerReady(2)) == [], "two copies are enough"
    assert dispatch.handle(UnitScored(1, "a")) == [Finished()]
    assert dispatch.num_retries == 0


def test_of_two_copies_the_first_counts_and_the_late_one_is_ignored(dispatching):
    dispatch = dispatching("abc", num_workers=2)
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    dispatch.handle(UnitSlow("a"))
    dispatch.handle(UnitScored(1, "b"))
    assert dispatch.handle(WorkerReady(2)) == [Score(2, "a")]
    assert not dispatch.is_scored("a")
    dispatch.handle(UnitScored(2, "a"))
    assert dispatch.is_scored("a")
    assert dispatch.handle(UnitFailed(0, "a", "too late to matter")) == []
    assert dispatch.handle(UnitScored(1, "c")) == [Finished()]


@pytest.fixture
def two_copies(dispatching):
    """The last unit, which is slow, on both workers."""
    dispatch = dispatching("ab")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    dispatch.handle(UnitSlow("a"))
    assert dispatch.handle(UnitScored(1, "b")) == [Score(1, "a")]
    return dispatch


def test_losing_a_worker_with_one_of_two_copies_leaves_the_unit_to_the_other(two_copies):
    assert two_copies.handle(WorkerLost(0, "killed")) == [Replace(0)]
    assert two_copies.num_retries == 0
    assert two_copies.handle(UnitScored(1, "a")) == [Finished()]


def test_two_copies_that_go_down_together_are_one_death(two_copies):
    """Whatever kills several workers at a time would set a good unit aside, or not, as chance has copied it."""
    for worker in range(2):
        assert two_copies.handle(WorkerLost(worker, "killed")) == [Replace(worker)]
    assert two_copies.handle(WorkerReady(2)) == [Score(2, "a")]
    assert two_copies.handle(UnitScored(2, "a")) == [Finished()]


def test_a_unit_that_kills_another_worker_after_both_that_held_it_is_set_aside(two_copies):
    for worker in range(2):
        two_copies.handle(WorkerLost(worker, "killed"))
    two_copies.handle(WorkerReady(2))
    story = tuple(f"worker {worker} was lost: killed" for worker in range(3))
    assert two_copies.handle(WorkerLost(2, "killed")) == [Replace(2), Quarantine("a", story), Finished()]


def test_two_copies_that_both_take_too_long_are_two_deaths(two_copies):
    """Each worker was stopped over the unit itself: that was no chance."""
    two_copies.handle(WorkerLost(0, "stopped", was_stopped=True))
    commands = two_copies.handle(WorkerLost(1, "stopped", was_stopped=True))
    assert [type(command) for command in commands] == [Replace, Quarantine, Finished]


def test_a_unit_stuck_behind_a_long_one_is_copied_at_once(dispatching):
    """1. Worker 0 holds a, and b behind it; 2. worker 1 comes late and finds nothing waiting."""
    dispatch = dispatching("abc")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "c")]
    assert dispatch.handle(UnitScored(1, "c")) == [Score(1, "b")]


def test_draining_hands_nothing_out_and_ends_when_nothing_is_in_flight(dispatching):
    dispatch = dispatching("abcde", num_workers=2)
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    assert dispatch.handle(DrainAsked()) == []
    assert dispatch.handle(UnitScored(1, "c")) == []
    assert dispatch.handle(WorkerLost(0, "killed")) == [Replace(0), Drained()]


def test_draining_at_the_last_unit_finishes_the_round(dispatching):
    dispatch = dispatching("a")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(DrainAsked())
    assert dispatch.handle(UnitScored(0, "a")) == [Finished()]


def test_draining_before_the_first_unit_ends_at_once(dispatching):
    assert dispatching("a").handle(DrainAsked()) == [Drained()]


def test_a_worker_that_is_leaving_gives_back_what_it_has_and_gets_nothing_more(dispatching):
    dispatch = dispatching("abcdef")
    dispatch.handle(WorkerReady(0))
    assert dispatch.handle(WorkerLeaving(0)) == []
    assert dispatch.handle(UnitScored(0, "a")) == []
    assert dispatch.handle(UnitScored(0, "b")) == []
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "c"), Score(1, "d")]
    assert dispatch.num_retries == 0


def test_notice_for_a_worker_that_is_not_ready_yet_is_remembered(dispatching):
    dispatch = dispatching("ab")
    assert dispatch.handle(WorkerLeaving(0)) == []
    assert dispatch.handle(WorkerReady(0)) == []


def test_a_leaving_worker_does_not_keep_the_only_other_one_from_a_unit_that_raised_there(dispatching):
    dispatch = dispatching("ab", num_workers=2)
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerReady(1))
    dispatch.handle(WorkerLeaving(1))
    dispatch.handle(UnitScored(1, "b"))
    assert dispatch.handle(UnitFailed(0, "a", "raised")) == [Score(0, "a")]


def test_a_leaving_worker_that_is_lost_first_is_replaced_and_its_units_are_tried_again(dispatching):
    dispatch = dispatching("abc")
    dispatch.handle(WorkerReady(0))
    dispatch.handle(WorkerLeaving(0))
    assert dispatch.handle(WorkerLost(0, "gone", with_its_machine=True)) == [Replace(0)]
    assert dispatch.handle(WorkerReady(1)) == [Score(1, "a"), Score(1, "b")]


def test_units_need_different_keys():
    with pytest.raises(ValueError, match="3 units have only 2 different keys"):
        Dispatch(["a", "b", "a"], num_workers=1, attempts_per_unit=2)


class Simulation:
    """A fleet in virtual time: units take a while, raise or kill; workers die and are replaced after a delay."""

    def __init__(
        self,
        durations,
        *,
        workers,
        deadly=(),
        raising=(),
        deaths=(),
        notices=(),
        delay=1.0,
        patience=None,
        drain_at=None,
    ):
        self.durations = durations
        self.patience = patience
        self.deadly, self.raising = set(deadly), set(raising)
        self.dispatch = Dispatch(list(durations), num_workers=workers, attempts_per_unit=2)
        self.queues = {}
        self.leaving = set()
        self.scored, self.quarantined, self.blamed = [], [], []
        self.is_finished = self.is_drained = False
        self.now = 0.0
        self.delay = delay
        self._numbers = itertools.count()
        self._heap = []
        self._sequence = itertools.count()
        for i in range(workers):
            self._at(0.1 * i, self._arrive)
        for time, with_machine in deaths:
            self._at(time, self._die_at_random, with_machine)
        for time in notices:
            self._at(time, self._give_notice)
        if drain_at is not None:
            self._at(drain_at, self._drain)

    def run(self):
        while not self.is_finished and not self.is_drained:
            self.now, _, action, *arguments = heapq.heappop(self._heap)
            action(*arguments)
        return self

    def _at(self, time, action, *arguments):
        heapq.heappush(self._heap, (time, next(self._sequence), action, *arguments))

    def _tell(self, event):
        assert not self.is_finished
        commands = self.dispatch.handle(event)
        self.dispatch.validate()
        for command in commands:
            self._obey(command)
        idle = [worker for worker, queue in self.queues.items() if not queue and worker not in self.leaving]
        for command in commands:
            assert not (isinstance(command, Score) and command.worker in self.leaving)
            if isinstance(command, Score) and self.queues[command.worker][0] != command.key:
                assert not idle or self.raising, "a unit was queued while another worker was idle"

    def _obey(self, command):
        match command:
            case Score(worker, key):
                self.queues[worker].append(key)
                assert len(self.queues[worker]) <= 2
                if len(self.queues[worker]) == 1:
                    self._begin(worker)
            case Replace(worker):
                assert worker not in self.queues
                if worker in self.leaving:
                    return  # another is on its way already
                self._at(self.now + self.delay, self._arrive)
            case Quarantine(key):
                self.quarantined.append(key)
            case Finished():
                self.is_finished = True
            case Drained():
                self.is_drained = True

    def _arrive(self):
        worker = next(self._numbers)
        self.queues[worker] = []
        self._tell(WorkerReady(worker))

    def _begin(self, worker):
        key = self.queues[worker][0]
        duration = self.durations[key]
        self._at(self.now + duration, self._end, worker, key)
        if self.patience is not None and duration > self.patience:
            self._at(self.now + self.patience, self._find_slow, worker, key)

    def _find_slow(self, worker, key):
        if self.queues.get(worker, [])[:1] == [key]:
            self._tell(UnitSlow(key))

    def _drain(self):
        self.drained_at = self.now
        self._tell(DrainAsked())

    def _end(self, worker, key):
        if self.queues.get(worker, [])[:1] != [key]:
            return  # the worker died in between
        if key in self.deadly:
            self._die(worker, False)
            return
        self.queues[worker].pop(0)
        if self.queues[worker]:
            self._begin(worker)
        if key in self.raising:
            self._tell(UnitFailed(worker, key, "raised"))
        else:
            if not self.dispatch.is_scored(key):
                self.scored.append(key)
            self._tell(UnitScored(worker, key))

    def _die_at_random(self, with_machine):
        if self.queues:
            self._die(sorted(self.queues)[int(10 * self.now) % len(self.queues)], with_machine)

    def _give_notice(self):
        """A worker is told to go, and another begins to load in its place."""
        staying = sorted(self.queues.keys() - self.leaving)
        if staying:
            worker = staying[int(10 * self.now) % len(staying)]
            self.leaving.add(worker)
            self._at(self.now + self.delay, self._arrive)
            self._tell(WorkerLeaving(worker))

    def _die(self, worker, with_machine):
        self.blamed += self.queues.pop(worker)[:1]
        self._tell(WorkerLost(worker, "died", with_machine))


@st.composite
def schedules(draw):
    durations = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 7.0]), min_size=1, max_size=25))
    keys = [f"u{i}" for i in range(len(durations))]
    return Simulation(
        dict(zip(keys, durations, strict=True)),
        workers=draw(st.integers(1, 6) | st.sampled_from([8, 64])),
        deadly=draw(st.lists(st.sampled_from(keys), max_size=2)),
        raising=draw(st.lists(st.sampled_from(keys), max_size=2)),
        deaths=draw(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=12)),
        notices=draw(st.lists(st.floats(0, 20), max_size=6)),
        delay=draw(st.sampled_from([0.0, 0.3, 5.0])),
        patience=draw(st.sampled_from([None, 0.2, 2.0])),
        drain_at=draw(st.none() | st.floats(0, 20)),
    )


def run_and_check(simulation):
    simulation.run()
    assert len(set(simulation.scored)) == len(simulation.scored), "a unit counted twice"
    if simulation.is_drained:
        return
    assert sorted(simulation.scored + simulation.quarantined) == sorted(simulation.durations)
    bad = simulation.deadly | simulation.raising
    assert bad <= set(simulation.quarantined)
    for key in set(simulation.quarantined) - bad:
        assert simulation.blamed.count(key) >= 2, "a good unit was set aside without two deaths in its work"


@settings(max_examples=300, deadline=None)
@given(schedules())
def test_under_any_deaths_and_arrivals_a_unit_is_scored_exactly_once_or_set_aside(simulation):
    run_and_check(simulation)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(schedules())
def test_the_same_under_thousands_of_schedules(simulation):
    run_and_check(simulation)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.1, 1.0, 3.0, 10.0]), min_size=1, max_size=60), st.integers(1, 8))
def test_queueing_ahead_costs_at_most_one_more_unit_than_greedy_scheduling(durations, workers):
    simulation = Simulation({f"u{i}": duration for i, duration in enumerate(durations)}, workers=workers).run()
    assert simulation.now <= 0.1 * workers + sum(durations) / workers + 2 * max(durations)
    assert simulation.dispatch.num_retries == 0

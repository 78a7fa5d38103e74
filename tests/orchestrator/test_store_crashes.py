from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import StorageError
from orchestrator.store import Store
from tests.orchestrator.disk import Disk, Killed
from tests.orchestrator.test_store import bits, commit, generation_fitness, scored_unit

UNITS_TO_DRIVE = [scored_unit(with_statistics=True), scored_unit(examples=(1, 2)), scored_unit(candidates=(2, 3))]
LATER_UNIT = scored_unit(memory_name="h2o-layer")


def drive(folder: Path) -> None:
    """What a driver does with a generation, at first and after each crash."""
    store = Store(folder)
    for unit in UNITS_TO_DRIVE:
        if store.get_unit(unit.key) is None:
            store.put_unit(unit)
    commit(store, 0, np.ones((4, 5), np.float32), generation_fitness())
    if store.get_unit(LATER_UNIT.key) is None:
        store.put_unit(LATER_UNIT)
    store.commit_units(0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk() -> BaseException:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails_after_the_step", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("failure", [Killed, full_disk], ids=["killed", "full disk"])
def test_a_crash_at_any_step_loses_nothing_and_doubles_nothing(
    failure: Callable[[], BaseException],
    fails_after_the_step: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk(monkeypatch)
    drive(tmp_path / "undisturbed")
    expected, num_steps = contents(tmp_path / "undisturbed"), disk.steps
    disk.failure, disk.fails_after_the_step = failure, fails_after_the_step
    assert num_steps > 40

    for step in range(num_steps):
        folder = tmp_path / f"step-{step}"
        disk.steps, disk.fail_at = 0, step
        with pytest.raises((Killed, StorageError)) as caught:
            drive(folder)
        disk.fail_at = None
        if caught.type is StorageError:
            assert "\n" not in str(caught.value)
            assert not list(folder.rglob("*.tmp"))
        left = Store(folder)
        for unit in (*UNITS_TO_DRIVE, LATER_UNIT):
            assert left.get_unit(unit.key) is None or bits(left.get_unit(unit.key)) == bits(unit), step
        drive(folder)
        assert contents(folder) == expected, f"interrupted at step {step}"


def test_a_unit_that_was_put_is_never_scored_again_whatever_happens_to_its_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    for step in range(30):
        folder = tmp_path / str(step)
        store = Store(folder)
        for unit in UNITS_TO_DRIVE:
            store.put_unit(unit)
        disk.steps, disk.fail_at = 0, step
        try:
            commit(store, 0, np.ones((4, 5), np.float32), generation_fitness())
        except Killed:
            pass
        else:
            break
        finally:
            disk.fail_at = None
        assert [bits(unit) for unit in Store(folder).units(0)] == [
            bits(unit) for unit in sorted(UNITS_TO_DRIVE, key=lambda unit: unit.key)
        ]
    assert step > 10


DRIVER = """
    import sys
    from pathlib import Path
    import numpy as np
    from orchestrator.store import Store
    from tests.orchestrator.test_store import commit, generation_fitness, scored_unit

    store = Store(Path(sys.argv[1]))
    for generation in range(1000):
        for first in range(0, 8, 2):
            unit = scored_unit(generation, candidates=(first, first + 1))
            if store.get_unit(unit.key) is None:
                store.put_unit(unit)
                print(unit.key, flush=True)
        commit(store, generation, np.ones((8, 5), np.float32), generation_fitness(8))
"""


@pytest.mark.slow
def test_a_driver_killed_at_random_moments_repeats_no_finished_unit(tmp_path: Path) -> None:
    promised: list[str] = []
    for num_keys in (3, 9, 17, 30, 41):
        arguments = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as driver:
            assert driver.stdout is not None
            promised += [driver.stdout.readline().strip() for _ in range(num_keys)]
            driver.send_signal(signal.SIGKILL)
            promised += [line.strip() for line in driver.stdout if line.endswith("\n")]
        store = Store(tmp_path)
        assert all(store.get_unit(key) is not None for key in promised)
    assert len(set(promised)) == len(promised)
    rows = store.table("evaluations").group_by(["unit", "candidate", "example"]).aggregate([([], "count_all")])
    assert set(rows.column("count_all").to_pylist()) == {1}

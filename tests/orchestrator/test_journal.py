from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.driver_lock import DriverLock
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.files import write_json_atomic
from orchestrator.journal import GenerationRecord, Journal, read_journal, require_same_run
from orchestrator.storage import LocalFolder
from tests.orchestrator.disk import journal_files, last_attempt

CONFIG: dict[str, Any] = {"seed": 0, "search": {"population": 8, "generations": 4}, "tasks": [{"length": 256}]}


def record(generation: int = 0, losses: tuple[float, ...] = (-0.1, 0.30000000000000004)) -> GenerationRecord:
    return GenerationRecord(
        generation=generation,
        losses=list(losses),
        population_hash="ab" * 32,
        examples={"facts": (3, 5), "code": (0,)},
        timestamp_ms=1_700_000_000_123,
        metrics={"fitness/best": 0.1},
        seconds={"score": 1.5},
    )


def opened(folder: Path, config: dict[str, Any] = CONFIG, config_hash: str = "hash", **options: bool) -> Journal:
    return Journal.open(folder, config_hash, config, **options)


def test_a_new_run_folder_starts_with_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    with opened(folder) as journal:
        assert journal.attempt == 1
        assert journal.generations() == []
    header = json.loads(last_attempt(folder).read_text().splitlines()[0])
    assert header.pop("opened_ms") > 1_700_000_000_000
    assert header == {
        "kind": "attempt",
        "version": 2,
        "attempt": 1,
        "config_hash": "hash",
        "config": CONFIG,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "after": None,
        "inherits": 0,
    }


def test_a_reopened_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
        journal.append(record(1))
    with opened(tmp_path) as journal:
        assert journal.attempt == 2
        assert journal.generations() == [record(0), record(1)]
        journal.append(record(2))
    contents = read_journal(tmp_path)
    assert contents.generations == (record(0), record(1), record(2))
    assert [attempt.attempt for attempt in contents.attempts] == [1, 2]


@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_any_loss_keeps_its_bits(losses: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    with opened(folder) as journal:
        journal.append(record(losses=tuple(losses)))
    assert [loss.hex() for loss in read_journal(folder).generations[0].losses] == [loss.hex() for loss in losses]


def test_generations_are_appended_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
        for generation in (0, 2):
            with pytest.raises(ValueError, match=f"the next generation is 1: got {generation}"):
                journal.append(record(generation))


# Another configuration


def test_another_configuration_is_refused_with_what_differs_and_its_former_value(tmp_path: Path) -> None:
    opened(tmp_path).close()
    changed = {"seed": 1, "search": {"population": 16, "generations": 9}, "tasks": [{"length": 512}]}
    with pytest.raises(RunFolderError) as caught:
        opened(tmp_path, changed, "other")
    assert str(caught.value) == (
        f"{tmp_path} holds a run with other settings: search.population (was 8), seed (was 0), tasks.0.length (was 256)"
        " changed; start a new run folder, or go back to the former values"
    )
    before = journal_files(tmp_path)
    with pytest.raises(RunFolderError, match=r"search.population \(was 8\)"):
        require_same_run(tmp_path, "other", changed)
    require_same_run(tmp_path, "hash", CONFIG)
    assert journal_files(tmp_path) == before
    opened(tmp_path).close()


def test_any_configuration_fits_a_folder_without_a_run(tmp_path: Path) -> None:
    require_same_run(tmp_path / "new", "hash", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_leave_the_trajectory_alone_may_change_and_are_kept_with_the_attempt(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path, {**CONFIG, "cluster": {"workers": 64}}).close()
    assert read_journal(tmp_path).attempts[-1].config["cluster"] == {"workers": 64}


def test_an_entirely_different_configuration_is_told_in_one_readable_line(tmp_path: Path) -> None:
    opened(tmp_path, {f"key{number:02d}": number for number in range(30)}).close()
    with pytest.raises(RunFolderError, match=r"key07 \(was 7\) and 23 more changed"):
        opened(tmp_path, {"seed": 0}, "other")


# Damage


@pytest.mark.parametrize("torn", ['{"kind":"generation","attem', '{"kind":"closed"', "\0\0\0"])
def test_a_torn_last_line_is_not_read(torn: str, tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(0))
    path = last_attempt(tmp_path)
    with path.open("a") as file:
        file.write(torn)
    assert read_journal(tmp_path).generations == (record(0),)
    assert path.read_text().endswith(torn)

    with opened(tmp_path, takeover=True) as successor:
        successor.append(record(1))
    assert read_journal(tmp_path).generations == (record(0), record(1))


def test_every_torn_end_of_a_journal_leaves_the_generations_before_it(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as journal:
        journal.append(record(0))
        journal.append(record(1))
    content = last_attempt(tmp_path / "whole").read_bytes()
    header = content.index(b"\n") + 1
    for size in range(header, len(content), 37):
        folder = tmp_path / str(size)
        shutil.copytree(tmp_path / "whole", folder)
        last_attempt(folder).write_bytes(content[:size])
        with opened(folder) as journal:
            finished = len(journal.generations())
            assert journal.generations() == [record(0), record(1)][:finished]
            for generation in range(finished, 2):
                journal.append(record(generation))
        assert read_journal(folder).generations == (record(0), record(1))


def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
    path = last_attempt(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    for damaged in ("no json\n", "[]\n", lines[1], lines[1].replace("losses", "loses")):
        path.write_text("".join([*lines[:2], damaged, *lines[2:]]))
        with pytest.raises(
            RunFolderError, match=r"line 3 of .*/journal/attempt-000001-.* is damaged .*: restore the file from a copy"
        ):
            opened(tmp_path)


@pytest.mark.parametrize("fields", [{"config": "x"}, {"opened_ms": 1e20}, {"opened_ms": 10**20}, {"attempt": None}])
def test_an_opening_with_other_fields_than_a_driver_writes_is_told(fields: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
    path = last_attempt(tmp_path)
    opening, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps({**json.loads(opening), **fields}) + "\n", *lines]))
    with pytest.raises(RunFolderError, match=r"line 1 of .* is damaged"):
        read_journal(tmp_path)


def test_a_file_that_is_missing_in_the_middle_is_told(tmp_path: Path) -> None:
    for generation in range(3):
        with opened(tmp_path) as journal:
            journal.append(record(generation))
    first, second, _ = sorted((tmp_path / "journal").iterdir())
    second_lines = second.read_text().splitlines(keepends=True)
    second.write_text(second_lines[0])
    with pytest.raises(RunFolderError, match=r"attempt-000003-.* goes on from 2 generations, but there are 1: restore"):
        read_journal(tmp_path)
    second.write_text("".join(second_lines))
    first.unlink()
    with pytest.raises(StorageError, match=r"cannot read .*attempt-000001-.*: No such file"):
        read_journal(tmp_path)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = last_attempt(tmp_path)
    path.write_text(path.read_text().replace('"version":2', '"version":3'))
    with pytest.raises(RunFolderError, match="version 3, this program reads 2: go on with the program that wrote it"):
        opened(tmp_path)


def test_a_run_from_before_there_were_attempts_is_refused_and_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "attempt", "version": 1}\n')
    for look in (opened, read_journal, lambda folder: require_same_run(folder, "hash", CONFIG)):
        with pytest.raises(RunFolderError, match="has version 1, this program reads 2: go on with the program that"):
            look(tmp_path)


def test_a_folder_without_a_journal_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run folder: it holds no journal; name the folder that a run made"):
        read_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as journal:
        before = journal_files(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(*before.values()) + 20, hard))
        try:
            with pytest.raises(
                StorageError, match=r"cannot write .*/journal/att.*: File too large; nothing was half-w"
            ):
                journal.append(record(0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal_files(tmp_path) == before
        journal.append(record(0))
    assert read_journal(tmp_path).generations == (record(0),)


def test_a_run_that_could_not_be_closed_on_a_full_disk_goes_on_all_the_same(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = opened(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not read_journal(tmp_path).is_closed
    opened(tmp_path).close()  # as after a kill on this machine


def test_a_generation_of_the_usual_size_costs_two_kilobytes(tmp_path: Path) -> None:
    metrics = {f"cluster/a_usual_length_{number:02d}": 1 / 3 + number for number in range(26)}
    with opened(tmp_path) as journal:
        empty = last_attempt(tmp_path).stat().st_size
        journal.append(dataclasses.replace(record(0), losses=[0.1 + 0.2] * 32, metrics=metrics))
        assert last_attempt(tmp_path).stat().st_size - empty < 2400


def test_json_files_are_replaced_whole_and_keep_their_floats(tmp_path: Path) -> None:
    path = tmp_path / "champion" / "summary.json"
    for value in ({"loss": 1.0}, {"loss": 0.1 + 0.2}):
        write_json_atomic(path, value)
    assert json.loads(path.read_text()) == {"loss": 0.30000000000000004}
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_what_a_killed_driver_left_half_written_is_swept_away(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / ".summary.json.0123abcd.tmp").write_text('{"tab')
    opened(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver.lock", "journal"]


# Two drivers


def test_a_second_driver_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(RunFolderError) as caught:
            opened(tmp_path)
        message = str(caught.value)
        assert message.startswith(
            f"another driver is at work on {tmp_path} (pid {os.getpid()} on {socket.gethostname()}, since 20"
        )
        assert "stop it first, or take the run over" in message
        assert "\n" not in message
    opened(tmp_path).close()


def test_a_driver_that_was_replaced_can_add_nothing(tmp_path: Path) -> None:
    replaced = opened(tmp_path)
    replaced.append(record(0))
    with opened(tmp_path, takeover=True) as successor:
        before = journal_files(tmp_path)
        for write in (
            lambda: replaced.append(record(1)),
            lambda: replaced.folder.write("summary.json", b"{}"),
            lambda: replaced.folder.delete(["units/some.parquet"]),
            replaced.require_current,
        ):
            with pytest.raises(
                RunFolderError, match=rf"another driver has opened .* since \(pid {os.getpid()} on .*, att"
            ):
                write()
        replaced.close()
        assert journal_files(tmp_path) == before
        assert not (tmp_path / "summary.json").exists()
        with pytest.raises(RunFolderError, match="another driver is at work"):  # the lock is still the successor's
            opened(tmp_path)
        successor.append(record(1, losses=(5.0,)))
    assert read_journal(tmp_path).generations == (record(0), record(1, losses=(5.0,)))


def test_a_generation_that_a_replaced_driver_slipped_in_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = opened(tmp_path)
    replaced.append(record(0))
    successor = opened(tmp_path, takeover=True)
    with monkeypatch.context() as patch:  # it had asked just before, and its write was under way
        patch.setattr("orchestrator.journal.attempt_names", lambda _: [replaced._name])
        replaced.append(record(1, losses=(7.0,)))
        replaced.append(record(2, losses=(7.0,)))
    with pytest.raises(RunFolderError, match="another driver has opened"):
        replaced.append(record(3))
    assert read_journal(tmp_path).generations == (record(0),)
    with successor:
        successor.append(record(1))
    with opened(tmp_path) as third:
        assert third.generations() == [record(0), record(1)]


def test_a_driver_learns_after_its_commit_that_it_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = opened(tmp_path)
    write = LocalFolder._write

    def slow_write(folder: LocalFolder, name: str, content: bytes) -> None:
        monkeypatch.setattr(LocalFolder, "_write", write)
        opened(tmp_path, takeover=True).close()
        write(folder, name, content)

    monkeypatch.setattr(LocalFolder, "_write", slow_write)
    with pytest.raises(RunFolderError, match="another driver has opened"):
        replaced.append(record(0))
    assert replaced.generations() == []
    assert read_journal(tmp_path).generations == ()


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["open", "append"])), max_size=25))
def test_whatever_drivers_do_in_turn_only_the_last_to_open_adds(
    turns: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    drivers: dict[int, Journal] = {}
    last, expected = None, []
    for turn, (name, action) in enumerate(turns):
        if action == "open":
            drivers[name] = opened(folder, takeover=True)
            last = name
            assert drivers[name].generations() == expected
        elif name in drivers:
            new = record(len(drivers[name].generations()), losses=(float(turn),))
            if name == last:
                drivers[name].append(new)
                expected = [*expected, new]
            else:
                with pytest.raises(RunFolderError, match="another driver has opened"):
                    drivers[name].append(new)
        if drivers:
            assert list(read_journal(folder).generations) == expected


@pytest.mark.parametrize(("early", "late"), [("8", "0"), ("8", "f")], ids=["the second", "the first"])
def test_of_two_drivers_that_open_at_once_the_one_with_the_last_name_stays(
    early: str, late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without locks both find nobody; the driver named ``late`` opens just before the file of ``early`` is written.
    with opened(tmp_path) as journal:
        journal.append(record(0))
    monkeypatch.setattr(DriverLock, "acquire", lambda *_, **__: DriverLock(None, "unsupported"))
    monkeypatch.setattr("orchestrator.journal.uuid4", lambda: SimpleNamespace(hex=early * 32))
    write, others = LocalFolder._write, []

    def write_late(folder: LocalFolder, name: str, content: bytes) -> None:
        monkeypatch.setattr(LocalFolder, "_write", write)
        monkeypatch.setattr("orchestrator.journal.uuid4", lambda: SimpleNamespace(hex=late * 32))
        others.append(opened(tmp_path))
        write(folder, name, content)

    monkeypatch.setattr(LocalFolder, "_write", write_late)
    if late > early:
        with pytest.raises(RunFolderError, match="another driver has opened"):
            opened(tmp_path)
        driver = others[0]
    else:
        driver = opened(tmp_path)
        with pytest.raises(RunFolderError, match="another driver has opened"):
            others[0].append(record(1, losses=(9.0,)))
    driver.append(record(1))
    assert read_journal(tmp_path).generations == (record(0), record(1))


def test_a_driver_that_died_on_another_machine_is_replaced_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "head-7")
        opened(tmp_path)._lock.release()  # as the kernel does when it dies
    before = journal_files(tmp_path)
    with pytest.raises(RunFolderError, match=r"was at work and may still be on .* \(pid \d+ on head-7, since 20\d\d-"):
        opened(tmp_path)
    assert journal_files(tmp_path) == before
    opened(tmp_path, takeover=True).close()
    opened(tmp_path).close()


DRIVER = """
    import sys, time
    from pathlib import Path
    from orchestrator.journal import Journal
    from tests.orchestrator.test_journal import CONFIG, record

    journal = Journal.open(Path(sys.argv[1]), "hash", CONFIG)
    journal.append(record(0))
    print("ready", flush=True)
    time.sleep(300)
"""


def test_a_driver_killed_on_this_machine_is_replaced_by_itself(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        with pytest.raises(RunFolderError, match=f"another driver is at work on .*pid {driver.pid} on"):
            opened(tmp_path)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    with opened(tmp_path) as journal:
        assert journal.attempt == 2
        assert journal.generations() == [record(0)]

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import RunFolderError, StorageError
from orchestrator.files import write_json_atomic
from orchestrator.journal import GenerationRecord, Journal, read_journal, require_same_run

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
    with opened(tmp_path / "runs" / "first") as journal:
        assert journal.attempt == 1
        assert journal.generations() == []
    header = json.loads((tmp_path / "runs" / "first" / "journal.jsonl").read_text())
    assert {name: header[name] for name in ("kind", "version", "attempt", "config_hash", "config", "host", "pid")} == {
        "kind": "attempt",
        "version": 1,
        "attempt": 1,
        "config_hash": "hash",
        "config": CONFIG,
        "host": socket.gethostname(),
        "pid": os.getpid(),
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
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"search.population \(was 8\)"):
        require_same_run(tmp_path, "other", changed)
    require_same_run(tmp_path, "hash", CONFIG)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
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


@pytest.mark.parametrize("torn", ['{"kind":"generation","attem', '{"kind":"attempt"', "\0\0\0"])
def test_a_torn_last_line_is_cut_off(torn: str, tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
    path = tmp_path / "journal.jsonl"
    with path.open("a") as file:
        file.write(torn)
    assert read_journal(tmp_path).generations == (record(0),)
    assert path.read_text().endswith(torn)

    with opened(tmp_path) as journal:
        journal.append(record(1))
    assert [json.loads(line)["kind"][0] for line in path.read_text().splitlines()] == ["a", "g", "a", "g"]
    assert read_journal(tmp_path).generations == (record(0), record(1))


def test_every_torn_end_of_a_journal_leaves_the_generations_before_it(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as journal:
        journal.append(record(0))
        journal.append(record(1))
    content = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    header = content.index(b"\n") + 1
    for size in range(header, len(content), 37):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(content[:size])
        with opened(folder) as journal:
            finished = len(journal.generations())
            assert journal.generations() == [record(0), record(1)][:finished]
            for generation in range(finished, 2):
                journal.append(record(generation))
        assert read_journal(folder).generations == (record(0), record(1))


def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text() + "no json\n" + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(
        RunFolderError, match=r"line 3 of .*journal.jsonl is damaged .*: restore the file from a copy or"
    ):
        opened(tmp_path)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(RunFolderError, match="version 2, this program reads 1: go on with the program that wrote it"):
        opened(tmp_path)


def test_a_folder_without_a_journal_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run folder: it holds no journal\.jsonl"):
        read_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as journal:
        before = (tmp_path / "journal.jsonl").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
        try:
            with pytest.raises(StorageError, match=r"cannot write .*journal.jsonl: File too large; nothing was half-w"):
                journal.append(record(0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        journal.append(record(0))
    assert read_journal(tmp_path).generations == (record(0),)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driver.lock", "journal.jsonl"]


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
        with pytest.raises(RunFolderError, match=r"another driver has opened .*driver\.lock beside it says which"):
            replaced.append(record(1))
        replaced.close()
        with pytest.raises(RunFolderError, match="another driver is at work"):  # the lock is still the successor's
            opened(tmp_path)
        successor.append(record(1, losses=(5.0,)))
    assert read_journal(tmp_path).generations == (record(0), record(1, losses=(5.0,)))


def test_a_line_that_a_replaced_driver_slipped_in_is_skipped(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append(record(0))
    opened(tmp_path).close()
    path = tmp_path / "journal.jsonl"
    stale = path.read_text().splitlines()[1].replace('"generation":0', '"generation":1')
    path.write_text(path.read_text() + stale + "\n")
    with opened(tmp_path) as journal:
        assert journal.generations() == [record(0)]
        journal.append(record(1))
    assert read_journal(tmp_path).generations == (record(0), record(1))


def test_a_driver_that_died_on_another_machine_is_replaced_only_on_request(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "driver.lock").write_text(json.dumps({"host": "head-7", "pid": 1, "since": "2026-11-23T09:00:00"}))
    with pytest.raises(
        RunFolderError, match=r"was at work and may still be on .* \(pid 1 on head-7, since 2026-11-23T"
    ):
        opened(tmp_path)
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

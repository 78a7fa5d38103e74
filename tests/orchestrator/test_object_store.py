"""Runs on an object store: the same guarantees as on a disk, and any machine goes on with nothing but the address."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.config import config_hash, config_to_dict
from orchestrator.driver_lock import driver_in
from orchestrator.errors import RunFolderError, StorageError
from orchestrator.evolution import Parts, evolve
from orchestrator.journal import Journal, read_journal
from orchestrator.rounds import InProcessFleet
from orchestrator.search import Search
from orchestrator.storage import Folder, folder_at
from orchestrator.store import Store
from tests.orchestrator.conftest import TINY
from tests.orchestrator.s3 import S3Server, s3_server
from tests.orchestrator.test_evolution import CONFIG, CountingRecipe, drive, same
from tests.orchestrator.test_journal import opened, record
from tests.orchestrator.test_store import bits, commit, generation_fitness, scored_unit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


@pytest.fixture
def run_address(server: S3Server) -> str:
    """A folder in a bucket of its own."""
    return server.address(f"{server.new_bucket()}/runs/first")


def objects(folder: Folder) -> dict[str, bytes]:
    """All objects of a run, by name."""
    places = ("", "journal", "units", "champion", "tables", *(f"tables/{name}" for name in ("units", "candidates")))
    return {name: folder.read(name) for place in places for name in folder.names(place)}


ELSEWHERE = """
    import socket, sys
    socket.gethostname = lambda: sys.argv[1]
    from orchestrator.cli import main
    sys.exit(main(sys.argv[2:]))
"""


def on_machine(host: str, *words: str) -> list[str]:
    """The ``namm`` command on another machine, which shares nothing with this one but the object store."""
    return [sys.executable, "-c", textwrap.dedent(ELSEWHERE), host, *words]


def carried_out(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=folder)
    assert "Traceback" not in done.stderr
    return done


# Files


def test_a_file_is_written_replaced_listed_and_deleted(run_address):
    folder = folder_at(run_address)
    assert not folder.exists()
    assert folder.names("units") == []
    for content in (b"one", b"two" * 5_000_000):  # the second one in several parts
        folder.write("units/a", content)
        assert folder.read("units/a") == content
    folder.write("units/sub/b", b"")
    assert folder.names("units") == ["units/a"]
    assert folder.names("units", prefix="b") == []
    assert folder.exists()
    folder.delete(["units/a", "units/never"])
    assert folder.names("units") == []
    assert folder.within("units").names("sub") == ["sub/b"]
    with pytest.raises(
        StorageError, match=r"cannot read s3://bucket-.*/runs/first/units/a\?scheme=http.*: .*not exist"
    ):
        folder.read("units/a")


def test_a_run_folder_may_be_a_whole_bucket(server):
    address = server.address(server.new_bucket())
    folder_at(address).require_writable()
    assert folder_at(address).names() == []
    opened(address).close()
    assert read_journal(address).is_closed


def test_what_runs_share_lies_beside_them_on_the_same_store(run_address):
    """The address of the store goes with it: what it says after the question mark, and its credentials."""
    folder_at(run_address).beside("shared").write("some", b"whole")
    assert folder_at(run_address.replace("/runs/first?", "/runs/shared?")).read("some") == b"whole"
    assert folder_at(run_address.replace("/runs/first?", "?")).beside("shared") is None


def test_an_interrupt_during_a_write_leaves_the_whole_file_and_nothing_under_way(run_address, monkeypatch):
    folder = folder_at(run_address)
    upload = type(folder)._upload

    def slow_upload(itself, name, content):
        time.sleep(2.0)
        upload(itself, name, content)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(folder), "_upload", slow_upload)
    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.write("some", b"whole")
    finally:
        signal.signal(signal.SIGALRM, former)
    assert folder.read("some") == b"whole"


def test_a_missing_bucket_is_one_line_and_nothing_is_written(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = server.address("never-made/run")
    for command in (["evolve", "small", *TINY, "--run", run], ["resume", run], ["inspect", run], ["evaluate", run]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "s3://never-made/run" in told
        assert "bucket never-made does not exist; create the bucket or mend the address" in told
    assert list(tmp_path.iterdir()) == []


# Journal


def test_a_journal_is_the_same_on_an_object_store(run_address):
    with opened(run_address) as journal:
        journal.append(record(0))
        assert driver_in(read_journal(run_address)).state == "at work"
    with opened(run_address) as journal:
        assert (journal.attempt, journal.generations()) == (2, [record(0)])
        journal.append(record(1))
    contents = read_journal(run_address)
    assert contents.generations == (record(0), record(1))
    assert contents.is_closed
    assert driver_in(read_journal(run_address)) is None
    assert all(len(content) < 2000 for content in objects(folder_at(run_address)).values())


def test_a_second_driver_is_told_who_the_first_one_is(run_address, monkeypatch):
    first, here = opened(run_address), socket.gethostname()
    with pytest.raises(RunFolderError, match=rf"was at work and may still be on s3://.* on {here}, since 20"):
        opened(run_address)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "head-7")
        assert driver_in(read_journal(run_address)).state == "out of sight"
        with pytest.raises(RunFolderError, match=rf"was at work and may still be on s3://.* on {here}, since 20"):
            opened(run_address)
        opened(run_address, takeover=True).close()
    with pytest.raises(RunFolderError, match=r"another driver has opened .* since \(pid \d+ on head-7, attempt 2\)"):
        first.append(record(0))


def test_an_old_driver_that_still_lives_writes_nothing_after_a_new_one_began(run_address):
    """Two drivers of the same run in turn, up to the end of the new one."""
    folder, recipe = folder_at(run_address), CountingRecipe()
    old = Journal.open(run_address, config_hash(CONFIG), config_to_dict(CONFIG))
    old_store = Store(old.folder)
    old_store.put_unit(scored_unit(7))
    assert len(old_store.units(7)) == 1
    new = Journal.open(run_address, config_hash(CONFIG), config_to_dict(CONFIG), takeover=True)
    before = objects(folder)
    writes = (
        lambda: (old_store.put_unit(scored_unit(8)), old_store.units(8)),
        lambda: old_store.commit_units(7),
        lambda: old_store.commit_generation(7, np.ones((4, 5), np.float32), generation_fitness()),
        lambda: old.append(record(0)),
        lambda: old.folder.write("summary.json", b"{}"),
        lambda: old.folder.write("champion/config.json", b"{}"),
    )
    for write in writes:
        with pytest.raises(RunFolderError, match="another driver has opened"):
            write()
    old.close()
    assert objects(folder) == before

    def interfere(_):
        for write in writes:
            with pytest.raises(RunFolderError, match="another driver has opened"):
                write()

    with InProcessFleet(recipe) as fleet, new:
        search = Search(CONFIG.search, CONFIG.memory.genome_size, CONFIG.seed)
        parts = Parts(config=CONFIG, fleet=fleet, store=Store(new.folder), journal=new, search=search, report=interfere)
        evolve(parts)
    assert len(read_journal(run_address).generations) == CONFIG.search.generations
    assert not {"summary.json", "champion/config.json"} & objects(folder).keys()


# Units and tables


def test_units_and_tables_are_the_same_on_an_object_store(run_address, tmp_path):
    units = [scored_unit(with_statistics=True), scored_unit(examples=(1, 2)), scored_unit(candidates=(2, 3))]
    stores = {"s3": Store(run_address), "disk": Store(tmp_path)}
    for store in stores.values():
        for unit in units[:2]:
            store.put_unit(unit)
    assert len(list(stores["s3"].units(0))) == 2  # which waits for uploads that are under way
    stores["s3"] = Store(run_address)  # a driver that did not put them itself
    for store in stores.values():
        store.put_unit(units[2])
        assert [bits(unit) for unit in store.units(0)] == [bits(unit) for unit in sorted(units, key=lambda u: u.key)]
        commit(store, 0, np.ones((4, 5), np.float32), generation_fitness())
        store.write_table("heldout", store.table("candidates"))
    analyst = Store(run_address)
    for name in ("candidates", "genomes", "units", "evaluations", "evictions", "heldout"):
        assert analyst.table(name).equals(stores["disk"].table(name))
    assert analyst.generations() == [0]
    assert {bits_of(unit) for unit in analyst.get_units([unit.key for unit in units]).values()} == set(
        map(bits_of, units)
    )
    assert folder_at(run_address).names("units") == []
    with pytest.raises(
        RunFolderError, match=r"no such table: s3://.*helout.parquet.*; there are: candidates, evaluati"
    ):
        analyst.table("helout")


def test_units_are_uploaded_side_by_side_and_are_there_when_asked_for(run_address, monkeypatch):
    store, units = Store(run_address), [scored_unit(candidates=(number, number + 1)) for number in range(40)]
    kind = type(folder_at(run_address))
    upload, under_way, most = kind._upload, set(), []
    are_many = threading.Event()  # the first ones wait for company, however slow the machine is

    def watched(itself, name, content):
        under_way.add(name)
        most.append(len(under_way))
        if len(under_way) > 8:
            are_many.set()
        are_many.wait(60)
        upload(itself, name, content)
        under_way.discard(name)

    monkeypatch.setattr(kind, "_upload", watched)
    for unit in units:
        store.put_unit(unit)
    assert store.get_units([unit.key for unit in units]).keys() == {unit.key for unit in units}
    assert 8 < max(most) <= 16


def test_a_unit_that_could_not_be_uploaded_is_told_before_its_generation_counts(run_address, monkeypatch):
    store, kind = Store(run_address), type(folder_at(run_address))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_full", lambda _, name: f"never-made/{name}")
        store.put_unit(scored_unit())
        with pytest.raises(StorageError, match=r"cannot write s3://.*NO_SUCH_BUCKET.*; create the bucket or mend the"):
            store.commit_units(0)
    assert store.get_unit(scored_unit().key) is None
    store.put_unit(scored_unit())
    store.commit_units(0)
    assert bits(store.get_unit(scored_unit().key)) == bits(scored_unit())


def bits_of(unit) -> str:
    return json.dumps(bits(unit), default=str)


# Whole runs


def test_the_search_ends_as_on_a_disk(run_address, tmp_path):
    assert same(drive(run_address, CountingRecipe()), drive(tmp_path, CountingRecipe()))


def test_a_driver_killed_on_one_machine_is_followed_on_another_to_the_same_end(
    server, run_address, finished_run, tmp_path, capsys
):
    for machine in ("head-1", "head-2", "desk"):
        (tmp_path / machine).mkdir()
    evolving = ["evolve", "small", *TINY, "--run", run_address]
    with subprocess.Popen(
        on_machine("head-1", *evolving), stderr=subprocess.PIPE, text=True, cwd=tmp_path / "head-1"
    ) as driver:
        said = ""
        while "generation 1/" not in said:
            line = driver.stderr.readline()
            assert line, said
            said += line
        driver.kill()
    assert not read_journal(run_address).is_closed
    units_before = objects(folder_at(run_address)).keys()

    refused = carried_out(tmp_path / "head-2", *on_machine("head-2", *evolving))
    assert refused.returncode == 2
    assert f"(pid {driver.pid} on head-1, since 20" in refused.stderr
    assert "--takeover" in refused.stderr
    assert objects(folder_at(run_address)).keys() == units_before

    retried = carried_out(tmp_path / "head-2", *on_machine("head-2", *evolving, "--takeover", "--json"))
    assert retried.returncode == 0, retried.stderr
    document = json.loads(retried.stdout)
    for known in ("population_hash", "genome_sha256"):
        assert document[known] == finished_run.summary[known]
    assert document["champion"] == run_address.replace("first?", "first/champion?")
    assert list((tmp_path / "head-2").iterdir()) == []

    looked = carried_out(tmp_path / "desk", *on_machine("desk", "inspect", run_address, "--json"))
    seen = json.loads(looked.stdout)
    assert (seen["generations_done"], seen["driver"], len(seen["attempts"])) == (2, None, 2)
    assert seen["champion"] == document["champion"]
    for what in (run_address, document["champion"]):
        assert main(["evaluate", what, *TINY, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["table"]
        assert [{key: value for key, value in row.items() if key != "seconds"} for row in rows] == document["table"]
    assert main(["inspect", document["champion"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["genome_sha256"] == document["genome_sha256"]
    again = carried_out(tmp_path / "desk", *on_machine("desk", "resume", run_address, "--json"))
    assert json.loads(again.stdout)["population_hash"] == document["population_hash"]


def test_mlflow_shows_one_run_whichever_machine_goes_on(server, run_address, tmp_path, monkeypatch):
    """The outbox stays behind on the first machine; the journal gives its points again."""
    import mlflow

    database = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    for machine, generations in (("head-1", 1), ("head-2", 2)):
        (tmp_path / machine).mkdir()
        words = [*TINY, "tracking.enabled=true", database, f"search.generations={generations}", "evaluation.rivals=[]"]
        command = on_machine(machine, "evolve", "small", *words, "--run", run_address, "--json")
        done = carried_out(tmp_path / machine, *command)
        assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [one for one in client.search_experiments() if one.name != "Default"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first"
    points = client.get_metric_history(run.info.run_id, "fitness/best")
    assert [point.step for point in points] == [0, 1]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"summary.json", "champion"}

import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from orchestrator import address
from orchestrator.config import ClusterSettings, UnitSettings
from orchestrator.errors import FleetError, UnitQuarantinedError
from orchestrator.fleet import InProcessFleet, RayFleet, fleet_for
from orchestrator.units import plan_units
from tests.orchestrator.recipes import BrokenRecipe, FakeRecipe
from workers.memory.specs import RivalSpec


def units(count=6, generation=0):
    return plan_units(
        generation=generation,
        memory_name="namm",
        memory=RivalSpec(name="full"),
        genomes=np.zeros((1, 3), dtype=np.float32),
        examples={"qa": tuple(range(count))},
        split="train",
        settings=UnitSettings(candidates_per_unit=1, examples_per_unit=1),
    )


def keys(scored):
    return [unit.key for unit in scored]


def test_a_round_gives_every_unit_once():
    with InProcessFleet(FakeRecipe()) as fleet:
        assert keys(fleet.score(units())) == keys(units())
        assert fleet.stats().workers == 1


def test_the_worker_is_built_once_and_persists_over_rounds(tmp_path):
    built = []

    class Recipe(FakeRecipe):
        def build(self):
            built.append(1)
            return super().build()

    with InProcessFleet(Recipe()) as fleet:
        for generation in range(3):
            assert keys(fleet.score(units(4, generation))) == keys(units(4, generation))
    assert built == [1]


def test_a_round_without_units_needs_no_worker():
    with InProcessFleet(BrokenRecipe()) as fleet:
        assert list(fleet.score([])) == []


def test_the_next_round_starts_afresh_when_one_was_abandoned():
    with InProcessFleet(FakeRecipe()) as fleet:
        next(fleet.score(units()))
        assert keys(fleet.score(units(3, generation=1))) == keys(units(3, generation=1))


def test_a_unit_that_raises_once_is_tried_again(tmp_path):
    with InProcessFleet(FakeRecipe(folder=tmp_path, raising_once=(2,))) as fleet:
        assert sorted(keys(fleet.score(units()))) == sorted(keys(units()))
        assert fleet.stats().retries == 1


def test_a_unit_that_always_raises_is_reported_with_its_story_after_all_others():
    scored = []
    with InProcessFleet(FakeRecipe(raising=(2,))) as fleet, pytest.raises(UnitQuarantinedError) as caught:
        scored.extend(fleet.score(units()))
    bad = units()[2].key
    assert sorted(keys(scored)) == sorted(set(keys(units())) - {bad})
    assert caught.value.stories == {bad: ("on worker 0: OtherLibraryError: example 2 does not compute",) * 2}


def test_a_recipe_that_cannot_be_built_is_told_in_one_line():
    message = "no worker can be built: ValueError: no model in /nowhere: set model.path_or_id to a folder that has one"
    with InProcessFleet(BrokenRecipe()) as fleet, pytest.raises(FleetError, match=f"^{re.escape(message)}$"):
        list(fleet.score(units()))


def test_the_settings_choose_the_fleet():
    assert isinstance(fleet_for(FakeRecipe(), ClusterSettings(address="in-process")), InProcessFleet)
    assert isinstance(fleet_for(FakeRecipe(), ClusterSettings()), RayFleet)


def test_importing_the_fleet_imports_neither_ray_nor_a_model_library():
    code = "import sys, orchestrator.fleet; print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.fixture
def listening():
    """Listen on a port and answer the first connection with the given bytes; gives the address."""
    server = socket.create_server(("127.0.0.1", 0))
    answering = []

    def listen(answer):
        def serve():
            connection, _ = server.accept()
            connections.append(connection)
            connection.recv(100)
            connection.sendall(answer)

        connections = []
        answering.append((threading.Thread(target=serve, daemon=True), connections))
        answering[-1][0].start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for thread, connections in answering:
        thread.join()
        for connection in connections:
            connection.close()
    server.close()


def test_a_grpc_server_passes_for_a_cluster(listening):
    address.require_cluster(listening(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))


def test_a_web_server_is_told_from_a_cluster(listening):
    with pytest.raises(FleetError, match="is not Ray"):
        address.require_cluster(listening(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


def test_a_port_that_listens_but_never_answers_is_given_up(listening, monkeypatch):
    monkeypatch.setattr(address, "PROBE_SECONDS", 0.2)
    with pytest.raises(FleetError, match="timed out"):
        address.require_cluster(listening(b""))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("no-such-host.invalid:6379", "no-such-host.invalid:6379: "),
        ("somewhere", "expected auto, host:port or ray://host:port"),
        ("somewhere:port", "no Ray cluster answers at somewhere:port"),
    ],
    ids=["closed-port", "closed-client-port", "unknown-host", "no-port", "not-a-number"],
)
def test_an_address_without_a_cluster_is_told_in_one_line(where, message):
    with pytest.raises(FleetError, match=message) as caught, RayFleet(FakeRecipe(), ClusterSettings(address=where)):
        pass
    assert os.linesep not in str(caught.value)

from __future__ import annotations

import json
import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator import outbox as outbox_module
from orchestrator.outbox import Courier, Item, Outbox


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outbox_module, "LONGEST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path)
    yield box
    box.close()


class Recipient:
    """Takes what it is given, except while it is away."""

    def __init__(self, most: int = 100) -> None:
        self.taken: list[Item] = []
        self.most = most
        self.is_away = False
        self.asked_at: list[float] = []

    def deliver(self, items: Sequence[Item]) -> int:
        self.asked_at.append(time.monotonic())
        if self.is_away:
            raise ConnectionError("nobody is\nthere")
        self.taken += items[: self.most]
        return len(items[: self.most])


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def numbered(*numbers: int) -> list[Item]:
    return [{"kind": "number", "number": number} for number in numbers]


def test_items_are_delivered_once_each_in_their_order(outbox: Outbox) -> None:
    recipient = Recipient(most=3)
    courier = Courier(outbox, recipient.deliver, to="a friend")
    courier.start()
    for item in numbered(*range(250)):
        courier.put(item)
    assert courier.flush(60)
    courier.stop()
    assert recipient.taken == numbered(*range(250))


def test_what_was_not_delivered_waits_for_the_next_process(tmp_path: Path) -> None:
    former = Outbox(tmp_path)
    for item in numbered(1, 2, 3):
        former.put(item)
    former.note_delivered(2)
    former.close()
    later = Outbox(tmp_path)
    later.put(numbered(4)[0])
    assert later.waiting() == numbered(3, 4)
    later.note_delivered(2)
    assert later.is_empty
    later.rewind()
    assert later.waiting() == numbered(1, 2, 3, 4)
    later.close()


def test_a_recipient_that_is_away_gets_everything_when_it_is_back(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recipient = Recipient()
    recipient.is_away = True
    courier = Courier(outbox, recipient.deliver, to="a friend")
    courier.start()
    for item in numbered(1, 2, 3):
        courier.put(item)
    wait_until(lambda: len(recipient.asked_at) > 2)
    assert not courier.flush(0.2)
    recipient.is_away = False
    courier.put(numbered(4)[0])
    assert courier.flush(60)
    courier.stop()
    assert recipient.taken == numbered(1, 2, 3, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "a friend does not take what is tracked (nobody is there): the run goes on, "
        f"what waits in {outbox.path} is sent later",
        "a friend answers again",
    ]


def test_pauses_grow_while_nobody_answers(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(outbox_module, "LONGEST_PAUSE_SECONDS", 100)
    recipient = Recipient()
    recipient.is_away = True
    courier = Courier(outbox, recipient.deliver, to="a friend")
    courier.start()
    courier.put(numbered(1)[0])
    wait_until(lambda: len(recipient.asked_at) >= 4)
    courier.stop()
    pauses = [later - earlier for earlier, later in pairwise(recipient.asked_at)]
    assert all(pause >= least for pause, least in zip(pauses[:3], (0.1, 0.2, 0.4), strict=True))


def test_an_impatient_flush_gives_up_with_the_first_failure_and_ends_a_pause(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 100)
    recipient = Recipient()
    recipient.is_away = True
    courier = Courier(outbox, recipient.deliver, to="a friend")
    courier.start()
    courier.put(numbered(1)[0])
    assert not courier.flush(60, is_patient=False)
    recipient.is_away = False
    assert courier.flush(60)
    courier.stop()


def test_nothing_waits_for_a_recipient_that_hangs(outbox: Outbox) -> None:
    is_released = threading.Event()

    def hang(items: Sequence[Item]) -> int:
        is_released.wait(60)
        return len(items)

    courier = Courier(outbox, hang, to="a friend")
    courier.start()
    start = time.perf_counter()
    for item in numbered(*range(1000)):
        courier.put(item)
    assert time.perf_counter() - start < 30, "it would hang for a minute"
    assert not courier.flush(0.05)
    courier.stop(0.05)
    is_released.set()


@pytest.mark.parametrize("torn", ['{"kind": "num', "\0\0"])
def test_a_torn_last_item_is_cut_off(torn: str, tmp_path: Path) -> None:
    (tmp_path / "outbox.jsonl").write_text(json.dumps(numbered(1)[0]) + "\n" + torn)
    outbox = Outbox(tmp_path)
    outbox.put(numbered(2)[0])
    assert outbox.waiting() == numbered(1, 2)
    outbox.close()


def test_a_damaged_item_does_not_stop_those_behind_it(tmp_path: Path) -> None:
    (tmp_path / "outbox.jsonl").write_text("no json\n" + json.dumps(numbered(2)[0]) + "\n")
    outbox = Outbox(tmp_path)
    assert outbox.waiting() == [{"kind": "damaged"}, *numbered(2)]
    outbox.close()


def test_a_full_disk_loses_the_item_and_not_the_run(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    outbox.put(numbered(1)[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (outbox.path.stat().st_size + 10, hard))
    try:
        outbox.put(numbered(2)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outbox.put(numbered(3)[0])
    assert outbox.waiting() == numbered(1, 3)
    assert "number is not tracked" in caplog.text


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"bytes": "x"}', b'{"bytes": -5}', b"{"])
def test_what_was_delivered_is_sent_again_where_that_cannot_be_read(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / "outbox.jsonl").write_text(json.dumps(numbered(1)[0]) + "\n")
    (tmp_path / "delivered.json").write_bytes(damaged)
    outbox = Outbox(tmp_path)
    assert outbox.waiting() == numbered(1)
    outbox.close()

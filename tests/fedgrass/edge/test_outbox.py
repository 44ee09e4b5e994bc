"""The outbox: in order, once by key, over restarts and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedgrass.edge.outbox import Outbox
from fedgrass.errors import IpcRefusedError, TransferError
from fedgrass.logs import Log
from tests.fedgrass.edge.fakes import FakeIpc
from tests.fixtures.waiting import eventually

LOG = Log("test")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def outbox(folder: Path, ipc: FakeIpc, clock: Clock | None = None, **options: int) -> Outbox:
    return Outbox(folder, ipc.publish_cloud, LOG, clock=clock or Clock(), gap=0.0, **options)


def drain(box: Outbox, clock: Clock) -> None:
    while (wait := box.send_next()) is not None:
        clock.now += max(wait, 0.001)


def test_a_message_is_sent_and_forgotten(tmp_path: Path) -> None:
    ipc = FakeIpc()
    box = outbox(tmp_path, ipc)
    assert box.put("a", "topic", b"1")
    assert box.send_next() is None
    assert ipc.cloud == [("topic", b"1")]
    assert len(box) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["delivered.json"]


def test_what_is_refused_is_sent_later_in_order(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    ipc.offline = True
    box = outbox(tmp_path, ipc, clock)
    for number in range(5):
        box.put(f"k{number}", "topic", b"%d" % number)
    assert box.send_next()
    ipc.offline = False
    drain(box, clock)
    assert [payload for _, payload in ipc.cloud] == [b"0", b"1", b"2", b"3", b"4"]


def test_nothing_is_tried_again_before_its_pause_is_over(tmp_path: Path) -> None:
    tries = []

    def refuse(topic: str, payload: bytes) -> None:
        tries.append(topic)
        raise IpcRefusedError(topic)

    clock = Clock()
    box = Outbox(tmp_path, refuse, LOG, clock=clock)
    box.put("a", "topic", b"")
    first = box.send_next()
    assert first is not None
    assert 0.5 <= first <= 1
    assert box.send_next() == first
    assert len(tries) == 1
    pauses = []
    for _ in range(12):
        clock.now += 100
        pauses.append(box.send_next() or 0)
    assert max(pauses) <= 15
    assert min(pauses[-3:]) >= 7.5


def test_messages_keep_a_distance_that_lite_can_take(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    box = Outbox(tmp_path, ipc.publish_cloud, LOG, clock=clock, gap=0.2)
    for number in range(3):
        box.put(f"k{number}", "topic", b"")
    assert box.send_next() == pytest.approx(0.2)
    assert box.send_next() == pytest.approx(0.2)
    assert len(ipc.cloud) == 1


def test_a_restart_neither_loses_nor_repeats_a_message(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    box = outbox(tmp_path, ipc, clock)
    box.put("sent", "topic", b"1")
    drain(box, clock)
    box.put("waiting", "topic", b"2")
    again = outbox(tmp_path, ipc, clock)
    assert again.knows("sent")
    assert again.knows("waiting")
    assert not again.put("sent", "topic", b"1")
    assert not again.put("waiting", "topic", b"2")
    drain(again, clock)
    assert [payload for _, payload in ipc.cloud] == [b"1", b"2"]


def test_a_crash_between_noting_and_deleting_does_not_send_again(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    outbox(tmp_path, ipc, clock).put("a", "topic", b"1")
    (tmp_path / "delivered.json").write_text(json.dumps(["a"]))
    drain(outbox(tmp_path, ipc, clock), clock)
    assert ipc.cloud == []


def test_only_the_newest_of_a_replaceable_message_is_sent(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    ipc.offline = True
    box = outbox(tmp_path, ipc, clock)
    for number in range(10):
        box.put_newest("heartbeat", "topic", b"%d" % number)
        box.send_next()
    ipc.offline = False
    clock.now += 100
    drain(box, clock)
    assert ipc.cloud == [("topic", b"9")]
    assert list(tmp_path.iterdir()) == []


def test_a_newer_message_put_while_one_is_being_sent_is_sent_too(tmp_path: Path) -> None:
    sent: list[bytes] = []

    def send(_topic: str, payload: bytes) -> None:
        sent.append(payload)
        if len(sent) == 1:
            box.put_newest("heartbeat", "topic", b"new")

    clock = Clock()
    box = Outbox(tmp_path, send, LOG, clock=clock, gap=0.0)
    box.put_newest("heartbeat", "topic", b"old")
    drain(box, clock)
    assert sent == [b"old", b"new"]


def test_a_full_outbox_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    box = outbox(tmp_path, FakeIpc(), limit=2)
    box.put("a", "topic", b"")
    box.put("b", "topic", b"")
    with pytest.raises(TransferError, match="2 messages wait"):
        box.put("c", "topic", b"")
    assert not box.knows("c")
    assert len(box) == 2


def test_a_disk_that_cannot_be_written_refuses_and_says_so(tmp_path: Path) -> None:
    box = outbox(tmp_path / "box", FakeIpc())
    (tmp_path / "box").rmdir()
    (tmp_path / "box").write_text("in the way")
    with pytest.raises(TransferError, match="cannot keep a message"):
        box.put("a", "topic", b"")


def test_a_damaged_message_is_set_aside_and_the_rest_is_sent(tmp_path: Path) -> None:
    ipc, clock = FakeIpc(), Clock()
    box = outbox(tmp_path, ipc, clock)
    box.put("a", "topic", b"1")
    box.put("b", "topic", b"2")
    (tmp_path / f"{0:016d}.json").write_bytes(b"\x00\xff")
    (tmp_path / "delivered.json").write_bytes(b"{")
    drain(outbox(tmp_path, ipc, clock), clock)
    assert ipc.cloud == [("topic", b"2")]
    assert list(tmp_path.glob("*.damaged"))


def test_the_thread_sends_what_is_put_and_ends_when_stopped(tmp_path: Path) -> None:
    ipc = FakeIpc()
    box = Outbox(tmp_path, ipc.publish_cloud, LOG, gap=0.001)
    box.start()
    try:
        for number in range(20):
            box.put(f"k{number}", "topic", b"%d" % number)
        eventually(lambda: len(ipc.cloud) == 20, "all sent")
        assert [payload for _, payload in ipc.cloud] == [b"%d" % number for number in range(20)]
    finally:
        box.stop()


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_whatever_lies_in_the_folder_the_outbox_starts(content: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "0000000000000003.json").write_bytes(content)
        (folder / "delivered.json").write_bytes(content)
        box = outbox(folder, FakeIpc())
        assert box.put("new", "topic", b"1") or box.knows("new")


class OutboxMachine(RuleBasedStateMachine):
    """Any interleaving of puts, link losses, sends and restarts: each key arrives once, in the order of the puts."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.ipc, self.clock = FakeIpc(), Clock()
        self.accepted: list[str] = []
        self.box = outbox(Path(self._folder.name), self.ipc, self.clock, limit=5)

    def teardown(self) -> None:
        self.ipc.offline = False
        self.clock.now += 1000
        drain(self.box, self.clock)
        assert self.arrived() == self.accepted
        self._folder.cleanup()

    def arrived(self) -> list[str]:
        return [payload.decode() for _, payload in self.ipc.cloud]

    @rule(number=st.integers(0, 12))
    def put(self, number: int) -> None:
        key = f"k{number}"
        try:
            is_new = self.box.put(key, "topic", key.encode())
        except TransferError:
            assert len(self.box) == 5
            return
        assert is_new == (key not in self.accepted)
        if is_new:
            self.accepted.append(key)

    @rule()
    def send(self) -> None:
        self.box.send_next()

    @rule(seconds=st.sampled_from([0.1, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(offline=st.booleans())
    def link(self, offline: bool) -> None:
        self.ipc.offline = offline

    @rule()
    def restart(self) -> None:
        self.box = outbox(Path(self._folder.name), self.ipc, self.clock, limit=5)

    @invariant()
    def arrives_in_order(self) -> None:
        assert self.arrived() == self.accepted[: len(self.ipc.cloud)]


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

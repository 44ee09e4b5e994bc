"""Uploads through Stream Manager: none lost, none queued twice, files deleted only when they have arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fedgrass.edge.streams import TaskStatus
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.errors import TransferError
from fedgrass.logs import Log
from tests.fedgrass.edge.fakes import FakeStreamManager, file_with
from tests.fixtures.waiting import eventually

LOG = Log("test")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Sender:
    """A component that uploads; ``restart`` is what a kill and a relaunch do."""

    def __init__(self, folder: Path, manager: FakeStreamManager) -> None:
        self.folder = folder
        self.manager = manager
        self.clock = Clock()
        self.ended: list[tuple[str, str, str]] = []
        self.crash_when_ended = False
        self.uploads = self._made()

    def _made(self) -> Uploads:
        return Uploads(
            self.folder / "uploads", self.manager.connect, self._note, LOG, wait=0.0, clock=self.clock, max_count=5
        )

    def _note(self, upload: Upload, outcome: str, reason: str) -> None:
        self.ended.append((upload.name, outcome, reason))
        if self.crash_when_ended:
            raise KeyboardInterrupt

    def restart(self) -> None:
        self.uploads = self._made()

    def submit(self, name: str, content: bytes = b"content") -> None:
        file = file_with(self.folder / "update.bin", content)
        self.uploads.submit(name, file, bucket="bucket", key=f"updates/{name}", message=name)

    def work(self, steps: int = 5, seconds: float = 0.0) -> None:
        """Let the uploads' thread do a little; each read of the statuses takes some seconds."""
        self.uploads._stopping = False
        streams = self.manager.connect()
        original = streams.ended
        left = steps

        def ended(start: int, wait: float) -> object:
            nonlocal left
            left -= 1
            self.clock.now += seconds
            if left <= 0:
                self.uploads._stopping = True
            return original(start, wait)

        streams.ended = ended  # type: ignore[method-assign, assignment]
        self.uploads.work(streams)


@pytest.fixture
def manager() -> FakeStreamManager:
    return FakeStreamManager()


@pytest.fixture
def sender(tmp_path: Path, manager: FakeStreamManager) -> Iterator[Sender]:
    made = Sender(tmp_path, manager)
    yield made
    made.uploads.stop()


def test_a_file_arrives_and_is_deleted_only_then(sender: Sender, manager: FakeStreamManager) -> None:
    manager.automatic = False
    sender.submit("a", b"hello")
    sender.work()
    assert list((sender.folder / "uploads").glob("*/update.bin"))
    assert sender.ended == []
    manager.export()
    sender.work()
    assert sender.ended == [("a", "uploaded", "")]
    assert manager.s3 == {"updates/a": b"hello"}
    assert list((sender.folder / "uploads").iterdir()) == []


def test_the_sender_gets_its_message_back(tmp_path: Path, manager: FakeStreamManager) -> None:
    messages = []
    uploads = Uploads(tmp_path, manager.connect, lambda upload, _outcome, _reason: messages.append(upload.message), LOG)
    uploads.submit("a", file_with(tmp_path / "f", b""), bucket="b", key="k", message='{"x": 1}')
    uploads.work(manager.connect())
    assert messages == ['{"x": 1}']


def test_a_failure_is_queued_again_after_a_pause(sender: Sender, manager: FakeStreamManager) -> None:
    manager.fails = 2
    sender.submit("a")
    sender.work()
    assert len(manager.tasks) == 1
    sender.clock.now += 6
    sender.work()
    assert len(manager.tasks) == 2
    sender.clock.now += 11
    sender.work()
    assert sender.ended == [("a", "uploaded", "")]
    assert len(manager.tasks) == 3


def test_after_a_restart_what_is_queued_is_not_queued_again(sender: Sender, manager: FakeStreamManager) -> None:
    manager.automatic = False
    sender.submit("a")
    sender.work()
    sender.restart()
    assert sender.uploads.waits("a")
    sender.work()
    assert len(manager.tasks) == 1
    manager.export()
    sender.restart()
    sender.work()
    assert sender.ended == [("a", "uploaded", "")]


def test_a_crash_between_queueing_and_noting_does_not_queue_again(sender: Sender, manager: FakeStreamManager) -> None:
    manager.automatic = False
    sender.submit("a")
    sender.work()
    [record] = (sender.folder / "uploads").glob("*/upload.json")
    upload = Upload.model_validate_json(record.read_bytes())
    record.write_text(upload.model_copy(update={"sequence": None}).model_dump_json())
    sender.restart()
    sender.work()
    assert len(manager.tasks) == 1
    manager.export()
    sender.work()
    assert sender.ended == [("a", "uploaded", "")]


def test_a_crash_while_the_end_is_told_tells_it_again(sender: Sender) -> None:
    sender.submit("a")
    sender.crash_when_ended = True
    with pytest.raises(KeyboardInterrupt):
        sender.work()
    sender.crash_when_ended = False
    sender.restart()
    sender.work()
    assert [name for name, _, _ in sender.ended] == ["a", "a"]
    assert len(sender.uploads) == 0


def test_streams_that_were_lost_are_filled_again(sender: Sender, manager: FakeStreamManager) -> None:
    manager.automatic = False
    for name in ("a", "b"):
        sender.submit(name)
    sender.work()
    manager.tasks.clear()
    manager.automatic = True
    sender.restart()
    sender.work()
    assert {name for name, _, _ in sender.ended} == {"a", "b"}


def test_an_upload_whose_status_was_lost_is_done_again(sender: Sender, manager: FakeStreamManager) -> None:
    manager.automatic = False
    sender.submit("a")
    sender.work()
    manager.export()
    manager.statuses.clear()
    manager.automatic = True
    sender.work(steps=3)
    assert manager.uploads == 1
    sender.work(steps=5, seconds=61)
    assert sender.ended == [("a", "uploaded", "")]
    assert manager.uploads == 2


def test_a_file_that_is_gone_ends_as_failed(sender: Sender) -> None:
    sender.submit("a")
    [file] = (sender.folder / "uploads").glob("*/update.bin")
    file.unlink()
    sender.work()
    assert sender.ended == [("a", "failed", "update.bin is gone from this device")]


def test_the_same_name_twice_is_one_upload(sender: Sender, manager: FakeStreamManager) -> None:
    sender.submit("a")
    sender.submit("a")
    sender.work()
    assert manager.uploads == 1
    assert not (sender.folder / "update.bin").exists()


def test_more_than_fits_is_refused_and_stays_where_it_was(tmp_path: Path, manager: FakeStreamManager) -> None:
    uploads = Uploads(tmp_path / "u", manager.connect, lambda *_: None, LOG, max_bytes=100)
    uploads.submit("a", file_with(tmp_path / "f", b"x" * 200), bucket="b", key="k")
    assert "wait for upload" in uploads.room()
    file = file_with(tmp_path / "g", b"y")
    with pytest.raises(TransferError, match="100 bytes"):
        uploads.submit("b", file, bucket="b", key="k")
    assert file.read_bytes() == b"y"


def test_half_a_submission_is_no_submission(sender: Sender) -> None:
    folder = sender.folder / "uploads" / "half"
    folder.mkdir()
    (folder / "update.bin").write_bytes(b"x")
    sender.restart()
    assert len(sender.uploads) == 0
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"name": "a"}', b"\0" * 4096])
def test_an_upload_whose_record_is_damaged_is_told_of_and_takes_no_room(sender: Sender, content: bytes) -> None:
    sender.submit("a")
    sender.submit("b")
    record = sender.folder / "uploads" / "a" / "upload.json"
    record.write_bytes(content)
    sender.restart()
    assert not sender.uploads.waits("a")
    assert sender.uploads.waits("b")
    assert not record.parent.exists()


def test_the_thread_waits_while_stream_manager_is_away(tmp_path: Path, manager: FakeStreamManager) -> None:
    ended: list[str] = []
    manager.away = True
    uploads = Uploads(tmp_path / "u", manager.connect, lambda upload, *_: ended.append(upload.name), LOG, wait=0.05)
    uploads.start()
    try:
        uploads.submit("a", file_with(tmp_path / "f", b"x"), bucket="b", key="k")
        assert ended == []
        manager.away = False
        eventually(lambda: ended == ["a"], "uploaded once Stream Manager is back")
    finally:
        uploads.stop()


def test_while_nothing_is_told_the_status_is_asked_for_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, waited = FakeStreamManager(automatic=False), []
    uploads = Uploads(tmp_path / "u", manager.connect, lambda *_: None, LOG, wait=0.5)
    uploads.submit("a", file_with(tmp_path / "f", b"x"), bucket="b", key="k")
    streams = manager.connect()

    def ended(start: int, wait: float) -> tuple[list[TaskStatus], int]:
        waited.append(wait)
        if len(waited) == 5:
            uploads.stop()
        return [], start

    monkeypatch.setattr(streams, "ended", ended)
    uploads.work(streams)
    assert waited == [0.5, 1.0, 2.0, 2.0, 2.0]


class UploadsMachine(RuleBasedStateMachine):
    """Any interleaving of submissions, exports, failures, restarts and outages: every file arrives, none twice by us."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.manager = FakeStreamManager(automatic=False)
        self.sender = Sender(Path(self._folder.name), self.manager)
        self.accepted: set[str] = set()

    def teardown(self) -> None:
        self.manager.away = self.manager.refuses = False
        self.manager.fails = 0
        self.manager.automatic = True
        while self.manager.export():
            pass
        for _ in range(10):
            self.sender.clock.now += 1000
            self.sender.work()
        assert set(self.manager.s3) == {f"updates/{name}" for name in self.accepted}
        assert {name for name, outcome, _ in self.sender.ended if outcome == "uploaded"} == self.accepted
        assert len(self.sender.ended) == len(self.accepted)
        assert self.manager.uploads == len(self.accepted)
        assert list((self.sender.folder / "uploads").iterdir()) == []
        self._folder.cleanup()

    @rule(number=st.integers(0, 6))
    def submit(self, number: int) -> None:
        name = f"n{number}"
        if name in self.accepted:
            return
        try:
            self.sender.submit(name, name.encode())
        except TransferError:
            return
        self.accepted.add(name)

    @rule()
    def export(self) -> None:
        self.manager.export()

    @rule(count=st.integers(0, 2))
    def fail(self, count: int) -> None:
        self.manager.fails = count

    @rule(away=st.booleans(), refuses=st.booleans())
    def outage(self, away: bool, refuses: bool) -> None:
        self.manager.away, self.manager.refuses = away, refuses

    @rule(seconds=st.sampled_from([1.0, 1000.0]))
    def work(self, seconds: float) -> None:
        self.sender.clock.now += seconds
        with contextlib.suppress(TransferError):
            self.sender.work()

    @rule()
    def restart(self) -> None:
        self.sender.restart()


TestUploadsMachine = UploadsMachine.TestCase
TestUploadsMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

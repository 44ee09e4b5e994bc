"""Stream Manager through the unmodified SDK, against the local core device's server."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from botocore.exceptions import ClientError

from fedgrass.edge.streams import STATUSES, TASKS, StreamManagerStreams, Task
from fedgrass.edge.uploads import Uploads
from fedgrass.errors import TransferError
from fedgrass.local.core_device.stream_manager.server import StreamManagerServer
from fedgrass.local.core_device.stream_manager.store import StreamStore
from fedgrass.logs import Log
from tests.fedgrass.edge.fakes import file_with
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.doubles import double
from tests.fixtures.waiting import eventually


class Bucket:
    """S3 as Stream Manager sees it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuse = False

    def upload_fileobj(self, file: BinaryIO, bucket: str, key: str, **_: Any) -> None:
        if self.refuse:
            response: Any = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(response, "PutObject")
        self.objects[f"{bucket}/{key}"] = file.read()


class Server:
    """Stream Manager on a free port; its folder outlives it."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self._loop = loop
        self._folder = folder
        self.bucket = Bucket()
        self.port = 0
        self.start()

    def start(self) -> None:
        self._store = StreamStore(self._folder, lambda: double(self.bucket))
        self._loop.call(self._store.open)
        self._server = StreamManagerServer(self._store, self._anyone)
        self.port = self._loop.run(self._server.start(self.port))

    def stop(self) -> None:
        self._loop.run(self._server.stop())
        self._loop.run(self._store.close())

    async def _anyone(self, _token: str) -> bool:
        return True


def sdk_threads() -> int:
    """Number of connections whose thread still runs, those of other tests included."""
    return sum("run_event_loop" in thread.name for thread in threading.enumerate())


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture
def server(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "streams").mkdir()
    running = Server(loop, tmp_path / "streams")
    monkeypatch.setenv("STREAM_MANAGER_SERVER_PORT", str(running.port))
    yield running
    running.stop()


@pytest.fixture
def streams(server: Server) -> Iterator[StreamManagerStreams]:
    connected = StreamManagerStreams()
    yield connected
    connected.close()


def test_a_task_is_found_again_and_its_end_is_told(
    streams: StreamManagerStreams, server: Server, tmp_path: Path
) -> None:
    task = Task(file_with(tmp_path / "a file.bin", b"hello"), "bucket", "updates/f/000001/thing:1/update.safetensors")
    before = streams.extent()
    sequence = streams.append(task)
    assert streams.find(task, before.newest_task) == sequence
    assert streams.find(task, sequence) is None
    statuses, position = streams.ended(0, 10)
    while not statuses:
        statuses, position = streams.ended(position, 10)
    assert [(s.sequence, s.key, s.outcome) for s in statuses] == [(sequence, task.key, "success")]
    assert server.bucket.objects == {f"bucket/{task.key}": b"hello"}
    after = streams.extent()
    assert (after.newest_task, after.newest_status) == (sequence, position - 1)
    eventually(lambda: streams.extent().exported_task == sequence, "progress noted")


def test_connecting_twice_keeps_the_streams(streams: StreamManagerStreams, tmp_path: Path) -> None:
    streams.append(Task(file_with(tmp_path / "f", b""), "bucket", "k"))
    again = StreamManagerStreams()
    assert again.extent().newest_task == 0
    again.close()


def test_cleared_streams_start_anew(streams: StreamManagerStreams, tmp_path: Path) -> None:
    streams.append(Task(file_with(tmp_path / "f", b""), "bucket", "k"))
    streams.clear()
    assert streams.extent().newest_task == -1
    assert streams.append(Task(tmp_path / "f", "bucket", "k")) == 0


def test_statuses_are_waited_for_without_polling(streams: StreamManagerStreams, server: Server, tmp_path: Path) -> None:
    assert streams.ended(0, 0) == ([], 0)
    appender = threading.Timer(0.1, lambda: streams.append(Task(file_with(tmp_path / "f", b""), "bucket", "k")))
    appender.start()
    messages, position = streams.ended(0, 8)
    appender.join()
    assert position > 0 or messages


def test_without_stream_manager_connecting_fails_and_leaves_no_thread_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAM_MANAGER_SERVER_PORT", "1")
    before = sdk_threads()
    for _ in range(5):
        with pytest.raises(TransferError, match="cannot connect"):
            StreamManagerStreams()
    eventually(lambda: sdk_threads() <= before, "threads ended")


def test_an_upload_survives_a_restart_of_stream_manager(server: Server, tmp_path: Path) -> None:
    ended: list[tuple[str, str]] = []
    before = sdk_threads()
    uploads = Uploads(
        tmp_path / "uploads",
        StreamManagerStreams,
        lambda upload, outcome, _reason: ended.append((upload.name, outcome)),
        Log("test"),
        wait=0.2,
    )
    uploads.start()
    try:
        uploads.submit("one", file_with(tmp_path / "f", b"1"), bucket="bucket", key="one")
        eventually(lambda: ended == [("one", "uploaded")], "first upload")
        server.stop()
        uploads.submit("two", file_with(tmp_path / "f", b"2"), bucket="bucket", key="two")
        server.start()
        eventually(lambda: ended[1:] == [("two", "uploaded")], "second upload")
    finally:
        uploads.stop()
    assert server.bucket.objects == {"bucket/one": b"1", "bucket/two": b"2"}
    eventually(lambda: sdk_threads() <= before, "connections closed")


def test_a_refused_upload_is_tried_again(server: Server, tmp_path: Path) -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    ended: list[str] = []
    uploads = Uploads(
        tmp_path / "uploads",
        StreamManagerStreams,
        lambda _upload, outcome, _reason: ended.append(outcome),
        Log("test"),
        wait=0.05,
        clock=clock,
    )
    server.bucket.refuse = True
    uploads.start()
    try:
        uploads.submit("one", file_with(tmp_path / "f", b"1"), bucket="bucket", key="one")
        eventually(lambda: "one" in uploads._retries, "failure told")
        server.bucket.refuse = False
        clock.now += 10
        eventually(lambda: ended == ["uploaded"], "uploaded in the end")
    finally:
        uploads.stop()


def test_the_streams_refuse_when_full_and_lie_on_disk(streams: StreamManagerStreams) -> None:
    tasks = streams._client.describe_message_stream(TASKS).definition
    statuses = streams._client.describe_message_stream(STATUSES).definition
    assert (tasks.strategy_on_full.name, tasks.persistence.name, tasks.flush_on_write) == (
        "RejectNewData",
        "File",
        True,
    )
    assert statuses.persistence.name == "File"


def bytes_of(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # the server has deleted it meanwhile
            total += path.stat().st_size
    return total


def test_a_full_stream_takes_new_uploads_and_its_disk_use_stays_bounded(server: Server, tmp_path: Path) -> None:
    size = 4096

    def connect() -> StreamManagerStreams:
        return StreamManagerStreams(tasks_bytes=size)

    outcomes: list[str] = []
    uploads = Uploads(
        tmp_path / "waiting", connect, lambda _upload, outcome, _reason: outcomes.append(outcome), Log("t"), wait=0.05
    )
    uploads.start()
    tasks = tmp_path / "streams" / f"stream-{TASKS}"
    for number in range(80):  # some 200 bytes each: four times what the stream holds
        content = str(number).encode()
        uploads.submit(f"u{number}", file_with(tmp_path / "f", content), bucket="bucket", key=f"updates/{number}")
        if number % 3 == 2:  # several are under way when the stream is full
            eventually(lambda: len(uploads) == 0, f"{number + 1} uploads ended")
            assert bytes_of(tasks.glob("*.segment")) <= size
    eventually(lambda: len(uploads) == 0, "all ended")
    uploads.stop()
    assert outcomes == ["uploaded"] * 80
    assert server.bucket.objects == {f"bucket/updates/{number}": str(number).encode() for number in range(80)}

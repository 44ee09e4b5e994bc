"""Stream Manager through the unmodified ``stream-manager`` SDK, against S3 as the local AWS serves it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_manager import (
    ExportDefinition,
    InvalidRequestException,
    MessageStreamDefinition,
    NotEnoughMessagesException,
    Persistence,
    ReadMessagesOptions,
    RequestPayloadTooLargeException,
    ResourceNotFoundException,
    S3ExportTaskDefinition,
    S3ExportTaskExecutorConfig,
    Status,
    StatusConfig,
    StatusLevel,
    StatusMessage,
    StrategyOnFull,
    StreamManagerClient,
    UpdateNotAllowedException,
)
from stream_manager.exceptions import ConnectFailedException
from stream_manager.util import Util

from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.core_device.stream_manager.server import StreamManagerServer
from fedgrass.local.core_device.stream_manager.store import StreamStore
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.waiting import PATIENCE

REJECT, OVERWRITE = StrategyOnFull.RejectNewData, StrategyOnFull.OverwriteOldestData


class Manager:
    """Stream Manager in this process, to be stopped and started on the same folder."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.s3: Callable[[], Any] = lambda: None
        self._loop = loop
        self._folder = folder
        self._clients: list[StreamManagerClient] = []
        self.start()

    def start(self) -> None:
        self.store = StreamStore(self._folder, lambda: self.s3())
        self._loop.call(self.store.open)
        self.server = StreamManagerServer(self.store, self._authenticate)
        self.port = self._loop.run(self.server.start(0))

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._loop.run(self.server.stop())
        self._loop.run(self.store.close())

    def restart(self) -> None:
        self.stop()
        self.start()

    def client(self) -> StreamManagerClient:
        client = StreamManagerClient(port=self.port, request_timeout=int(PATIENCE))
        self._clients.append(client)
        return client

    async def _authenticate(self, token: str) -> bool:
        return token != "stranger"


@pytest.fixture
def manager(loop: Loop, tmp_path: Path) -> Iterator[Manager]:
    folder = tmp_path / "streams"
    folder.mkdir()
    running = Manager(loop, folder)
    yield running
    running.stop()


def payloads(client: StreamManagerClient, name: str, count: int, *, start: int = 0, wait: int = 0) -> list[bytes]:
    options = ReadMessagesOptions(start, count, count, wait)
    return [message.payload for message in client.read_messages(name, options)]


def test_messages_are_read_in_the_order_of_their_append(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="s, 1._-", strategy_on_full=REJECT))
    assert [client.append_message("s, 1._-", b"%d" % i) for i in range(5)] == list(range(5))
    messages = client.read_messages("s, 1._-", ReadMessagesOptions(2, 2, 3))
    assert [(m.sequence_number, m.payload, m.stream_name) for m in messages] == [
        (2, b"2", "s, 1._-"),
        (3, b"3", "s, 1._-"),
        (4, b"4", "s, 1._-"),
    ]
    assert all(message.ingest_time > 0 for message in messages)


def test_too_few_messages_are_an_error_unless_they_come_in_time(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="s", strategy_on_full=REJECT))
    with pytest.raises(NotEnoughMessagesException):
        client.read_messages("s")
    with pytest.raises(NotEnoughMessagesException):
        client.read_messages("s", ReadMessagesOptions(0, 1, 1, 20))
    appender = threading.Thread(target=lambda: manager.client().append_message("s", b"late"))
    appender.start()
    assert payloads(client, "s", 1, wait=10_000) == [b"late"]
    appender.join()


def test_streams_are_listed_described_updated_and_deleted(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="b", strategy_on_full=REJECT))
    client.create_message_stream(MessageStreamDefinition(name="a", strategy_on_full=OVERWRITE))
    assert client.list_streams() == ["a", "b"]
    with pytest.raises(InvalidRequestException):
        client.create_message_stream(MessageStreamDefinition(name="a", strategy_on_full=REJECT))
    client.append_message("a", b"x")
    described = client.describe_message_stream("a")
    assert described.storage_status.newest_sequence_number == 0
    assert described.storage_status.total_bytes > 0
    assert described.definition.strategy_on_full is OVERWRITE
    client.update_message_stream(MessageStreamDefinition(name="a", max_size=4096, strategy_on_full=REJECT))
    assert client.describe_message_stream("a").definition.max_size == 4096
    with pytest.raises(UpdateNotAllowedException):
        client.update_message_stream(
            MessageStreamDefinition(name="a", strategy_on_full=REJECT, persistence=Persistence.Memory)
        )
    client.delete_message_stream("a")
    assert client.list_streams() == ["b"]
    for call in (client.describe_message_stream, client.delete_message_stream, client.read_messages):
        with pytest.raises(ResourceNotFoundException):
            call("a")


def test_a_full_stream_rejects_what_is_new_and_keeps_what_it_has(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="s", max_size=2048, strategy_on_full=REJECT))
    messages = [bytes([i]) * 100 for i in range(16)]
    for message in messages:  # 16 of 124 bytes, with what each takes on the disk: 64 bytes short of full
        client.append_message("s", message)
    with pytest.raises(InvalidRequestException, match="full"):
        client.append_message("s", bytes(100))
    assert payloads(client, "s", 16) == messages
    with pytest.raises(RequestPayloadTooLargeException):
        client.append_message("s", bytes(3000))


def test_a_full_stream_can_drop_what_is_old(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="s", max_size=8192, strategy_on_full=OVERWRITE))
    for i in range(300):
        client.append_message("s", b"%03d" % i + bytes(100))
    status = client.describe_message_stream("s").storage_status
    assert status.newest_sequence_number == 299
    assert 4096 < status.total_bytes <= 8192
    assert 200 < status.oldest_sequence_number < 299
    [oldest] = payloads(client, "s", 1, start=0)  # reading from before the beginning starts at the beginning
    assert oldest[:3] == b"%03d" % status.oldest_sequence_number


@pytest.mark.parametrize("segment", [1024, 16 * 1024 * 1024])
def test_messages_survive_a_restart(manager: Manager, segment: int) -> None:
    client = manager.client()
    definition = MessageStreamDefinition(
        name="s", stream_segment_size=segment, strategy_on_full=REJECT, flush_on_write=True
    )
    client.create_message_stream(definition)
    for i in range(50):
        client.append_message("s", b"%d" % i * 10)
    manager.restart()
    again = manager.client()
    assert payloads(again, "s", 50) == [b"%d" % i * 10 for i in range(50)]
    assert again.append_message("s", b"next") == 50


def test_a_stream_in_memory_is_empty_after_a_restart(manager: Manager) -> None:
    client = manager.client()
    client.create_message_stream(
        MessageStreamDefinition(name="s", strategy_on_full=REJECT, persistence=Persistence.Memory)
    )
    client.append_message("s", b"x")
    manager.restart()
    with pytest.raises(NotEnoughMessagesException):
        manager.client().read_messages("s")


def test_a_record_torn_by_a_power_cut_is_cut_off(manager: Manager, tmp_path: Path) -> None:
    client = manager.client()
    client.create_message_stream(MessageStreamDefinition(name="s", strategy_on_full=REJECT))
    for i in range(3):
        client.append_message("s", b"%d" % i)
    manager.stop()
    [segment] = (tmp_path / "streams").glob("*/*.segment")
    segment.write_bytes(segment.read_bytes()[:-1])
    manager.start()
    again = manager.client()
    assert payloads(again, "s", 2) == [b"0", b"1"]
    assert again.append_message("s", b"2, again") == 2


def test_who_is_not_a_component_is_refused(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "stranger")
    with pytest.raises(ConnectFailedException):
        manager.client()


def test_noise_on_the_port_harms_nobody(manager: Manager, loop: Loop) -> None:
    async def send(noise: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
        writer.write(noise)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return answer

    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\xff\xff\xff\xff\x01", b"\x01\x00\x00\x00\x05\x01abcd", b"\x01"):
        loop.run(send(noise))
    assert manager.client().list_streams() == []


class Exports:
    """A stream that exports to a bucket, and the stream of its statuses."""

    def __init__(self, manager: Manager, aws: LocalAwsProcess, bucket: str, folder: Path) -> None:
        self.s3 = aws.client("s3")
        self.s3.create_bucket(Bucket=bucket)
        self.bucket = bucket
        self.folder = folder
        self.manager = manager
        manager.s3 = lambda: self.s3
        client = manager.client()
        client.create_message_stream(MessageStreamDefinition(name="status", strategy_on_full=OVERWRITE))
        export = S3ExportTaskExecutorConfig(
            identifier="e", status_config=StatusConfig(status_level=StatusLevel.INFO, status_stream_name="status")
        )
        client.create_message_stream(
            MessageStreamDefinition(
                name="tasks",
                strategy_on_full=REJECT,
                flush_on_write=True,
                export_definition=ExportDefinition(s3_task_executor=[export]),
            )
        )

    def append(self, name: str, content: bytes | None, *, key: str | None = None) -> None:
        path = self.folder / name
        if content is not None:
            path.write_bytes(content)
        task = S3ExportTaskDefinition(
            input_url=f"file://{path}", bucket=self.bucket, key=key or name, user_metadata={"round": "1"}
        )
        self.manager.client().append_message("tasks", Util.validate_and_serialize_to_json_bytes(task))

    def statuses(self, count: int) -> list[tuple[int, Status]]:
        """Wait for ``count`` final statuses and return them with their sequence numbers."""
        client, position = self.manager.client(), 0
        found: list[tuple[int, Status]] = []
        final = {Status.Success, Status.Failure, Status.Canceled}
        while len(found) < count:
            for message in client.read_messages("status", ReadMessagesOptions(position, 1, 100, 15_000)):
                position = message.sequence_number + 1
                status = Util.deserialize_json_bytes_to_obj(message.payload, StatusMessage)
                if status.status in final:
                    found.append((status.status_context.sequence_number, status.status))
        return found


@pytest.fixture
def exports(manager: Manager, local_aws: LocalAwsProcess, unique: str, tmp_path: Path) -> Exports:
    return Exports(manager, local_aws, unique, tmp_path)


def test_files_are_uploaded_in_order_and_their_success_is_told(exports: Exports) -> None:
    for i in range(5):
        exports.append(f"file-{i}", b"%d" % i * 1000)
    assert exports.statuses(5) == [(i, Status.Success) for i in range(5)]
    answer = exports.s3.get_object(Bucket=exports.bucket, Key="file-3")
    assert (answer["Body"].read(), answer["Metadata"]) == (b"3" * 1000, {"round": "1"})
    [progress] = exports.manager.client().describe_message_stream("tasks").export_statuses
    assert (progress.export_config_identifier, progress.last_exported_sequence_number) == ("e", 4)


def test_a_large_file_goes_up_in_parts(exports: Exports) -> None:
    content = bytes(12 * 1024 * 1024)
    exports.append("large", content)
    assert exports.statuses(1) == [(0, Status.Success)]
    head = exports.s3.head_object(Bucket=exports.bucket, Key="large")
    assert head["ContentLength"] == len(content)
    assert "-" in head["ETag"]  # the mark of a multipart upload


def test_a_task_that_cannot_succeed_fails_and_the_next_goes_on(exports: Exports) -> None:
    exports.append("missing", None)
    exports.manager.client().append_message("tasks", b"no JSON")
    exports.append("good", b"x")
    assert exports.statuses(3)[0] == (0, Status.Failure)
    assert exports.statuses(3)[2] == (2, Status.Success)


def test_a_refusal_by_s3_is_final(exports: Exports) -> None:
    exports.bucket, bucket = exports.bucket + "-none", exports.bucket
    exports.append("file", b"x")
    assert exports.statuses(1) == [(0, Status.Failure)]
    exports.bucket = bucket


def test_an_upload_waits_for_the_network_to_come_back(exports: Exports) -> None:
    unreachable = _unreachable_s3()
    attempts = iter([unreachable, unreachable, exports.s3])
    exports.manager.s3 = lambda: next(attempts)
    exports.append("file", b"x")
    assert exports.statuses(1) == [(0, Status.Success)]
    assert next(attempts, None) is None


def test_tasks_that_were_waiting_are_done_after_a_restart_and_no_others(exports: Exports) -> None:
    exports.append("done", b"x")
    exports.statuses(1)
    exports.manager.s3 = _unreachable_s3
    exports.append("waiting", b"y")
    exports.manager.stop()
    exports.s3.delete_object(Bucket=exports.bucket, Key="done")
    exports.manager.s3 = lambda: exports.s3
    exports.manager.start()
    assert exports.statuses(2) == [(0, Status.Success), (1, Status.Success)]
    keys = [item["Key"] for item in exports.s3.list_objects_v2(Bucket=exports.bucket)["Contents"]]
    assert keys == ["waiting"]  # the task that was done was not done again


def _unreachable_s3() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",  # the discard port: nobody listens
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )

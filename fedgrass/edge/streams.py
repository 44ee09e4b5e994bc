"""Stream Manager in the shape that uploads use it: the only module that imports the ``stream-manager`` SDK.

One stream of S3 tasks and one of their statuses. The task stream refuses when full and never drops; both lie on disk.
https://docs.aws.amazon.com/greengrass/v2/developerguide/stream-export-configurations.html#export-to-s3
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from stream_manager import (
    ExportDefinition,
    InvalidRequestException,
    MessageStreamDefinition,
    NotEnoughMessagesException,
    Persistence,
    ReadMessagesOptions,
    ResourceNotFoundException,
    S3ExportTaskDefinition,
    S3ExportTaskExecutorConfig,
    Status,
    StatusConfig,
    StatusLevel,
    StatusMessage,
    StrategyOnFull,
    StreamManagerClient,
    StreamManagerException,
    Util,
)

from fedgrass.errors import TransferError

if TYPE_CHECKING:
    from stream_manager.data import Message, MessageStreamInfo

TASKS = "fedgrass-updates"
STATUSES = "fedgrass-updates-status"

# Some 40,000 tasks. Stream Manager keeps them after their export, and the stream is made again at half of it
# (decisions/0019).
_TASKS_BYTES = 8 << 20
_STATUSES_BYTES = 4 << 20
# Several to a stream: what is overwritten goes by whole segments.
_SEGMENT_BYTES = 1 << 20
# The SDK's default is 60 s, during which the component could not be stopped.
_REQUEST_SECONDS = 10
# Messages in one read.
_AT_ONCE = 100


@dataclass(frozen=True)
class Task:
    """A file to upload."""

    file: Path
    bucket: str
    key: str


@dataclass(frozen=True)
class TaskStatus:
    """The end of a task: ``position`` is its place in the status stream, ``sequence`` the task's in the task stream."""

    position: int
    sequence: int
    key: str
    outcome: Literal["success", "failure"]
    message: str


@dataclass(frozen=True)
class Extent:
    """How far the streams have come; -1 is before the first message. ``fill`` is the share of the task stream in use."""

    newest_task: int
    exported_task: int
    newest_status: int
    fill: float = 0.0


class Streams(Protocol):
    """What `fedgrass.edge.uploads` needs; every method raises `TransferError` if Stream Manager is away or refuses."""

    def extent(self) -> Extent:
        """Say how far the streams have come."""
        ...

    def append(self, task: Task) -> int:
        """Queue a task; returns its sequence number."""
        ...

    def find(self, task: Task, after: int) -> int | None:
        """Return the sequence number of this task among those queued after number ``after``."""
        ...

    def ended(self, start: int, wait: float) -> tuple[list[TaskStatus], int]:
        """Return the tasks that ended, from position ``start`` of the statuses, and where to read on.

        Waits up to ``wait`` seconds for the first.
        """
        ...

    def clear(self) -> None:
        """Make both streams again; whatever they held is gone."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class StreamManagerStreams:
    """`Streams` over the SDK; connecting makes the streams if need be, the status stream first.

    Parameters
    ----------
    tasks_bytes
        Size of the task stream when it is made.

    Raises
    ------
    TransferError
        If Stream Manager cannot be reached.
    """

    def __init__(self, *, tasks_bytes: int = _TASKS_BYTES) -> None:
        self._tasks_bytes = tasks_bytes
        self._client: StreamManagerClient = StreamManagerClient.__new__(StreamManagerClient)
        try:
            # The SDK connects in its constructor and leaves a thread behind if that fails: the object is made first, so that it
            # can be closed.
            with _translated("connect"):
                self._client.__init__(request_timeout=_REQUEST_SECONDS)
                self._create()
        except TransferError:
            self.close()
            raise

    def extent(self) -> Extent:
        """See `Streams`."""
        with _translated("describe the streams"):
            tasks = self._client.describe_message_stream(TASKS)
            # The tasks are described first: the other way round, one that ends in between would look as if its status
            # had been lost.
            statuses = self._client.describe_message_stream(STATUSES)
        exported = [s.last_exported_sequence_number for s in tasks.export_statuses or []]
        return Extent(
            newest_task=_newest(tasks),
            exported_task=_number(exported[0] if exported else None),
            newest_status=_newest(statuses),
            # Messages stay after their export: the stream fills up although all is done (decisions/0019).
            fill=_number(tasks.storage_status.total_bytes) / tasks.definition.max_size,
        )

    def append(self, task: Task) -> int:
        """See `Streams`."""
        with _translated("append a task"):
            return int(self._client.append_message(TASKS, _encoded(task)))

    def find(self, task: Task, after: int) -> int | None:
        """See `Streams`."""
        start = after + 1
        while True:
            # Stream Manager may have taken a task although its answer was lost: it is looked for before it is sent again.
            messages = self._read(TASKS, start, wait=0)
            for message in messages:
                if message.sequence_number >= start and message.payload == _encoded(task):
                    return int(message.sequence_number)
            if not messages:
                return None
            start = messages[-1].sequence_number + 1

    def ended(self, start: int, wait: float) -> tuple[list[TaskStatus], int]:
        """See `Streams`."""
        # A read with a time-out rather than a poll: Stream Manager answers the moment a status is written.
        messages = self._read(STATUSES, start, wait=wait)
        found = [status for message in messages if (status := _status(message)) is not None]
        return found, messages[-1].sequence_number + 1 if messages else start

    def clear(self) -> None:
        """See `Streams`."""
        with _translated("make the streams again"):
            for name in (TASKS, STATUSES):
                with contextlib.suppress(ResourceNotFoundException):
                    self._client.delete_message_stream(name)
            self._create()

    def close(self) -> None:
        """See `Streams`."""
        broken = (OSError, RuntimeError, asyncio.TimeoutError, StreamManagerException)
        try:
            self._client.close()
        except broken:
            # Closing a broken connection fails before it stops the SDK's thread; the second call does just that.
            with contextlib.suppress(*broken):
                self._client.close()

    def _create(self) -> None:
        present = set(self._client.list_streams())
        # The status stream comes first: the task stream's export names it.
        for definition in _definitions(self._tasks_bytes):
            if definition.name not in present:
                with contextlib.suppress(InvalidRequestException):  # another process was first
                    self._client.create_message_stream(definition)

    def _read(self, stream: str, start: int, *, wait: float) -> list[Message]:
        options = ReadMessagesOptions(
            # Stream Manager numbers messages from 0.
            desired_start_sequence_number=max(start, 0),
            min_message_count=1,
            max_message_count=_AT_ONCE,
            read_timeout_millis=int(wait * 1000),
        )
        with _translated(f"read {stream}"):
            try:
                return list(self._client.read_messages(stream, options))
            # Its way to say that the time-out passed without a message.
            except NotEnoughMessagesException:
                return []


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except (StreamManagerException, OSError, EOFError, RuntimeError, asyncio.TimeoutError) as error:
        raise TransferError(f"Stream Manager: cannot {action} ({type(error).__name__}: {error})") from error


def _definitions(tasks_bytes: int) -> tuple[MessageStreamDefinition, MessageStreamDefinition]:
    statuses = MessageStreamDefinition(
        name=STATUSES,
        max_size=_STATUSES_BYTES,
        stream_segment_size=_SEGMENT_BYTES,
        # One that is overwritten costs an upload more; a stream of them that refused would stop all.
        strategy_on_full=StrategyOnFull.OverwriteOldestData,
        persistence=Persistence.File,
        # To the disk itself: a device's power may be cut at any time.
        flush_on_write=True,
    )
    export = S3ExportTaskExecutorConfig(
        identifier="fedgrass", status_config=StatusConfig(status_level=StatusLevel.INFO, status_stream_name=STATUSES)
    )
    tasks = MessageStreamDefinition(
        name=TASKS,
        max_size=tasks_bytes,
        stream_segment_size=_SEGMENT_BYTES,
        # A task that was accepted must not vanish.
        strategy_on_full=StrategyOnFull.RejectNewData,
        persistence=Persistence.File,
        flush_on_write=True,
        export_definition=ExportDefinition(s3_task_executor=[export]),
    )
    return statuses, tasks


def _encoded(task: Task) -> bytes:
    definition = S3ExportTaskDefinition(input_url=task.file.absolute().as_uri(), bucket=task.bucket, key=task.key)
    encoded: bytes = Util.validate_and_serialize_to_json_bytes(definition)
    return encoded


def _status(message: Message) -> TaskStatus | None:
    """Take a status message apart; None for one that does not end a task, or cannot be read."""
    try:
        status = Util.deserialize_json_bytes_to_obj(message.payload, StatusMessage)
        context = status.status_context
        # Warnings and progress come on the same stream.
        if status.status not in (Status.Success, Status.Failure, Status.Canceled) or context is None:
            return None
        return TaskStatus(
            position=message.sequence_number,
            sequence=context.sequence_number,
            key=context.s3_export_task_definition.key,
            outcome="success" if status.status is Status.Success else "failure",
            message=(status.message or "")[:300],
        )
    except (ValueError, AttributeError, TypeError, KeyError):
        return None


def _newest(info: MessageStreamInfo) -> int:
    return _number(info.storage_status.newest_sequence_number)


def _number(value: int | None) -> int:
    # An empty stream has no newest message; -1 is then one before the first.
    return -1 if value is None else int(value)

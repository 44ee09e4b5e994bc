"""Stream Manager's TCP server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from fedgrass.errors import MessageError
from fedgrass.local.core_device.stream_manager import wire
from fedgrass.local.core_device.stream_manager.definition import StreamDefinition
from fedgrass.local.core_device.stream_manager.segments import Record
from fedgrass.local.core_device.stream_manager.store import StreamStore
from fedgrass.local.core_device.stream_manager.wire import Operation, Status, StreamError
from fedgrass.logs import log_event

_SERVER_VERSION = "1.1.0"

Payload = dict[str, Any]
Authenticate = Callable[[str], Awaitable[bool]]


class _Request(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _ReadOptions(_Request):
    desired_start_sequence_number: int = Field(0, ge=0)
    min_message_count: int = Field(1, ge=1)
    max_message_count: int = Field(1, ge=1)
    read_timeout_millis: int = Field(0, ge=0)


class _Read(_Request):
    stream_name: str
    read_messages_options: _ReadOptions | None = None


class _Named(_Request):
    name: str


class _Append(_Named):
    payload: bytes = Field(min_length=1)


class _Defined(_Request):
    definition: StreamDefinition


class StreamManagerServer:
    """Serves the streams of ``store`` to clients whose token ``authenticate`` accepts."""

    def __init__(self, store: StreamStore, authenticate: Authenticate) -> None:
        self._store = store
        self._authenticate = authenticate
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._handlers: dict[int, tuple[Operation, Callable[[Payload], Awaitable[Payload]]]] = {
            Operation.CREATE: (Operation.CREATE_RESPONSE, self._create),
            Operation.DELETE: (Operation.DELETE_RESPONSE, self._delete),
            Operation.APPEND: (Operation.APPEND_RESPONSE, self._append),
            Operation.READ: (Operation.READ_RESPONSE, self._read),
            Operation.LIST: (Operation.LIST_RESPONSE, self._list),
            Operation.DESCRIBE: (Operation.DESCRIBE_RESPONSE, self._describe),
            Operation.UPDATE: (Operation.UPDATE_RESPONSE, self._update),
        }

    async def start(self, port: int) -> int:
        """Listen on loopback and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop the connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        calls: set[asyncio.Task[None]] = set()
        if task is not None:
            self._connections[task] = writer
        try:
            if await self._connect(reader, writer):
                while (frame := await wire.read(reader)) is not None:
                    # Each in a task of its own: a read may wait for messages that a later append brings.
                    call = asyncio.get_running_loop().create_task(self._answer(writer, *frame))
                    calls.add(call)
                    call.add_done_callback(calls.discard)
        except MessageError as error:
            log_event("stream_manager_protocol_error", error=str(error))
        finally:
            for call in calls:
                call.cancel()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            if task is not None:
                self._connections.pop(task, None)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            if await reader.readexactly(1) != wire.CONNECT_VERSION:
                raise MessageError("Stream Manager: the client's first byte is not the connect version 1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        frame = await wire.read(reader)
        if frame is None:
            return False
        operation, request = frame
        if operation != Operation.CONNECT:
            raise MessageError(f"Stream Manager: expected a connect request, found opcode {operation}")
        accepted = await self._authenticate(str(request.get("authToken") or ""))
        response = {
            "requestId": request.get("requestId"),
            "status": Status.SUCCESS if accepted else Status.UNAUTHORIZED,
            "protocolVersion": wire.PROTOCOL_VERSION,
            "supportedProtocolVersions": [wire.PROTOCOL_VERSION],
            "serverVersion": _SERVER_VERSION,
        }
        writer.write(wire.CONNECT_VERSION + wire.encode(Operation.CONNECT_RESPONSE, response))
        return accepted

    async def _answer(self, writer: asyncio.StreamWriter, operation: int, request: Payload) -> None:
        response: Payload = {"requestId": request.get("requestId"), "status": Status.SUCCESS}
        kind, handle = self._handlers.get(operation, (Operation.UNKNOWN_RESPONSE, self._unknown))
        try:
            response |= await handle(request)
        except StreamError as error:
            response |= {"status": error.status, "errorMessage": str(error)}
        except ValidationError as error:
            response |= {"status": Status.INVALID_REQUEST, "errorMessage": str(error)}
        except OSError as error:
            response |= {"status": Status.UNKNOWN_FAILURE, "errorMessage": f"the store failed: {error}"}
        if response["status"] != Status.SUCCESS:
            log_event("stream_request_refused", operation=kind.name, error=response["errorMessage"])
        if not writer.is_closing():
            writer.write(wire.encode(kind, response))

    async def _create(self, request: Payload) -> Payload:
        self._store.create(_Defined.model_validate(request).definition)
        return {}

    async def _update(self, request: Payload) -> Payload:
        await self._store.update(_Defined.model_validate(request).definition)
        return {}

    async def _delete(self, request: Payload) -> Payload:
        await self._store.delete(_Named.model_validate(request).name)
        return {}

    async def _append(self, request: Payload) -> Payload:
        append = _Append.model_validate(request)
        return {"sequenceNumber": self._store.get(append.name).append(append.payload)}

    async def _list(self, request: Payload) -> Payload:
        del request
        return {"streams": self._store.names()}

    async def _describe(self, request: Payload) -> Payload:
        return {"messageStreamInfo": self._store.get(_Named.model_validate(request).name).describe()}

    async def _unknown(self, request: Payload) -> Payload:
        del request
        raise StreamError(Status.UNKNOWN_OPERATION, "the operation is not known to this server")

    async def _read(self, request: Payload) -> Payload:
        read = _Read.model_validate(request)
        options = read.read_messages_options or _ReadOptions.model_validate({})
        if options.min_message_count > options.max_message_count:
            raise StreamError(Status.INVALID_REQUEST, "minMessageCount is larger than maxMessageCount")
        # The SDK's timeouts are milliseconds.
        deadline = asyncio.get_running_loop().time() + options.read_timeout_millis / 1000
        while True:
            stream = self._store.get(read.stream_name)
            appended = stream.appended
            records = stream.read(options.desired_start_sequence_number, options.max_message_count)
            if len(records) >= options.min_message_count:
                return {"messages": [_message(stream.name, record) for record in records]}
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(appended.wait(), remaining)
            except asyncio.TimeoutError as error:
                found, wanted = len(records), options.min_message_count
                raise StreamError(
                    Status.NOT_ENOUGH_MESSAGES, f"stream {stream.name}: {found} messages, {wanted} wanted"
                ) from error


def _message(stream: str, record: Record) -> Payload:
    return {
        "streamName": stream,
        "sequenceNumber": record.sequence,
        "ingestTime": record.ingest_time,
        "payload": record.payload,
    }

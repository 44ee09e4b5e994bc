"""The event-stream RPC server: connections, their handshake, and the streams that operations run on.

Source: the ``awsiot.eventstreamrpc`` client and aws-c-event-stream's RPC headers. Payloads are JSON; a stream is one
call, and stays open after its response only if the operation streams events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from fedgrass.errors import MessageError
from fedgrass.local.core_device.ipc import frames
from fedgrass.local.core_device.ipc.errors import IpcError, ServiceError
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.logs import log_event

Payload = dict[str, Any]
Handler = Callable[["Stream", Payload], Awaitable[Payload]]
Authenticate = Callable[[str], str | None]

_NAMESPACE = "aws.greengrass#"
_ACCEPTED, _TERMINATE = 1, 2
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
# For one connection: a component that does not read must not fill the device's memory.
_MAX_UNSENT_BYTES = 32 * 1024 * 1024


class MessageType(IntEnum):
    """Values of the ``:message-type`` header."""

    APPLICATION_MESSAGE = 0
    APPLICATION_ERROR = 1
    PING = 2
    PING_RESPONSE = 3
    CONNECT = 4
    CONNECT_ACK = 5
    PROTOCOL_ERROR = 6
    INTERNAL_ERROR = 7


@dataclass(frozen=True)
class Operation:
    """How a named operation is answered; ``events`` is the shape of what it streams, if it streams."""

    handle: Handler
    events: str | None = None


@dataclass
class Stream:
    """One call of a component, open until either side ends it."""

    connection: Connection
    number: int
    operation: str
    events: str | None = None
    on_close: list[Callable[[], None]] = field(default_factory=list)
    _answered: bool = False
    _held: list[Payload] = field(default_factory=list)

    @property
    def component(self) -> str:
        """Name of the component that made the call."""
        return self.connection.component

    def send(self, payload: Payload) -> None:
        """Stream an event; those that precede the response are held until it is sent."""
        if not self._answered:
            self._held.append(payload)
        elif self.events is not None:
            self.connection.send_application(self.number, self.events, payload)

    def answer(self, payload: Payload) -> None:
        """Send the response, and end the stream unless it has events to come."""
        # A call without events is over with its response.
        flags = 0 if self.events else _TERMINATE
        self.connection.send_application(self.number, f"{self.operation}Response", payload, flags=flags)
        self._answered = True
        held, self._held = self._held, []
        for earlier in held:
            self.send(earlier)

    def fail(self, error: IpcError) -> None:
        """Answer with an error, which ends the stream."""
        self.connection.send_application(
            self.number,
            error.shape,
            error.payload(with_text=self.connection.error_texts),
            kind=MessageType.APPLICATION_ERROR,
            flags=_TERMINATE,
        )

    def closed(self) -> None:
        """Undo what the operation registered."""
        # Emptied first: a stream that is closed twice is undone once.
        callbacks, self.on_close = self.on_close, []
        for callback in callbacks:
            callback()


class Connection:
    """One component's connection."""

    def __init__(self, server: IpcServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.component = ""
        self._server = server
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, Stream] = {}
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def error_texts(self) -> bool:
        """Whether errors say why."""
        return self._server.nucleus.error_texts

    async def serve(self) -> None:
        """Read messages until the peer goes away or breaks the protocol."""
        try:
            while (message := await frames.read(self._reader)) is not None:
                if self._too_large(message) or not self._receive(message):
                    break
        except MessageError as error:
            log_event("ipc_protocol_error", component=self.component, error=str(error))
            self._send(_headers(MessageType.PROTOCOL_ERROR))
        finally:
            for call in self._calls:
                call.cancel()
            for stream in list(self._streams.values()):
                stream.closed()
            self._streams.clear()
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    def send_application(
        self,
        stream: int,
        shape: str,
        payload: Payload,
        *,
        kind: MessageType = MessageType.APPLICATION_MESSAGE,
        flags: int = 0,
    ) -> None:
        """Send a modelled shape on a stream; one that has ended is not an error.

        Parameters
        ----------
        stream
            The stream's number.
        shape
            Name of the shape in the IPC model.
        payload
            The shape's members, sent as JSON.
        kind
            Message or error.
        flags
            Of the event stream's message: whether it ends the stream.
        """
        # Events of a subscription may still be on their way when its stream ends.
        if stream not in self._streams:
            return
        headers = _headers(kind, flags, stream)
        headers |= {":content-type": "application/json", "service-model-type": _NAMESPACE + shape}
        self._send(headers, json.dumps(payload).encode())
        if flags & _TERMINATE:
            self._streams.pop(stream).closed()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()

    def _too_large(self, message: frames.Message) -> bool:
        limit, size = self._server.nucleus.max_request, len(message.payload)
        if limit is None or size <= limit:
            return False
        log_event("ipc_request_too_large", component=self.component, bytes=size)
        return True

    def _receive(self, message: frames.Message) -> bool:
        kind = message.headers.get(":message-type")
        # Nothing but CONNECT is taken from a peer whose token has not been seen.
        if not self.component:
            if kind != MessageType.CONNECT:
                return False
            return self._connect(message)  # a client that is refused closes the connection itself
        if kind == MessageType.PING:
            self._send(_headers(MessageType.PING_RESPONSE), message.payload)
        elif kind == MessageType.APPLICATION_MESSAGE:
            self._application(message)
        elif kind != MessageType.PING_RESPONSE:
            raise MessageError(f"IPC message of type {kind!r} is not expected from a component")
        return True

    def _connect(self, message: frames.Message) -> bool:
        try:
            token = json.loads(message.payload).get("authToken")
        except (ValueError, AttributeError):
            token = None
        self.component = (self._server.authenticate(token) if isinstance(token, str) else None) or ""
        headers = _headers(MessageType.CONNECT_ACK, _ACCEPTED if self.component else 0)
        if not self.component and self._server.nucleus.names_renew_tokens:
            headers |= self._by_name(message.payload)
        log_event("ipc_connected" if self.component else "ipc_connection_refused", component=self.component)
        if not self.component and not self._server.nucleus.answers_void_tokens:
            return False
        self._send(headers)
        return True

    def _by_name(self, payload: bytes) -> dict[str, frames.HeaderValue]:
        """Let a process in by the name of its component, which it is looked up for, and give it a token."""
        try:
            name = json.loads(payload).get("componentName")
        except (ValueError, AttributeError):
            return {}
        peer = self._writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        # The kernel's word for who is at the other end: nothing that the peer sends could forge it.
        token = self._server.token_of(name, _CREDENTIALS.unpack(peer)[0]) if isinstance(name, str) else None
        if token is None:
            return {}
        self.component = name
        return {":message-flags": _ACCEPTED, "svcuid": token}

    def _application(self, message: frames.Message) -> None:
        number, flags = message.headers.get(":stream-id"), message.headers.get(":message-flags", 0)
        if not isinstance(number, int) or number <= 0 or not isinstance(flags, int):
            raise MessageError(f"IPC message: expected a positive stream id, found {number!r}")
        stream = self._streams.get(number)
        if stream is not None:
            if flags & _TERMINATE:  # the client closes a subscription; it waits for the same from us
                self._send(_headers(MessageType.APPLICATION_MESSAGE, _TERMINATE, number))
                self._streams.pop(number).closed()
            return
        name = str(message.headers.get("operation", "")).removeprefix(_NAMESPACE)
        if not name:
            return  # a late message on a stream that this side has ended
        self._open(number, name, message.payload)

    def _open(self, number: int, name: str, payload: bytes) -> None:
        operation = self._server.operations.get(name)
        stream = Stream(self, number, name, operation.events if operation else None)
        # Registered before it is answered: a refusal travels on the stream as well.
        self._streams[number] = stream
        if operation is None:
            log_event("ipc_operation_unsupported", component=self.component, operation=name)
            stream.fail(ServiceError(f"Operation {_NAMESPACE}{name} is not supported by this device"))
            return
        call = asyncio.get_running_loop().create_task(self._call(stream, operation.handle, payload))
        self._calls.add(call)
        call.add_done_callback(lambda done: self._called(stream, done))

    async def _call(self, stream: Stream, handle: Handler, payload: bytes) -> None:
        try:
            request = json.loads(payload)
            if not isinstance(request, dict):
                raise MessageError(f"IPC {stream.operation}: expected a JSON object, found {type(request).__name__}")
            stream.answer(await handle(stream, request))
        except IpcError as error:
            log_event(
                "ipc_refused",
                component=self.component,
                operation=stream.operation,
                error=error.shape,
                message=str(error),
            )
            stream.fail(error)
        except (ValueError, MessageError) as error:
            stream.fail(ServiceError(f"{stream.operation}: {error}"))

    def _called(self, stream: Stream, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            log_event("ipc_handler_crashed", operation=stream.operation, error=error)
            stream.fail(ServiceError(f"{stream.operation} failed inside the device: {error!r}"))

    def _send(self, headers: Mapping[str, frames.HeaderValue], payload: bytes = b"") -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            log_event("ipc_consumer_slow", component=self.component)
            self.abort()
            return
        self._writer.write(frames.encode(frames.Message(headers, payload)))


def _headers(kind: MessageType, flags: int = 0, stream: int = 0) -> dict[str, frames.HeaderValue]:
    return {":message-type": kind, ":message-flags": flags, ":stream-id": stream}


class IpcServer:
    """Serves ``operations``, save those that the nucleus lacks, on a Unix socket to components that hold a token.

    ``token_of`` gives one to the process of a component, by the component's name and the process's id, or none.
    """

    def __init__(
        self,
        path: Path,
        authenticate: Authenticate,
        operations: Mapping[str, Operation],
        nucleus: Nucleus = CLASSIC,
        token_of: Callable[[str, int], str | None] = lambda _component, _pid: None,
    ) -> None:
        self.token_of = token_of
        self.path = path
        self.authenticate = authenticate
        self.operations = {name: one for name, one in operations.items() if name not in nucleus.unsupported}
        self.nucleus = nucleus
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[None] | None] = {}

    async def start(self) -> None:
        """Listen; a socket file that a killed device left behind is replaced."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is None:
            return
        self._server.close()
        tasks = [task for task in self._connections.values() if task is not None]
        for connection in list(self._connections):
            # Aborted, not closed: closing waits for a peer that may not read any more.
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections[connection] = asyncio.current_task()
        try:
            await connection.serve()
        finally:
            self._connections.pop(connection, None)

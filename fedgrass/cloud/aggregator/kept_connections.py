"""Connections to one endpoint that are kept, and the answers that come on them, read from the socket itself."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any

from urllib3.util.wait import wait_for_read

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ERROR_BYTES = 4096


class Connections:
    """Connections to one endpoint; those that are free wait for the next request."""

    def __init__(self, host: str, context: ssl.SSLContext | None, config: Any) -> None:
        self._host = host
        self._context = context
        self._connect_seconds: float = config.connect_timeout
        self._read_seconds: float = config.read_timeout
        # The newest first: those that nobody needs any more are closed by the server.
        self._free: deque[HTTPConnection] = deque(maxlen=config.max_pool_connections)

    def send(self, path: str, headers: Mapping[str, str]) -> Exchange:
        """Send a request; raises `OSError` or `HTTPException`."""
        while (kept := self._kept()) is not None:
            with suppress(OSError, HTTPException):  # closed while it rested
                return self._sent(kept, path, headers, is_reused=True)
        return self._sent(self._new(), path, headers, is_reused=False)

    def _sent(self, connection: HTTPConnection, path: str, headers: Mapping[str, str], *, is_reused: bool) -> Exchange:
        try:
            connection.request("GET", path, headers=headers)
        except BaseException:
            connection.close()
            raise
        return Exchange(connection, self._free, is_reused=is_reused)

    def _kept(self) -> HTTPConnection | None:
        while self._free:
            try:
                connection = self._free.pop()
            except IndexError:  # another thread was quicker
                return None
            # Readable without a question asked: the server's good-bye.
            if not wait_for_read(connection.sock, timeout=0.0):
                return connection
            connection.close()
        return None

    def _new(self) -> HTTPConnection:
        if self._context is None:
            connection = HTTPConnection(self._host, timeout=self._connect_seconds)
        else:
            connection = HTTPSConnection(self._host, timeout=self._connect_seconds, context=self._context)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(self._read_seconds)
        return connection


class Exchange:
    """A request that was sent, and whose answer may be under way."""

    def __init__(self, connection: HTTPConnection, free: deque[HTTPConnection], *, is_reused: bool) -> None:
        self._connection = connection
        self._free = free
        self.is_reused = is_reused

    def answer(self) -> SignedAnswer:
        """Wait for the answer's head; raises `OSError` or `HTTPException`."""
        try:
            return SignedAnswer(self._connection.getresponse(), self._connection, self._free)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Give the answer up."""
        self._connection.close()


class SignedAnswer:
    """The answer to a request: its head, and its body to be read."""

    def __init__(self, response: HTTPResponse, connection: HTTPConnection, free: deque[HTTPConnection]) -> None:
        self._response = response
        self._connection = connection
        self._free = free
        self._left = response.length or 0
        self._is_buffered = True
        self._refusal: bytes | None = None
        self.status = response.status
        # Unparsed: what mail makes of headers takes longer than to sign.
        self.headers = {name.lower(): value for name, value in response.headers.raw_items()}

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer from the body; less at its end, and where it broke off: 0 if there is nothing."""
        view = memoryview(buffer)[: self._left]
        filled = self._from_buffer(view) if self._is_buffered and self._left else 0
        # From the socket itself: records of TLS are small, and http.client's layers take longer for each than to decrypt it.
        sock: Any = self._connection.sock
        # Of an answer after which the server closes, http.client has let go of the socket already, and the answer alone holds it.
        receive = self._response.fp.readinto if sock is None else sock.recv_into
        try:
            while filled < len(view) and (count := receive(view[filled:])):
                filled += count
        except OSError:
            if not filled:
                raise
        self._left -= filled
        return filled

    def _from_buffer(self, view: memoryview) -> int:
        """Take what came along with the head."""
        held = len(self._response.fp.peek())
        count = self._response.fp.readinto(view[:held])
        self._is_buffered = count < held
        return count

    @property
    def is_plain(self) -> bool:
        """Whether the body is what was asked for."""
        return self.status in (200, 206)

    def refusal(self) -> bytes:
        """Return the beginning of the body of an answer that is an error, and close it."""
        if self._refusal is None:
            try:
                self._refusal = self._response.read(_ERROR_BYTES)
            except (OSError, HTTPException):
                self._refusal = b""
            self._left = self._response.length or 0
            self.close()
        return self._refusal

    def close(self) -> None:
        """Let go of the connection: for the next request if the body was read to its end."""
        is_whole = not self._left and not self._response.will_close and self._response.length is not None
        self._response.close()
        if is_whole and self._connection.sock is not None and len(self._free) != self._free.maxlen:
            self._free.append(self._connection)
        else:
            self._connection.close()

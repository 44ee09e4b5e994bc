"""A TCP proxy in front of the endpoint or the broker, which can be told to misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Literal

from tests.fixtures.waiting import PATIENCE

Mode = Literal["pass", "cut", "error", "throttle", "slow", "lose_answers"]

_ERRORS = {
    "error": (b"500 Internal Server Error", b"InternalError"),
    "throttle": (b"503 Slow Down", b"SlowDown"),
}
_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
_SLOW_SECONDS = 0.3


class Proxy:
    """Forwards a free loopback port to ``target``.

    ``mode`` may change at any time: ``cut`` breaks what is open and refuses the rest; ``error`` and ``throttle`` answer
    HTTP requests as S3 does in trouble; ``slow`` holds each piece back; ``lose_answers`` breaks a connection when the
    answer comes, so that what was asked has happened unseen.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True).start()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "cut":
            self._break_all()

    def close(self) -> None:
        self._mode = "cut"
        self._server.close()
        self._break_all()

    def _break_all(self) -> None:
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._mode == "cut":
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=PATIENCE)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        upward = threading.Thread(target=self._pump, args=(client, server, True), daemon=True)
        upward.start()
        self._pump(server, client, False)
        upward.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                mode = self._mode
                if mode == "slow":
                    time.sleep(_SLOW_SECONDS)
                elif mode == "lose_answers" and not upward:
                    break
                elif mode in _ERRORS and upward and block.startswith(_METHODS):
                    status, code = _ERRORS[mode]
                    body = b"<Error><Code>" + code + b"</Code><Message>injected</Message></Error>"
                    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                    source.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                    break
                sink.sendall(block)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

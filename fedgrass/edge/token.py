"""A component's token (SVCUID): its identity towards IPC, the credentials service and Stream Manager.

The nucleus puts one into each process's environment. Nucleus lite forgets them all when its IPC daemon restarts, and then
closes every connection that is made with one, without an answer. To a component that says its name instead it gives a new
one, having looked up the systemd unit that the process runs in. Source: ``gg_ipc_connect_by_name`` of the component SDK,
``ggipcd``. The classic nucleus does not do this; its components end and start with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from awscrt.eventstream import Header
from awscrt.eventstream.rpc import ClientConnection, ClientConnectionHandler, MessageType
from awscrt.exceptions import AwsCrtError
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup, SocketDomain, SocketOptions

_SOCKET = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
_TOKEN = "SVCUID"  # noqa: S105 - the variable's name
_CREDENTIALS = "AWS_CONTAINER_AUTHORIZATION_TOKEN"


def renew(component: str, timeout: float) -> bool:
    """Ask the nucleus for a new token and put it into the environment; returns whether there is one.

    Parameters
    ----------
    component
        The name of the component that this process belongs to.
    timeout
        Seconds.
    """
    handler = _Asking(component)
    socket_options = SocketOptions()
    socket_options.domain = SocketDomain.Local
    # A connection of its own, below the SDK's client, which can only connect with a token.
    group = EventLoopGroup(num_threads=1)
    try:
        ClientConnection.connect(
            handler=handler,
            host_name=os.environ[_SOCKET],
            port=0,
            bootstrap=ClientBootstrap(group, DefaultHostResolver(group)),
            socket_options=socket_options,
        ).result(timeout)
        token = handler.answer.result(timeout)
    except (KeyError, RuntimeError, AwsCrtError, FutureTimeoutError):
        return False
    finally:
        handler.close()
    if not token:
        return False
    # Into the environment, since that is where the IPC SDK, boto3 and Stream Manager's SDK look for it.
    former, os.environ[_TOKEN] = os.environ.get(_TOKEN), token
    # Lite uses one token for IPC and credentials; a variable with another value was set by somebody on purpose.
    if os.environ.get(_CREDENTIALS) in (former, ""):
        os.environ[_CREDENTIALS] = token
    return True


class _Asking(ClientConnectionHandler):  # type: ignore[misc]
    def __init__(self, component: str) -> None:
        self._component = component
        self._connection: ClientConnection | None = None
        self.answer: Future[str] = Future()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def on_connection_setup(self, connection: ClientConnection, error: Exception | None, **_: object) -> None:
        if error is not None:
            self._answered("")
            return
        self._connection = connection
        connection.send_protocol_message(
            headers=[Header.from_string(":version", "0.1.0")],
            payload=json.dumps({"componentName": self._component}).encode(),
            message_type=MessageType.CONNECT,
        )

    def on_connection_shutdown(self, reason: Exception | None, **_: object) -> None:
        del reason
        self._answered("")

    def on_protocol_message(
        self, headers: Sequence[Header], payload: bytes, message_type: MessageType, flags: int, **_: object
    ) -> None:
        del payload, message_type, flags
        self._answered(next((str(header.value) for header in headers if header.name == "svcuid"), ""))

    def _answered(self, token: str) -> None:
        # The shutdown comes after the answer as well, and a future takes one result only.
        if not self.answer.done():
            self.answer.set_result(token)

"""The embedded MQTT broker: amqtt, with IoT Core's manners where the two differ."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from amqtt.broker import Broker
from amqtt.plugins.base import BaseAuthPlugin

from fedgrass.local.aws.topics import is_wildcard

LAYER_CLIENT = "local-aws-"
"""Client ids with this prefix are the local AWS itself; they alone see retained messages through wildcards."""

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 1.0


class TrustLoopback(BaseAuthPlugin):  # type: ignore[misc] # amqtt is not typed
    """Let every client in by name, so that persistent sessions are kept (amqtt's anonymous ones are not)."""

    async def authenticate(self, *, session: Any) -> bool:  # noqa: ARG002
        """Accept the client: the broker listens on loopback only."""
        return True


class IotCoreBroker(Broker):  # type: ignore[misc] # amqtt is not typed
    """amqtt that serves ``$aws/`` topics and delivers retained messages as IoT Core does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deliveries: set[asyncio.Task[None]] = set()

    async def _handle_message_delivery(self, client_session: Any, handler: Any, wait_deliver: Any) -> bool:
        message = wait_deliver.result()
        if message is not None and message.topic and message.topic.startswith("$aws/"):
            # amqtt closes the connection on any topic that begins with "$"
            await self._broadcast_message(client_session, message.topic, message.data)
            return True
        return bool(await super()._handle_message_delivery(client_session, handler, wait_deliver))

    async def _publish_retained_messages_for_subscription(
        self,
        subscription: tuple[str, int],
        session: Any,
    ) -> None:
        topic_filter, _ = subscription
        # amqtt offers a new client what matches anybody's subscriptions
        if not any(other is session for other, _ in self._subscriptions.get(topic_filter, ())):
            return
        # IoT Core sends no retained message to a subscription with a wildcard; code that relies on one would work
        # here only.
        if is_wildcard(topic_filter) and not (session.client_id or "").startswith(LAYER_CLIENT):
            return
        # As a task: amqtt calls this while it iterates over a dictionary that others change
        task = asyncio.ensure_future(super()._publish_retained_messages_for_subscription(subscription, session))
        # The loop holds tasks weakly: without a reference one may be collected before it ran.
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)


class EmbeddedBroker:
    """An `IotCoreBroker` on a free loopback port, in a thread with its own event loop."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        # The kernel chooses one in `start`.
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mqtt-broker", daemon=True)
        self._broker: IotCoreBroker | None = None

    def start(self) -> None:
        """Start listening; ``port`` is known afterwards.

        Raises
        ------
        amqtt.errors.BrokerError
            If no port can be bound.
        """
        self._thread.start()
        # From here on everything of amqtt runs on the broker's own thread: its objects are not safe on two.
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_START_TIMEOUT_S)

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if not self._thread.is_alive():
            return
        stopping = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        try:
            # Longer than `_stop` gives itself, so that its own bound is the one that counts.
            stopping.result(_STOP_TIMEOUT_S + 0.5)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self) -> None:
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.host}:0"}},
            "plugins": {f"{__name__}.{TrustLoopback.__name__}": {}},
        }
        self._broker = IotCoreBroker(config)
        await self._broker.start()
        # amqtt does not tell the port that it bound, so asyncio's server is asked.
        listener = self._broker._servers["default"].instance
        self.port = listener.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._broker is not None:
            # Bounded: on Python 3.12+ closing a listener waits for each of its connections
            await asyncio.wait([asyncio.ensure_future(self._broker.shutdown())], timeout=_STOP_TIMEOUT_S)

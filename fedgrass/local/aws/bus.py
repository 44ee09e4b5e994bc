"""The local AWS's own connection to the broker, embedded or not."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fedgrass.errors import TransferError
from fedgrass.local.aws.broker import LAYER_CLIENT
from fedgrass.logs import log_event

Handler = Callable[[str, bytes], object]
"""Called with topic and payload, on the connection's thread: it must not wait for the broker."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Retained:
    """A retained message as the broker holds it."""

    topic: str
    payload: bytes
    qos: int


def _client(host: str, port: int, client_id: str) -> mqtt.Client:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    try:
        client.connect(host, port)
    except OSError as error:
        raise TransferError(
            f"No MQTT broker answers at {host}:{port} ({error}). "
            "Start one there, or leave --mqtt out to use the embedded one."
        ) from error
    return client


def _hand_over(handler: Handler, topic: str, payload: bytes) -> None:
    try:
        handler(topic, payload)
    except Exception:  # noqa: BLE001 - one bad message must not end the connection's thread
        log_event("mqtt_handler_failed", topic=topic)


class Bus:
    """Publishes for the services and hands every message of the account to their handlers."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._handlers: list[Handler] = []
        self._subscribed = threading.Event()
        self._client: mqtt.Client | None = None

    def add_handler(self, handler: Handler) -> None:
        """Call ``handler`` for every message, ``$aws/`` topics included."""
        self._handlers.append(handler)

    def start(self) -> None:
        """Connect and subscribe to everything.

        Raises
        ------
        TransferError
            If the broker cannot be reached.
        """
        self._client = _client(*self._address, f"{LAYER_CLIENT}{uuid.uuid4().hex[:8]}")
        # Before `loop_start`, which reads the broker's answer: the first connection must find its handler.
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.loop_start()
        if not self._subscribed.wait(_TIMEOUT_S):
            raise TransferError(f"The MQTT broker at {self._address} does not answer a subscription.")

    def stop(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def publish(
        self, topic: str, payload: bytes | Mapping[str, object], *, qos: int = 1, retain: bool = False
    ) -> mqtt.MQTTMessageInfo:
        """Send a message to the broker; wait on the result to know that the broker has it.

        Parameters
        ----------
        topic
            Topic.
        payload
            Bytes, or a dictionary that is sent as JSON.
        qos
            0 or 1.
        retain
            Whether the broker keeps it for later subscribers.

        Returns
        -------
        MQTTMessageInfo
            Paho's handle on the message.

        Raises
        ------
        TransferError
            If the bus was not started.
        """
        if self._client is None:
            raise TransferError("The bus was used before it was started.")
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return self._client.publish(topic, data, qos=qos, retain=retain)

    def retained(self, topic_filter: str) -> list[Retained]:
        """Ask the broker for the retained messages that match ``topic_filter``.

        A broker sends them right after it acknowledges a subscription, but never says how many there are: a marker
        published after the acknowledgement comes back behind the last one.
        """
        name = f"{LAYER_CLIENT}{uuid.uuid4().hex[:8]}"
        marker = f"$aws/local/{name}"
        found: dict[str, Retained] = {}
        done = threading.Event()

        def on_connect(client: mqtt.Client, *_: object) -> None:
            client.subscribe([(marker, 1), (topic_filter, 1)])

        def on_subscribe(client: mqtt.Client, *_: object) -> None:
            client.publish(marker, b"end", qos=1)

        def on_message(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
            if message.topic == marker:
                done.set()
            elif message.retain:
                found[message.topic] = Retained(message.topic, bytes(message.payload), message.qos)

        # A connection of its own: a broker sends retained messages at a subscription, and the bus has subscribed
        # already.
        client = _client(*self._address, name)
        # `on_connect` comes last and the loop after all three: an answer must not find a handler missing.
        client.on_subscribe = on_subscribe
        client.on_message = on_message
        client.on_connect = on_connect
        client.loop_start()
        try:
            if not done.wait(_TIMEOUT_S):
                raise TransferError(f"The MQTT broker at {self._address} did not list retained messages.")
        finally:
            client.disconnect()
            client.loop_stop()
        return [found[topic] for topic in sorted(found)]

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        # At each connection, for the broker forgets a clean session's subscriptions. "#" matches no topic that begins
        # with "$" (MQTT 3.1.1, 4.7.2).
        client.subscribe([("#", 1), ("$aws/#", 1)])

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        if message.retain:
            return  # a copy from before this connection
        for handler in self._handlers:
            _hand_over(handler, message.topic, bytes(message.payload))

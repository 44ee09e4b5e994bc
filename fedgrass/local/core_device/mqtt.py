"""The device's connection to AWS IoT Core: plain MQTT 3.1.1 to the local broker.

As on the nucleus, publishing means spooled, not delivered: QoS 1 messages wait in memory, up to a bound, until the
broker acknowledges them; QoS 0 is refused without a link. Sessions are clean: what others publish while the device is
away is lost, save retained messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from paho.mqtt.client import Client, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion

from fedgrass.errors import FedgrassError
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

# The default of the nucleus's spooler (`maxSizeInBytes`). The next is IoT Core's limit on one message.
SPOOL_BYTES = int(2.5 * 1024 * 1024)
MAX_MESSAGE_BYTES = 128 * 1024
# Seconds in which the broker may still acknowledge what was published before a stop.
_LAST_WORDS_SECONDS = 1.0


class SpoolError(FedgrassError):
    """A message cannot be taken: the spool is full, the device is offline at QoS 0, or it is too large."""

    code = "spool"


@dataclass(frozen=True)
class Delivery:
    """A message from AWS IoT Core; ``retain`` tells that it was kept by the broker, not published just now."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(eq=False)
class Subscription:
    """Interest in a topic; ``confirmed`` is set once the broker has acknowledged it."""

    topic: str
    qos: int
    listener: Callable[[Delivery], None] = field(repr=False)
    of_component: bool = False
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    awaits_retained: bool = True


class IotCore:
    """Publishes and subscribes; its callbacks run in the event loop that called :meth:`start`.

    A device that ``nucleus`` gives no spooler refuses what it cannot send at once.
    """

    def __init__(
        self, client_id: str, host: str, port: int, *, spool_bytes: int = SPOOL_BYTES, nucleus: Nucleus = CLASSIC
    ) -> None:
        self._address = (host, port)
        self._spool_bytes = spool_bytes
        self._nucleus = nucleus
        self._spool: dict[int, int] = {}  # size by message id, until the broker acknowledges
        self._drained = asyncio.Event()
        self._unconfirmed: dict[int, str] = {}  # topic by message id of the subscribe
        self._subscriptions: list[Subscription] = []
        self._connect_listeners: list[Callable[[], None]] = []
        self.connected = asyncio.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
        # No bound by number: the nucleus bounds what it spools by its bytes, and so does `publish`.
        self._client.max_queued_messages_set(0)
        self._client.reconnect_delay_set(min_delay=1, max_delay=4)

    def start(self) -> None:
        """Connect in the background, and again whenever the link is lost."""
        # paho calls back on its own thread; all state here belongs to the loop.
        loop = asyncio.get_running_loop()

        def soon(callback: Callable[..., None], *args: object) -> None:
            # Paho's thread outlives the loop by a moment when the device stops.
            if not loop.is_closed():
                loop.call_soon_threadsafe(callback, *args)

        def on_connect(_client: Client, _data: object, _flags: object, reason: ReasonCode, _properties: object) -> None:
            if not reason.is_failure:
                soon(self._on_connect)

        def on_disconnect(
            _client: Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
        ) -> None:
            soon(self._on_disconnect, str(reason))

        def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
            soon(self._on_message, Delivery(message.topic, bytes(message.payload), bool(message.retain)))

        def on_publish(_client: Client, _data: object, mid: int, _reason: object, _properties: object) -> None:
            soon(self._on_acknowledged, mid)

        def on_subscribe(_client: Client, _data: object, mid: int, _reasons: object, _properties: object) -> None:
            soon(self._on_subscribed, mid)

        self._client.on_connect = on_connect
        self._client.on_subscribe = on_subscribe
        self._client.on_publish = on_publish
        self._client.on_disconnect = on_disconnect
        self._client.on_message = on_message
        # Returns at once, and paho tries again by itself: a device starts without a link too.
        self._client.connect_async(*self._address, keepalive=30)
        self._client.loop_start()

    async def stop(self) -> None:
        """Disconnect; what the broker does not take at once is lost, as in the nucleus without its disk spooler."""
        if self._spool and self.connected.is_set():
            self._drained.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), _LAST_WORDS_SECONDS)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Spool a message for IoT Core.

        Parameters
        ----------
        topic
            Topic.
        payload
            At most 128 KB.
        qos
            0 is sent now or never; 1 waits for a link.
        retain
            Whether the broker keeps it for later subscribers.

        Raises
        ------
        SpoolError
            It is over 128 KB; there is no link, and it is QoS 0 or there is no spooler; or the spool is full.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise SpoolError(f"message of {len(payload)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
        if not self.connected.is_set() and (qos == 0 or not self._nucleus.spools):
            raise SpoolError("device is offline, and this message is not kept")
        # Only QoS 1 is acknowledged, and so counted.
        limit = self._nucleus.max_unacknowledged
        if qos and limit is not None and len(self._spool) >= limit:
            raise SpoolError(f"{limit} messages are not yet acknowledged")
        size = len(payload) + len(topic)
        if sum(self._spool.values()) + size > self._spool_bytes:
            raise SpoolError(f"Message cannot be added. Spool is full ({self._spool_bytes} bytes)")
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if qos:
            # On the loop, which is also where acknowledgements arrive: none can be handled before this line.
            self._spool[info.mid] = size

    def forget_components(self) -> None:
        """Be another MQTT daemon: connect again, without the subscriptions of components, whose streams stay open."""
        self._subscriptions = [one for one in self._subscriptions if not one.of_component]
        with contextlib.suppress(OSError, AttributeError):  # not connected just now
            # Broken, not closed in order: paho connects again only after a connection that was lost.
            cast(socket.socket, self._client.socket()).shutdown(socket.SHUT_RDWR)

    def subscribe(
        self, topic: str, listener: Callable[[Delivery], None], *, qos: int = 1, of_component: bool = False
    ) -> Subscription:
        """Call ``listener`` with what matches ``topic``, until :meth:`unsubscribe`.

        A retained message comes once per connection, and to a subscription without wildcards only. Without a link the
        subscription is made when there is one.

        Parameters
        ----------
        topic
            Topic or filter.
        listener
            Called with each message, on the device's loop.
        qos
            0 or 1.
        of_component
            Whether a component asked for it: those end with the component.

        Returns
        -------
        Subscription
            What ends it.
        """
        subscription = Subscription(topic, qos, listener, of_component)
        self._subscriptions.append(subscription)
        if self.connected.is_set():
            self._subscribe(topic, qos)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        if self.connected.is_set() and all(other.topic != subscription.topic for other in self._subscriptions):
            self._client.unsubscribe(subscription.topic)

    def on_connected(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each connection, once the subscriptions are renewed."""
        self._connect_listeners.append(listener)

    def _subscribe(self, topic: str, qos: int) -> None:
        _, mid = self._client.subscribe(topic, qos)
        if mid is not None:
            self._unconfirmed[mid] = topic

    def _on_subscribed(self, mid: int) -> None:
        topic = self._unconfirmed.pop(mid, None)
        for subscription in self._subscriptions:
            if subscription.topic == topic:
                subscription.confirmed.set()

    def _on_connect(self) -> None:
        self.connected.set()
        log_event("cloud_connected", host=self._address[0], port=self._address[1])
        for subscription in self._subscriptions:
            subscription.awaits_retained = True
        # The broker has forgotten a clean session's. One request for each topic and QoS, however many listen.
        for topic, qos in {(subscription.topic, subscription.qos) for subscription in self._subscriptions}:
            self._subscribe(topic, qos)
        # After the subscriptions: an answer to what a listener publishes must find its topic subscribed.
        for listener in self._connect_listeners:
            listener()

    def _on_disconnect(self, reason: str) -> None:
        self.connected.clear()
        log_event("cloud_disconnected", reason=reason)

    def _on_acknowledged(self, mid: int) -> None:
        self._spool.pop(mid, None)
        if not self._spool:
            self._drained.set()

    def _on_message(self, delivery: Delivery) -> None:
        for subscription in list(self._subscriptions):
            if delivery.retain:
                # The broker repeats retained messages at each subscribe; only who is new wants them.
                if subscription.topic == delivery.topic and subscription.awaits_retained:
                    subscription.awaits_retained = False
                    subscription.listener(delivery)
            elif topic_matches_sub(subscription.topic, delivery.topic):
                subscription.listener(delivery)

"""The device's MQTT connection against the embedded broker, through a link that can be cut."""

import asyncio
import contextlib
import queue
import uuid
from collections.abc import Iterator

import pytest

from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.core_device.mqtt import MAX_MESSAGE_BYTES, Delivery, IotCore, SpoolError
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.waiting import PATIENCE, eventually


class Link:
    """Forwards one port to the broker while it is up."""

    def __init__(self, loop: Loop, broker: EmbeddedBroker) -> None:
        self._loop = loop
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def up(self) -> None:
        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        self._loop.run(listen())

    def down(self) -> None:
        def cut() -> None:
            if self._server is not None:
                self._server.close()
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call(cut)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._broker.host, self._broker.port)
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._writers -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()


class Party:
    """A connection and what it hears."""

    def __init__(self, loop: Loop, host: str, port: int, *, spool_bytes: int = 100_000) -> None:
        self._loop = loop
        self.heard: queue.Queue[Delivery] = queue.Queue()
        self.core: IotCore = loop.call(
            lambda: IotCore(f"test-{uuid.uuid4().hex[:8]}", host, port, spool_bytes=spool_bytes)
        )
        loop.call(self.core.start)

    def stop(self) -> None:
        self._loop.run(self.core.stop())

    def connected(self) -> bool:
        return self.core.connected.is_set()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self._loop.call(lambda: self.core.publish(topic, payload, qos=qos, retain=retain))

    def subscribe(self, topic: str) -> "queue.Queue[Delivery]":
        heard: queue.Queue[Delivery] = queue.Queue()
        subscription = self._loop.call(lambda: self.core.subscribe(topic, heard.put))
        if self.connected():
            self._loop.run(subscription.confirmed.wait())
        return heard


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    running = EmbeddedBroker()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def link(loop: Loop, broker: EmbeddedBroker) -> Iterator[Link]:
    link = Link(loop, broker)
    link.up()
    yield link
    link.down()


@pytest.fixture
def device(loop: Loop, link: Link) -> Iterator[Party]:
    party = Party(loop, "127.0.0.1", link.port)
    eventually(party.connected, "connection")
    yield party
    party.stop()


@pytest.fixture
def cloud(loop: Loop, broker: EmbeddedBroker) -> Iterator[Party]:
    party = Party(loop, broker.host, broker.port)
    eventually(party.connected, "connection")
    yield party
    party.stop()


@pytest.fixture
def topic() -> str:
    return f"t/{uuid.uuid4().hex[:8]}"


def test_what_is_published_offline_arrives_in_order_when_the_link_is_back(
    device: Party, cloud: Party, link: Link, topic: str
) -> None:
    heard = cloud.subscribe(topic)
    link.down()
    eventually(lambda: not device.connected(), "loss of the link")
    for i in range(30):
        device.publish(topic, b"%d" % i)
    link.up()
    assert [heard.get(timeout=PATIENCE).payload for _ in range(30)] == [b"%d" % i for i in range(30)]


def test_a_full_spool_refuses_and_has_room_again_after_the_link_is_back(
    device: Party, cloud: Party, link: Link, topic: str
) -> None:
    heard = cloud.subscribe(topic)
    link.down()
    eventually(lambda: not device.connected(), "loss of the link")
    device.publish(topic, bytes(60_000))
    with pytest.raises(SpoolError, match="full"):
        device.publish(topic, bytes(60_000))
    device.publish(topic, b"small enough")
    link.up()
    assert [len(heard.get(timeout=PATIENCE).payload) for _ in range(2)] == [60_000, 12]

    def has_room() -> bool:  # once the broker has acknowledged, which may come after the subscriber has heard
        try:
            device.publish(topic, bytes(60_000))
        except SpoolError:
            return False
        return True

    eventually(has_room, "room in the spool")
    assert len(heard.get(timeout=PATIENCE).payload) == 60_000


def test_qos_0_is_refused_offline(device: Party, link: Link, topic: str) -> None:
    device.publish(topic, b"x", qos=0)
    link.down()
    eventually(lambda: not device.connected(), "loss of the link")
    with pytest.raises(SpoolError, match="offline"):
        device.publish(topic, b"x", qos=0)


def test_a_message_over_128_kb_is_refused(device: Party, topic: str) -> None:
    with pytest.raises(SpoolError, match="limit"):
        device.publish(topic, bytes(MAX_MESSAGE_BYTES + 1))


def test_subscriptions_are_renewed_with_the_link(device: Party, cloud: Party, link: Link, topic: str) -> None:
    heard = device.subscribe(topic)
    link.down()
    eventually(lambda: not device.connected(), "loss of the link")
    late = device.subscribe(topic + "/late")
    link.up()
    eventually(device.connected, "the link")
    device.subscribe(topic + "/last")  # confirmed after the others
    cloud.publish(topic, b"1")
    cloud.publish(topic + "/late", b"2")
    assert (heard.get(timeout=PATIENCE).payload, late.get(timeout=PATIENCE).payload) == (b"1", b"2")


def test_a_retained_message_comes_to_each_new_exact_subscription_once(device: Party, cloud: Party, topic: str) -> None:
    heard = cloud.subscribe(topic)
    cloud.publish(topic, b"kept", retain=True)
    # From then on it is kept: a subscription of another connection may overtake the message.
    assert heard.get(timeout=PATIENCE).payload == b"kept"
    first = device.subscribe(topic)
    assert first.get(timeout=PATIENCE) == Delivery(topic, b"kept", retain=True)
    wildcard, second = device.subscribe("t/+"), device.subscribe(topic)
    assert second.get(timeout=PATIENCE).payload == b"kept"
    cloud.publish(topic, b"live")
    assert [one.get(timeout=PATIENCE).payload for one in (first, wildcard, second)] == [b"live"] * 3
    cloud.publish(topic, b"", retain=True)


def test_a_connection_that_never_was_is_given_up_at_once(loop: Loop) -> None:
    party = Party(loop, "127.0.0.1", 9)
    party.publish("t", b"never sent")
    party.stop()
    assert not party.connected()


def test_last_words_are_sent_before_the_connection_is_closed(
    loop: Loop, broker: EmbeddedBroker, cloud: Party, topic: str
) -> None:
    heard = cloud.subscribe(topic)
    party = Party(loop, broker.host, broker.port)
    eventually(party.connected, "connection")
    for i in range(50):
        party.publish(topic, b"%d" % i)
    party.stop()
    assert [heard.get(timeout=PATIENCE).payload for _ in range(50)] == [b"%d" % i for i in range(50)]

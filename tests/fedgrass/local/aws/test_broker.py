"""The embedded broker against an ordinary MQTT client."""

from collections.abc import Iterator

import pytest

from fedgrass.errors import TransferError
from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.aws.bus import Bus
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import PATIENCE


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    broker = EmbeddedBroker()
    broker.start()
    yield f"{broker.host}:{broker.port}"
    broker.stop()


@pytest.fixture
def bus(address: str) -> Iterator[Bus]:
    host, _, port = address.rpartition(":")
    bus = Bus(host, int(port))
    bus.start()
    yield bus
    bus.stop()


def test_topics_of_awss_own_are_served_like_others(address: str, unique: str) -> None:
    with MqttClient(address) as device, MqttClient(address) as cloud:
        cloud.subscribe(f"$aws/things/{unique}/#")
        device.publish(f"$aws/things/{unique}/jobs/get", b"x")
        assert cloud.next().payload == b"x"
        device.publish(f"$aws/things/{unique}/jobs/get", b"y")  # the connection is still there
        assert cloud.next().payload == b"y"


def test_a_retained_message_reaches_a_later_subscriber_of_its_topic(address: str, unique: str) -> None:
    with MqttClient(address) as first:
        first.publish(unique, b"1", retain=True)
        first.publish(unique, b"2", retain=True)
    with MqttClient(address) as second:
        second.subscribe(unique)
        message = second.next()
        assert (message.payload, message.retain) == (b"2", True)


def test_an_empty_retained_message_clears_the_topic(address: str, unique: str) -> None:
    with MqttClient(address) as client:
        client.publish(unique, b"1", retain=True)
        client.publish(unique, b"", retain=True)
    with MqttClient(address) as later:
        later.subscribe(unique)
        later.nothing_before(f"{unique}-marker")


def test_a_wildcard_subscription_gets_no_retained_messages(address: str, unique: str) -> None:
    with MqttClient(address) as first:
        first.publish(f"{unique}/a", b"1", retain=True)
    with MqttClient(address) as second:
        second.subscribe(f"{unique}/+")
        second.nothing_before(f"{unique}-marker")


def test_a_new_client_is_not_sent_what_others_subscribed_to(address: str, unique: str) -> None:
    with MqttClient(address) as first, MqttClient(address, f"{unique}-second") as second:
        first.subscribe(unique)
        first.publish(unique, b"1", retain=True)
        first.next()
        with MqttClient(address, f"{unique}-third") as third:
            third.nothing_before(f"{unique}-marker")
        second.nothing_before(f"{unique}-marker-2")


def test_a_persistent_session_gets_what_it_missed(address: str, unique: str) -> None:
    with MqttClient(address, unique, clean=False) as device:
        device.subscribe(f"{unique}/command")
    with MqttClient(address) as cloud:
        cloud.publish(f"{unique}/command", b"while you were away")
    with MqttClient(address, unique, clean=False) as device:
        assert device.next().payload == b"while you were away"


def test_the_broker_goes_on_when_clients_vanish(address: str, unique: str) -> None:
    with MqttClient(address) as watcher:
        watcher.subscribe(unique)
        for _ in range(5):
            with MqttClient(address) as rude:
                rude.subscribe(unique)
                rude.drop()
        with MqttClient(address) as polite:
            polite.publish(unique, b"still here")
        assert watcher.next().payload == b"still here"


def test_the_bus_lists_retained_messages_exactly_and_by_filter(bus: Bus, unique: str) -> None:
    bus.publish(f"{unique}/a", b"1", retain=True).wait_for_publish(PATIENCE)
    bus.publish(f"{unique}/b", {"n": 2}, retain=True).wait_for_publish(PATIENCE)
    assert [message.payload for message in bus.retained(f"{unique}/a")] == [b"1"]
    assert [message.topic for message in bus.retained(f"{unique}/#")] == [f"{unique}/a", f"{unique}/b"]
    assert bus.retained(f"{unique}/c") == []


def test_a_handler_that_fails_does_not_stop_the_others(bus: Bus, address: str, unique: str) -> None:
    def fail(_topic: str, _payload: bytes) -> None:
        raise RuntimeError("on purpose")

    with MqttClient(address) as client:
        client.subscribe(f"{unique}/answer")
        bus.add_handler(fail)
        bus.add_handler(lambda topic, payload: topic == unique and bus.publish(f"{unique}/answer", payload))
        client.publish(unique, b"question")
        assert client.next().payload == b"question"


def test_a_broker_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(TransferError, match=r"127\.0\.0\.1:1 .*--mqtt"):
        Bus("127.0.0.1", 1).start()

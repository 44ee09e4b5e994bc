"""IPC through the unmodified SDK, against the local core device's server."""

from __future__ import annotations

import gc
import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedgrass.edge.ipc import GreengrassIpc
from fedgrass.errors import IpcError, IpcRefusedError, IpcUnauthorizedError
from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.core_device.configuration import ConfigurationStore
from fedgrass.local.core_device.ipc.authorization import Authorizer
from fedgrass.local.core_device.ipc.configuration import ConfigurationService
from fedgrass.local.core_device.ipc.mqtt_proxy import MqttProxy
from fedgrass.local.core_device.ipc.pubsub import LocalPubSub
from fedgrass.local.core_device.ipc.server import IpcServer, Operation
from fedgrass.local.core_device.mqtt import IotCore
from fedgrass.local.core_device.nucleus import CLASSIC, LITE
from fedgrass.logs import Log
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.waiting import PATIENCE, eventually

TRAINER = "com.fedgrass.Trainer"
ACCESS = {
    service: {"x:1": {"operations": ["*"], "resources": ["open/*"]}}
    for service in ("aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy")
}


class Nucleus:
    """The IPC of a core device; ``token`` may be made void."""

    nucleus = CLASSIC

    def __init__(self, loop: Loop, folder: Path) -> None:
        self._loop = loop
        self.socket = folder / "ipc.socket"
        self.configuration = ConfigurationStore(folder / "configuration.json")
        self.configuration.merge(TRAINER, {"accessControl": ACCESS, "niceLevel": "5"}, 1.0)
        self.tokens = {"token": TRAINER}
        self.start()

    def operations(self) -> dict[str, Operation]:
        return {
            **LocalPubSub(Authorizer(self.configuration.get)).operations(),
            **ConfigurationService(self.configuration).operations(),
        }

    def token_of(self, component: str, process: int) -> str | None:
        return None

    def start(self) -> None:
        self._server = IpcServer(
            self.socket, self.tokens.get, self.operations(), self.nucleus, token_of=lambda *asked: self.token_of(*asked)
        )
        self._loop.run(self._server.start())

    def stop(self) -> None:
        self._loop.run(self._server.stop())


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture
def nucleus(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nucleus]:
    running = Nucleus(loop, tmp_path)
    monkeypatch.setenv("SVCUID", "token")
    monkeypatch.setenv("AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT", str(running.socket))
    yield running
    running.stop()


class Client:
    """A connected component."""

    def __init__(self, **options: Any) -> None:
        self.lost: queue.Queue[bool] = queue.Queue()
        self.heard: queue.Queue[bytes] = queue.Queue()
        self.ipc = GreengrassIpc(Log("test"), component=TRAINER, lost=lambda: self.lost.put(True), **options)


@pytest.fixture
def client(nucleus: Nucleus) -> Iterator[Client]:
    made = Client(patience=PATIENCE)
    yield made
    made.ipc.close()


def test_local_messages_arrive_as_bytes(client: Client) -> None:
    client.ipc.on_local("open/t", client.heard.put)
    client.ipc.publish_local("open/t", b"\x00\xff")
    assert client.heard.get(timeout=PATIENCE) == b"\x00\xff"


def test_messages_arrive_in_order(client: Client) -> None:
    client.ipc.on_local("open/t", client.heard.put)
    for number in range(50):
        client.ipc.publish_local("open/t", b"%d" % number)
    assert [client.heard.get(timeout=PATIENCE) for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_what_is_not_allowed_is_told_by_class(client: Client) -> None:
    with pytest.raises(IpcUnauthorizedError):
        client.ipc.publish_local("closed", b"")
    client.ipc.publish_local("open/t", b"")


def test_configuration_is_read_and_its_change_is_told(client: Client, nucleus: Nucleus, loop: Loop) -> None:
    assert client.ipc.get_configuration(TRAINER)["niceLevel"] == "5"
    assert client.ipc.get_configuration("com.example.Unknown") == {}
    changed: queue.Queue[bool] = queue.Queue()
    client.ipc.on_configuration(TRAINER, lambda: changed.put(True))
    loop.call(lambda: nucleus.configuration.merge(TRAINER, {"niceLevel": "7"}, 2.0))
    assert changed.get(timeout=PATIENCE)
    assert client.ipc.get_configuration(TRAINER)["niceLevel"] == "7"


def test_an_unsupported_operation_is_worked_around(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        client.ipc.on_component_update(lambda _deployment: None)
    client.ipc.publish_local("open/t", b"")
    assert [r.getMessage() for r in caplog.records if r.name == "test"] == ["operation_unsupported"]


def test_a_lost_connection_comes_back_with_its_subscriptions(client: Client, nucleus: Nucleus) -> None:
    client.ipc.on_local("open/t", client.heard.put)
    nucleus.stop()
    eventually(lambda: client.ipc._client is None, "disconnect noticed")
    with pytest.raises(IpcRefusedError):
        client.ipc.publish_local("open/t", b"lost")
    nucleus.start()

    def heard() -> bool:
        try:
            client.ipc.publish_local("open/t", b"again")
        except IpcRefusedError:
            return False
        try:
            return client.heard.get(timeout=0.1) == b"again"
        except queue.Empty:
            return False

    eventually(heard, "subscribed again")
    assert client.lost.empty()


def test_connections_that_were_lost_hold_no_threads_and_no_files(nucleus: Nucleus) -> None:
    process, client = psutil.Process(), Client(patience=PATIENCE)
    client.ipc.on_local("open/t", client.heard.put)

    def lose() -> None:
        nucleus.stop()
        eventually(lambda: client.ipc._client is None, "disconnect noticed")
        nucleus.start()
        eventually(lambda: client.ipc._client is not None, "connected again")

    lose()
    threads, files = process.num_threads(), process.num_fds()
    gc.disable()  # not by chance
    try:
        for _ in range(4):
            lose()
        eventually(lambda: process.num_threads() <= threads + 1 and process.num_fds() <= files + 2, "let go of")
    finally:
        gc.enable()
        client.ipc.close()


def test_a_void_token_ends_the_process(client: Client, nucleus: Nucleus) -> None:
    nucleus.stop()
    nucleus.tokens.clear()
    nucleus.start()
    assert client.lost.get(timeout=PATIENCE)


def test_a_nucleus_that_stays_away_ends_the_process(nucleus: Nucleus) -> None:
    client = Client(patience=0.1)
    nucleus.stop()
    assert client.lost.get(timeout=PATIENCE)
    nucleus.start()
    client.ipc.close()


def test_without_a_nucleus_connecting_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVCUID", raising=False)
    with pytest.raises(IpcError, match="SVCUID"):
        Client()


def test_a_subscription_that_is_refused_is_kept_trying(client: Client, nucleus: Nucleus, loop: Loop) -> None:
    client.ipc.on_local("later/t", client.heard.put)
    access = {"aws.greengrass.ipc.pubsub": {"x:1": {"operations": ["*"], "resources": ["open/*", "later/*"]}}}
    loop.call(lambda: nucleus.configuration.merge(TRAINER, {"accessControl": access}, 2.0))

    def heard() -> bool:
        client.ipc.publish_local("later/t", b"x")
        try:
            return client.heard.get(timeout=0.1) == b"x"
        except queue.Empty:
            return False

    eventually(heard, "subscribed in the end")


class Lite(Nucleus):
    """The IPC of nucleus lite with IoT Core behind it: tokens may be forgotten, and subscriptions."""

    nucleus = LITE

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.broker = EmbeddedBroker()
        self.broker.start()
        self.iot_core: IotCore = loop.call(lambda: IotCore("lite", "127.0.0.1", self.broker.port, nucleus=LITE))
        loop.call(self.iot_core.start)
        eventually(self.iot_core.connected.is_set, "connection to the broker")
        self.names = True
        super().__init__(loop, folder)

    def operations(self) -> dict[str, Operation]:
        return {
            **super().operations(),
            **MqttProxy(Authorizer(self.configuration.get), self.iot_core, LITE).operations(),
        }

    def token_of(self, component: str, process: int) -> str | None:
        if not self.names or process != os.getpid():
            return None
        self.tokens["fresh"] = component
        return "fresh"

    def restart_mqtt(self) -> None:
        self._loop.call(self.iot_core.connected.clear)
        self._loop.call(self.iot_core.forget_components)
        eventually(self.iot_core.connected.is_set, "connected again")

    def close(self) -> None:
        self.stop()
        self._loop.run(self.iot_core.stop())
        self.broker.stop()


@pytest.fixture
def lite(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lite]:
    running = Lite(loop, tmp_path)
    for variable in ("SVCUID", "AWS_CONTAINER_AUTHORIZATION_TOKEN"):
        monkeypatch.setenv(variable, "token")
    monkeypatch.setenv("AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT", str(running.socket))
    yield running
    running.close()


def tell(client: Client, topic: str, payload: bytes) -> bool:
    """Publish to IoT Core; whether it came back on the subscription."""
    try:
        client.ipc.publish_cloud(topic, payload)
        return client.heard.get(timeout=0.2) == payload
    except (IpcRefusedError, queue.Empty):
        return False


def test_a_component_that_nucleus_lite_has_forgotten_gets_a_new_token_and_goes_on(lite: Lite) -> None:
    client = Client(patience=PATIENCE)
    try:
        client.ipc.on_local("open/t", client.heard.put)
        lite.stop()
        lite.tokens.clear()
        lite.start()
        eventually(lambda: "fresh" in lite.tokens, "a new token")
        eventually(lambda: client.ipc._client is not None, "connected")
        eventually(lambda: _hears(client), "subscribed again")
        assert client.lost.empty()
        assert os.environ["SVCUID"] == os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"] == "fresh"
    finally:
        client.ipc.close()


def test_a_forgotten_component_that_gets_no_token_leaves_without_waiting_for_its_patience(lite: Lite) -> None:
    client = Client(patience=100 * PATIENCE)
    try:
        lite.names = False
        lite.stop()
        lite.tokens.clear()
        lite.start()
        assert client.lost.get(timeout=PATIENCE)
    finally:
        client.ipc.close()


def test_a_subscription_that_went_deaf_is_renewed_on_schedule(lite: Lite) -> None:
    client = Client(renewal=0.5, mqtt_daemon=lambda: "")
    try:
        client.ipc.on_cloud("open/t", client.heard.put)
        assert eventually(lambda: tell(client, "open/t", b"before"))
        lite.restart_mqtt()
        eventually(lambda: tell(client, "open/t", b"after"), "renewed")
    finally:
        client.ipc.close()


def test_another_mqtt_daemon_has_subscriptions_renewed_at_once(lite: Lite) -> None:
    daemon = ["one"]
    client = Client(renewal=3600.0, mqtt_daemon=lambda: daemon[0])
    try:
        client.ipc.on_cloud("open/t", client.heard.put)
        assert eventually(lambda: tell(client, "open/t", b"before"))
        lite.restart_mqtt()
        daemon[0] = "two"
        eventually(lambda: tell(client, "open/t", b"after"), "renewed")
    finally:
        client.ipc.close()


def test_renewing_loses_nothing_repeats_no_message_for_ever_and_leaves_one_stream(lite: Lite, loop: Loop) -> None:
    client = Client(renewal=0.1, mqtt_daemon=lambda: "")
    try:
        client.ipc.on_cloud("open/t", client.heard.put)
        sent = [b"%d" % number for number in range(40)]
        for payload in sent:
            eventually(lambda payload=payload: _published(client, payload))  # type: ignore[misc]
        heard: set[bytes] = set()

        def all_heard() -> bool:
            while not client.heard.empty():
                heard.add(client.heard.get())
            return heard == set(sent)

        eventually(all_heard, "every message")
        eventually(lambda: loop.call(lambda: len(lite.iot_core._subscriptions)) == 1, "the former streams closed")
    finally:
        client.ipc.close()


def _published(client: Client, payload: bytes) -> bool:
    try:
        client.ipc.publish_cloud("open/t", payload)
    except IpcRefusedError:
        return False
    return True


def _hears(client: Client) -> bool:
    try:
        client.ipc.publish_local("open/t", b"again")
        return client.heard.get(timeout=0.2) == b"again"
    except (IpcRefusedError, queue.Empty):
        return False

"""IPC through the unmodified ``awsiotsdk`` client, against the server and its operations in this process."""

import queue
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from awsiot.eventstreamrpc import AccessDeniedError
from awsiot.greengrasscoreipc import connect
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import (
    BinaryMessage,
    FailedUpdateConditionCheckError,
    InvalidArgumentsError,
    JsonMessage,
    PublishMessage,
    ResourceNotFoundError,
    ServiceError,
    UnauthorizedError,
)

from fedgrass.local.core_device.component import Request, Specification, State
from fedgrass.local.core_device.configuration import ConfigurationStore
from fedgrass.local.core_device.ipc.authorization import Authorizer
from fedgrass.local.core_device.ipc.configuration import ConfigurationService
from fedgrass.local.core_device.ipc.lifecycle import ComponentUpdates, LifecycleService
from fedgrass.local.core_device.ipc.pubsub import LocalPubSub
from fedgrass.local.core_device.ipc.server import IpcServer
from fedgrass.local.core_device.layout import Layout
from fedgrass.local.core_device.scripts import read_lifecycle
from fedgrass.local.core_device.supervisor import Supervisor
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.waiting import PATIENCE, eventually

ALICE, BOB = "com.example.Alice", "com.example.Bob"
EVERYTHING = {
    "aws.greengrass.ipc.pubsub": {"x:1": {"operations": ["*"], "resources": ["open/*"]}},
}


class Device:
    """The parts of a device that IPC touches, and clients of it."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.loop = loop
        self.socket = folder / "ipc.socket"
        layout = Layout(folder)
        layout.create()
        self.configuration = ConfigurationStore(layout.configuration)
        for component in (ALICE, BOB):
            self.configuration.merge(component, {"accessControl": EVERYTHING, "a": {"b": 1}, "text": "x"}, 1.0)
        self.supervisor: Supervisor = loop.call(
            lambda: Supervisor(
                layout, environment=lambda _: {"PATH": "/usr/bin:/bin"}, builtin=lambda _: None, changed=lambda: None
            )
        )
        self.updates = ComponentUpdates()
        operations = {
            **LocalPubSub(Authorizer(self.configuration.get)).operations(),
            **ConfigurationService(self.configuration).operations(),
            **LifecycleService(self.supervisor, self.configuration).operations(),
            **self.updates.operations(),
        }
        tokens = {"token-of-" + component: component for component in (ALICE, BOB)}
        self.server = IpcServer(self.socket, tokens.get, operations)
        loop.run(self.server.start())
        self._clients: list[GreengrassCoreIPCClientV2] = []

    def connect(self, component: str) -> GreengrassCoreIPCClientV2:
        client = GreengrassCoreIPCClientV2(
            client=connect(ipc_socket=str(self.socket), authtoken="token-of-" + component)
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close().result(PATIENCE)
        self.loop.run(self.supervisor.stop())
        self.loop.run(self.server.stop())


@pytest.fixture
def device(loop: Loop, tmp_path: Path) -> Iterator[Device]:
    running = Device(loop, tmp_path)
    yield running
    running.close()


def binary(content: bytes) -> PublishMessage:
    return PublishMessage(binary_message=BinaryMessage(message=content))


def test_an_unknown_token_is_refused(device: Device) -> None:
    with pytest.raises(AccessDeniedError):
        device.connect("com.example.Nobody")


def test_local_messages_reach_the_subscribers_of_a_matching_topic(device: Device) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    alice, bob = device.connect(ALICE), device.connect(BOB)
    response, _ = bob.subscribe_to_topic(topic="open/+/x", on_stream_event=heard.put)
    assert response.topic_name == "open/+/x"
    alice.publish_to_topic(topic="open/1/y", publish_message=binary(b"not for Bob"))
    alice.publish_to_topic(topic="open/1/x", publish_message=binary(bytes(range(256))))
    alice.publish_to_topic(
        topic="open/2/x", publish_message=PublishMessage(json_message=JsonMessage(message={"list": list(range(100))}))
    )
    first, second = heard.get(timeout=PATIENCE), heard.get(timeout=PATIENCE)
    assert (first.binary_message.message, first.binary_message.context.topic) == (bytes(range(256)), "open/1/x")
    assert second.json_message.message == {"list": list(range(100))}


def test_own_messages_are_heard_unless_only_those_of_others_are_asked_for(device: Device) -> None:
    everything: queue.Queue[Any] = queue.Queue()
    others: queue.Queue[Any] = queue.Queue()
    alice, bob = device.connect(ALICE), device.connect(BOB)
    alice.subscribe_to_topic(topic="open/t", on_stream_event=everything.put)
    alice.subscribe_to_topic(topic="open/t", receive_mode="RECEIVE_MESSAGES_FROM_OTHERS", on_stream_event=others.put)
    alice.publish_to_topic(topic="open/t", publish_message=binary(b"own"))
    bob.publish_to_topic(topic="open/t", publish_message=binary(b"Bob's"))
    assert [everything.get(timeout=PATIENCE).binary_message.message for _ in range(2)] == [b"own", b"Bob's"]
    assert others.get(timeout=PATIENCE).binary_message.message == b"Bob's"
    assert others.empty()


def test_a_closed_subscription_hears_no_more(device: Device) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    alice = device.connect(ALICE)
    _, operation = alice.subscribe_to_topic(topic="open/t", on_stream_event=heard.put)
    operation.close().result(PATIENCE)
    alice.publish_to_topic(topic="open/t", publish_message=binary(b"late"))
    _, again = alice.subscribe_to_topic(topic="open/t", on_stream_event=heard.put)
    alice.publish_to_topic(topic="open/t", publish_message=binary(b"new"))
    assert heard.get(timeout=PATIENCE).binary_message.message == b"new"
    again.close().result(PATIENCE)


def test_without_permission_a_call_is_unauthorized_and_the_connection_stays(device: Device) -> None:
    alice = device.connect(ALICE)
    with pytest.raises(UnauthorizedError):
        alice.publish_to_topic(topic="closed/t", publish_message=binary(b""))
    with pytest.raises(UnauthorizedError):
        alice.subscribe_to_topic(topic="closed/t", on_stream_event=lambda _: None)
    alice.publish_to_topic(topic="open/t", publish_message=binary(b""))


def test_an_unsupported_operation_is_a_service_error_and_the_connection_stays(device: Device) -> None:
    alice = device.connect(ALICE)
    with pytest.raises(ServiceError) as refused:
        alice.get_secret_value(secret_id="x")
    assert "GetSecretValue" in refused.value.message
    assert alice.get_configuration(key_path=["text"]).value == {"text": "x"}


def test_a_malformed_request_is_refused_and_the_connection_stays(device: Device) -> None:
    alice = device.connect(ALICE)
    with pytest.raises(InvalidArgumentsError):
        alice.publish_to_topic(topic="open/+", publish_message=binary(b""))
    with pytest.raises(InvalidArgumentsError):
        alice.publish_to_topic(topic="open/t", publish_message=PublishMessage())
    assert alice.get_configuration(key_path=["text"]).value == {"text": "x"}


def test_configuration_is_read_by_path_and_from_other_components(device: Device) -> None:
    alice = device.connect(ALICE)
    assert alice.get_configuration(key_path=["a"]).value == {"b": 1}
    assert alice.get_configuration(key_path=["a", "b"]).value == {"b": 1}
    assert alice.get_configuration(component_name=BOB, key_path=["text"]).value == {"text": "x"}
    assert alice.get_configuration().value["text"] == "x"
    with pytest.raises(ResourceNotFoundError):
        alice.get_configuration(key_path=["none"])
    with pytest.raises(ResourceNotFoundError):
        alice.get_configuration(component_name="com.example.None")


def test_an_updated_configuration_is_told_to_its_subscribers(device: Device) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    alice, bob = device.connect(ALICE), device.connect(BOB)
    alice.subscribe_to_configuration_update(component_name=BOB, key_path=["a"], on_stream_event=heard.put)
    bob.update_configuration(key_path=["a"], value_to_merge={"b": 2}, timestamp=datetime.now(timezone.utc))
    event = heard.get(timeout=PATIENCE).configuration_update_event
    assert (event.component_name, event.key_path) == (BOB, ["a", "b"])
    assert alice.get_configuration(component_name=BOB, key_path=["a"]).value == {"b": 2}


def test_an_update_older_than_the_value_is_refused(device: Device) -> None:
    alice, now = device.connect(ALICE), datetime.now(timezone.utc)
    alice.update_configuration(key_path=[], value_to_merge={"text": "new"}, timestamp=now)
    with pytest.raises(FailedUpdateConditionCheckError):
        alice.update_configuration(key_path=[], value_to_merge={"text": "old"}, timestamp=now - timedelta(seconds=5))
    assert alice.get_configuration(key_path=["text"]).value == {"text": "new"}


def test_a_component_cannot_change_its_own_permissions(device: Device) -> None:
    alice = device.connect(ALICE)
    with pytest.raises(InvalidArgumentsError):
        alice.update_configuration(
            key_path=[], value_to_merge={"accessControl": {}}, timestamp=datetime.now(timezone.utc)
        )
    with pytest.raises(InvalidArgumentsError):
        alice.update_configuration(key_path=["accessControl"], value_to_merge={}, timestamp=datetime.now(timezone.utc))


def test_a_component_reports_its_state(device: Device) -> None:
    specification = Specification(ALICE, "1.0.0", read_lifecycle({"startup": "exec sleep 100"}))
    device.loop.run(device.supervisor.replace({ALICE: specification}))
    alice = device.connect(ALICE)
    alice.update_state(state="RUNNING")
    assert device.loop.run(device.supervisor.settled()).succeeded
    details = alice.get_component_details(component_name=ALICE).component_details
    assert (details.component_name, details.version, details.state) == (ALICE, "1.0.0", State.RUNNING.value)
    assert [one.component_name for one in alice.list_components().components] == [ALICE]
    with pytest.raises(ResourceNotFoundError):
        alice.get_component_details(component_name=BOB)
    assert device.supervisor.request(ALICE, Request.RESTART)


def test_a_component_that_was_stopped_is_finished_until_a_deployment_changes_it_or_a_restart(device: Device) -> None:
    forever = read_lifecycle({"run": "exec sleep 100000"})
    both = {name: Specification(name, "1.0.0", forever) for name in (ALICE, BOB)}
    device.loop.run(device.supervisor.replace({ALICE: both[ALICE]}))
    device.loop.run(device.supervisor.settled())
    bob = device.connect(BOB)
    assert bob.stop_component(component_name=ALICE).stop_status == "SUCCEEDED"

    def state() -> str:
        return str(bob.get_component_details(component_name=ALICE).component_details.state)

    eventually(lambda: state() == State.FINISHED.value, "Alice FINISHED")
    with pytest.raises(ResourceNotFoundError):
        bob.stop_component(component_name="com.example.Nobody")
    device.loop.run(device.supervisor.replace(both))
    assert device.loop.run(device.supervisor.settled()).succeeded
    assert state() == State.FINISHED.value
    device.loop.run(device.supervisor.replace({**both, ALICE: Specification(ALICE, "1.1.0", forever)}))
    assert device.loop.run(device.supervisor.settled()).succeeded
    assert state() == State.RUNNING.value
    bob.stop_component(component_name=ALICE)
    eventually(lambda: state() == State.FINISHED.value, "Alice FINISHED again")
    bob.restart_component(component_name=ALICE)
    eventually(lambda: state() == State.RUNNING.value, "Alice RUNNING again")


def _deployment_events(client: Any) -> "queue.Queue[Any]":
    heard: queue.Queue[Any] = queue.Queue()
    client.subscribe_to_component_updates(on_stream_event=heard.put)
    return heard


def test_without_subscribers_an_update_goes_on_at_once(device: Device) -> None:
    device.loop.run(device.updates.consent("d", 60.0), timeout=PATIENCE)


def test_the_longest_deferral_wins_and_all_are_asked_again(device: Device) -> None:
    alice, bob = device.connect(ALICE), device.connect(BOB)
    events = {ALICE: _deployment_events(alice), BOB: _deployment_events(bob)}
    consent = _begin(device, timeout=PATIENCE)
    for client, name, milliseconds in ((alice, ALICE, 50), (bob, BOB, 400)):
        assert events[name].get(timeout=PATIENCE).pre_update_event.deployment_id == "d"
        client.defer_component_update(deployment_id="d", recheck_after_ms=milliseconds, message="busy")
    asked_again = [events[name].get(timeout=PATIENCE).pre_update_event for name in (ALICE, BOB)]
    assert not any(event.is_ggc_restarting for event in asked_again)
    assert not consent.done()
    alice.defer_component_update(deployment_id="d", recheck_after_ms=0)
    assert not consent.done()
    bob.defer_component_update(deployment_id="d", recheck_after_ms=0)
    consent.result(PATIENCE)
    device.loop.call(device.updates.announce_done, "d")
    assert events[ALICE].get(timeout=PATIENCE).post_update_event.deployment_id == "d"


def test_who_does_not_answer_in_time_consents(device: Device) -> None:
    alice = device.connect(ALICE)
    events = _deployment_events(alice)
    _begin(device, timeout=0.05).result(PATIENCE)
    events.get(timeout=PATIENCE)
    with pytest.raises(ServiceError):
        alice.defer_component_update(deployment_id="d", recheck_after_ms=1000)


def test_who_goes_away_is_not_waited_for(device: Device) -> None:
    alice = device.connect(ALICE)
    events = _deployment_events(alice)
    consent = _begin(device, timeout=PATIENCE)
    events.get(timeout=PATIENCE)
    alice.close().result(PATIENCE)
    consent.result(PATIENCE)


def test_only_subscribers_may_defer(device: Device) -> None:
    with pytest.raises(InvalidArgumentsError):
        device.connect(ALICE).defer_component_update(deployment_id="d", recheck_after_ms=0)


def _begin(device: Device, *, timeout: float) -> Any:
    return device.loop.begin(device.updates.consent("d", timeout))

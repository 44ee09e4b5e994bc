"""What the device imitates of nucleus lite: each limit as a component meets it, through the unmodified SDK."""

import contextlib
import json
import queue
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from awsiot.eventstreamrpc import ConnectionClosedError, StreamClosedError
from awsiot.greengrasscoreipc import connect
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import (
    BinaryMessage,
    JsonMessage,
    PublishMessage,
    ServiceError,
    UnauthorizedError,
)

from fedgrass.local.aws.broker import EmbeddedBroker
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.core_device.configuration import DEFAULTS_TIME, ConfigurationStore
from fedgrass.local.core_device.ipc.authorization import Authorizer
from fedgrass.local.core_device.ipc.configuration import ConfigurationService
from fedgrass.local.core_device.ipc.mqtt_proxy import MqttProxy
from fedgrass.local.core_device.ipc.pubsub import LocalPubSub
from fedgrass.local.core_device.ipc.server import IpcServer
from fedgrass.local.core_device.mqtt import IotCore, SpoolError
from fedgrass.local.core_device.nucleus import LITE
from fedgrass.local.core_device.recipe import parse, platform_attributes
from fedgrass.local.core_device.scripts import read_lifecycle
from fedgrass.local.core_device.variables import Places, Variables
from fedgrass.local.recipe import RecipeError
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fedgrass.local.core_device.harness import DeviceProcess, Fleet
from tests.fixtures.waiting import PATIENCE, eventually

C = "com.example.C"


def policies(count: int) -> dict[str, Any]:
    return {
        service: {
            f"{C}:{service}:{number}": {
                "policyDescription": "Allow the component what it does in this test, and nothing else whatever.",
                "operations": ["aws.greengrass#PublishToTopic", "aws.greengrass#SubscribeToTopic"]
                if service.endswith("pubsub")
                else ["aws.greengrass#PublishToIoTCore", "aws.greengrass#SubscribeToIoTCore"],
                "resources": ["*"],
            }
            for number in range(count)
        }
        for service in ("aws.greengrass.ipc.pubsub", "aws.greengrass.ipc.mqttproxy")
    }


class Device:
    """IPC of nucleus lite, with a broker that is there or not."""

    def __init__(self, loop: Loop, folder: Path, broker: EmbeddedBroker | None) -> None:
        self.loop = loop
        self.socket = folder / "ipc.socket"
        self.configuration = ConfigurationStore(folder / "effective.json", max_leaf=LITE.max_leaf)
        self.configuration.merge(C, {"accessControl": policies(1), "n": "5"}, DEFAULTS_TIME)
        port = broker.port if broker else 9
        self.iot_core: IotCore = loop.call(lambda: IotCore("lite", "127.0.0.1", port, nucleus=LITE))
        loop.call(self.iot_core.start)
        authorizer = Authorizer(self.configuration.get, max_bytes=LITE.max_access_control)
        operations = {
            **LocalPubSub(authorizer, LITE).operations(),
            **ConfigurationService(self.configuration).operations(),
            **MqttProxy(authorizer, self.iot_core, LITE).operations(),
        }
        self.server = IpcServer(self.socket, {"token": C}.get, operations, LITE)
        loop.run(self.server.start())
        if broker:
            eventually(self.iot_core.connected.is_set, "connection to the broker")
        self._clients: list[GreengrassCoreIPCClientV2] = []

    def connect(self) -> GreengrassCoreIPCClientV2:
        client = GreengrassCoreIPCClientV2(client=connect(ipc_socket=str(self.socket), authtoken="token"))
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close().exception(PATIENCE)
        self.loop.run(self.server.stop())
        self.loop.run(self.iot_core.stop())


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    running = EmbeddedBroker()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def device(loop: Loop, tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Device]:
    running = Device(loop, tmp_path, broker)
    yield running
    running.close()


@pytest.fixture
def offline(loop: Loop, tmp_path: Path) -> Iterator[Device]:
    running = Device(loop, tmp_path, None)
    yield running
    running.close()


def binary(content: bytes) -> PublishMessage:
    return PublishMessage(binary_message=BinaryMessage(message=content))


def test_a_message_up_to_7200_bytes_passes_and_a_larger_one_drops_the_connection(device: Device) -> None:
    client, heard = device.connect(), queue.Queue[Any]()
    client.subscribe_to_topic(topic="t", on_stream_event=heard.put)
    client.publish_to_topic(topic="t", publish_message=binary(bytes(7_200)))
    assert len(heard.get(timeout=PATIENCE).binary_message.message) == 7_200
    with pytest.raises(StreamClosedError):
        client.publish_to_topic(topic="t", publish_message=binary(bytes(7_500)))
    # The SDK has three ways to say it, by how far it has noticed the end itself.
    with pytest.raises((ConnectionClosedError, StreamClosedError, RuntimeError)):
        client.get_configuration()  # the connection itself is gone
    assert device.connect().get_configuration(key_path=["n"]).value == {"n": "5"}


def test_a_json_message_with_a_long_list_kills_the_subscriptions_it_matches(device: Device) -> None:
    client, heard, other = device.connect(), queue.Queue[Any](), queue.Queue[Any]()
    client.subscribe_to_topic(topic="t", on_stream_event=heard.put)
    client.subscribe_to_topic(topic="other", on_stream_event=other.put)
    for items in (44, 45, 1):
        message = PublishMessage(json_message=JsonMessage(message={"list": list(range(items))}))
        client.publish_to_topic(topic="t", publish_message=message)
    client.publish_to_topic(topic="other", publish_message=binary(b"after all the rest"))
    assert other.get(timeout=PATIENCE)
    assert len(heard.get(timeout=PATIENCE).json_message.message["list"]) == 44
    assert heard.empty()


def test_a_component_hears_itself_whatever_it_asked_for(device: Device) -> None:
    client, heard = device.connect(), queue.Queue[Any]()
    client.subscribe_to_topic(topic="t", receive_mode="RECEIVE_MESSAGES_FROM_OTHERS", on_stream_event=heard.put)
    client.publish_to_topic(topic="t", publish_message=binary(b"own"))
    assert heard.get(timeout=PATIENCE).binary_message.message == b"own"


def test_unsupported_operations_are_refused_without_a_word_and_the_connection_stays(device: Device) -> None:
    client = device.connect()
    for call in (
        lambda: client.subscribe_to_component_updates(on_stream_event=lambda _: None),
        lambda: client.defer_component_update(deployment_id="d", recheck_after_ms=0),
        lambda: client.get_component_details(component_name=C),
        client.list_components,
    ):
        with pytest.raises(ServiceError) as refused:
            call()
        assert not refused.value.message
    assert client.get_configuration(key_path=["n"]).value == {"n": "5"}


def test_large_permissions_permit_nothing(device: Device) -> None:
    client = device.connect()
    client.publish_to_topic(topic="t", publish_message=binary(b""))
    device.configuration.merge(C, {"accessControl": policies(10)}, 1e15)
    with pytest.raises(UnauthorizedError):
        client.publish_to_topic(topic="t", publish_message=binary(b""))


def test_a_large_leaf_and_a_map_for_a_value_are_refused(device: Device) -> None:
    client, now = device.connect(), datetime.now(timezone.utc)
    client.update_configuration(key_path=[], value_to_merge={"l": "x" * 1000}, timestamp=now)
    for value in ({"l": "x" * 1100}, {"list": [["x"] * 300]}, {"n": {"a": "map"}}):
        with pytest.raises(ServiceError):
            client.update_configuration(key_path=[], value_to_merge=value, timestamp=now)
    assert client.get_configuration(key_path=["n"]).value == {"n": "5"}


def test_offline_nothing_is_kept(offline: Device) -> None:
    client = offline.connect()
    with pytest.raises(ServiceError):
        client.publish_to_iot_core(topic_name="t", qos="1", payload=b"x")
    with pytest.raises(ServiceError):
        client.subscribe_to_iot_core(topic_name="t", qos="1", on_stream_event=lambda _: None)


def test_at_most_ten_messages_are_unacknowledged(device: Device, loop: Loop) -> None:
    def burst() -> int:
        accepted = 0
        for _ in range(30):  # within one step of the loop, so that no acknowledgement comes between
            with contextlib.suppress(SpoolError):
                device.iot_core.publish("t", b"x")
                accepted += 1
        return accepted

    assert loop.call(burst) == 10


def test_what_is_large_does_not_arrive_from_the_cloud_and_nothing_is_retained(device: Device) -> None:
    client, heard = device.connect(), queue.Queue[Any]()
    client.subscribe_to_iot_core(topic_name="t", qos="1", on_stream_event=heard.put)
    client.publish_to_iot_core(topic_name="t", qos="1", payload=bytes(5_000))
    client.publish_to_iot_core(topic_name="t", qos="1", payload=b"small", retain=True)
    assert heard.get(timeout=PATIENCE).message.payload == b"small"
    late: queue.Queue[Any] = queue.Queue()
    device.connect().subscribe_to_iot_core(topic_name="t", qos="1", on_stream_event=late.put)
    client.publish_to_iot_core(topic_name="t", qos="1", payload=b"next")
    assert late.get(timeout=PATIENCE).message.payload == b"next"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("run {work:path} {configuration:/n} on", "run /w/C 5 on"),
        ("echo a; echo ${HOME}; exit 1", "echo a; echo $"),
        ("a {configuration:/none} b", "a "),
        ("a {D:artifacts:path} b", "a "),
    ],
)
def test_a_script_ends_at_the_first_brace_that_is_no_variable(script: str, expected: str) -> None:
    def places(name: str) -> Places:
        return Places(Path("/a") / name, Path("/u") / name, Path("/w") / name)

    variables = Variables("C", "thing", Path("/root"), frozenset(), places, lambda _: {"n": 5}, truncates=True)
    assert variables.interpolate({"run": script}) == {"run": expected}


def test_a_yaml_recipe_has_strings_only_and_needs_a_runtime() -> None:
    text = b"""
RecipeFormatVersion: "2020-01-25"
ComponentName: com.example.C
ComponentVersion: 1.0.0
ComponentConfiguration: {DefaultConfiguration: {n: 5, b: true, z: null, l: [1]}}
Manifests:
  - Platform: {os: linux}
    Lifecycle: {run: classic}
  - Platform: {os: linux, runtime: "*"}
    Lifecycle: {Run: ignored, shutdown: ignored, run: lite}
"""
    recipe = parse(text, yaml_is_strings=True)
    assert recipe.configuration.default == {"n": "5", "b": "true", "z": "null", "l": ["1"]}
    manifest = recipe.manifest(platform_attributes(LITE.runtime), requires_runtime=True)
    lifecycle = {key: value for key, value in manifest.lifecycle.items() if key != "Run"}
    assert [script.command for script in read_lifecycle(lifecycle, LITE).values()] == ["lite"]
    with pytest.raises(RecipeError):
        read_lifecycle(manifest.lifecycle, LITE)  # its keys are of one case only


def test_a_device_with_nucleus_lite_runs_deployments_and_restarts_for_a_new_configuration(
    local_aws: LocalAwsProcess, unique: str, tmp_path: Path
) -> None:
    fleet = Fleet(local_aws)
    fleet.add(unique)
    name = f"{unique}.A"
    fleet.publish(name, {"startup": "echo version $GGC_VERSION"}, configuration={"n": "1"})
    with DeviceProcess(fleet, tmp_path / "root", unique, arguments=("--nucleus", "lite")) as device:
        assert fleet.result(unique, fleet.deploy({name: "1.0.0"}))["coreDeviceExecutionStatus"] == "SUCCEEDED"
        update = {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps({"n": "2"})}}
        assert fleet.result(unique, fleet.deploy({name: update}))["coreDeviceExecutionStatus"] == "SUCCEEDED"
        assert device.log(name).splitlines() == ["version 2.6.0"] * 2

"""Deployments and lifecycles as on the real nucleus lite 2.6, which is the less forgiving one: each of these was seen there."""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from awsiot.greengrasscoreipc import connect
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.core_device.component import State
from fedgrass.local.core_device.ipc.server import IpcServer
from fedgrass.local.core_device.nucleus import LITE
from fedgrass.local.core_device.recipe import parse, platform_attributes
from fedgrass.local.recipe import RecipeError
from tests.fedgrass.local.core_device.components import ACCESS, python
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fedgrass.local.core_device.harness import DeviceProcess, Fleet
from tests.fixtures.waiting import PATIENCE as ENDLESS
from tests.fixtures.waiting import eventually

RUN = {"run": "exec sleep 1000"}
PATIENCE = 15.0  # of the nucleus; two tests wait for its end

LISTENER = """
import os, threading
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
ipc = GreengrassCoreIPCClientV2()
thing = os.environ["AWS_IOT_THING_NAME"]
ipc.subscribe_to_iot_core(
    topic_name=f"tell/{thing}", qos="1", on_stream_event=lambda event: print("told", event.message.payload, flush=True))
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def lite(local_aws: LocalAwsProcess, unique: str, tmp_path: Path) -> Iterator[DeviceProcess]:
    fleet = Fleet(local_aws)
    fleet.add(unique)
    arguments = ("--nucleus", "lite", "--patience", str(PATIENCE))
    with DeviceProcess(fleet, tmp_path / "root", unique, arguments=arguments) as device:
        yield device


def ends(device: DeviceProcess, components: dict[str, Any]) -> str:
    result = device.fleet.result(device.thing, device.fleet.deploy(components))
    return str(result["coreDeviceExecutionStatus"])


def state(device: DeviceProcess, name: str) -> str:
    """Return the state that the component entered last."""
    return str([e["state"] for e in device.events("component_state") if e["component"] == name][-1])


def pids(device: DeviceProcess, name: str) -> list[int]:
    return [e["pid"] for e in device.events("script_started") if e["component"] == name and e["phase"] == "run"]


def test_a_component_that_only_installs_fails_its_deployment_for_want_of_patience(lite: DeviceProcess) -> None:
    name = f"{lite.thing}.Installs"
    lite.fleet.publish(name, {"install": "echo done"})
    began = time.monotonic()
    assert ends(lite, {name: "1.0.0"}) == "FAILED"
    assert time.monotonic() - began >= PATIENCE
    assert lite.log(name) == "done\n"
    assert state(lite, name) == State.INSTALLED.value


def test_who_depends_hard_on_one_that_only_installs_never_starts(lite: DeviceProcess) -> None:
    base, top = f"{lite.thing}.Installs", f"{lite.thing}.Depends"
    lite.fleet.publish(base, {"install": "exit 0"})
    lite.fleet.publish(
        top, {"run": "echo never"}, dependencies={base: {"VersionRequirement": "*", "DependencyType": "HARD"}}
    )
    assert ends(lite, {top: "1.0.0"}) == "FAILED"
    assert lite.log(top) == ""


def test_a_soft_dependency_on_one_that_runs_to_its_end_is_what_works(lite: DeviceProcess) -> None:
    base, top = f"{lite.thing}.Ends", f"{lite.thing}.Depends"
    lite.fleet.publish(base, {"install": "exit 0", "run": "exit 0"})
    lite.fleet.publish(top, RUN, dependencies={base: {"VersionRequirement": "*", "DependencyType": "SOFT"}})
    assert ends(lite, {top: "1.0.0"}) == "SUCCEEDED"


def test_a_manifest_without_artifacts_is_refused() -> None:
    text = """
RecipeFormatVersion: "2020-01-25"
ComponentName: com.example.C
ComponentVersion: 1.0.0
Manifests:
  - Platform: {os: linux, runtime: "*"}
    Lifecycle: {run: "true"}
"""
    attributes = platform_attributes(LITE.runtime)
    recipe = parse(text.encode(), yaml_is_strings=True)
    with pytest.raises(RecipeError, match="Missing required 'Artifacts' key"):
        recipe.manifest(attributes, requires_runtime=True, requires_artifacts=LITE.requires_artifacts)
    complete = parse((text + "    Artifacts: []\n").encode(), yaml_is_strings=True)
    assert complete.manifest(attributes, requires_runtime=True, requires_artifacts=True).artifacts == []


def test_a_failed_install_takes_nothing_back_and_what_ran_goes_on(lite: DeviceProcess) -> None:
    name, other = f"{lite.thing}.Model", f"{lite.thing}.Other"
    lite.fleet.publish(name, {"install": "exit 0", **RUN})
    lite.fleet.publish(name, {"install": "exit 1", **RUN}, version="1.1.0")
    lite.fleet.publish(other, RUN, configuration={"n": "1"})
    assert ends(lite, {name: "1.0.0", other: "1.0.0"}) == "SUCCEEDED"
    [running], configured = pids(lite, name), {"merge": json.dumps({"n": "2"})}
    deployment = lite.fleet.deploy(
        {name: "1.1.0", other: {"componentVersion": "1.0.0", "configurationUpdate": configured}}
    )
    result = lite.fleet.result(lite.thing, deployment)
    assert result["coreDeviceExecutionStatus"] == "FAILED"
    assert not lite.events("deployment_rolled_back")
    assert psutil.pid_exists(running)
    assert [e["error"] for e in lite.events("component_errored")] == ["install exited with code 1"] * 3
    configuration = json.loads(lite.text("config/effective.json"))["values"][other]
    assert configuration["n"] == "2"


def test_after_a_failed_install_and_a_power_cut_everything_runs_without_installing(lite: DeviceProcess) -> None:
    name = f"{lite.thing}.Model"
    lite.fleet.publish(name, {"install": "echo installed", **RUN})
    lite.fleet.publish(name, {"install": "exit 1", **RUN}, version="1.1.0")
    assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
    assert ends(lite, {name: "1.1.0"}) == "FAILED"
    lite.kill()
    lite.start()
    eventually(lambda: len(pids(lite, name)) == 2, "started at boot")
    assert lite.log(name) == "installed\n"


@pytest.mark.parametrize("value", ["1", "2"], ids=["unchanged", "changed"])
def test_any_configuration_update_installs_and_starts_a_component_anew(lite: DeviceProcess, value: str) -> None:
    name, other = f"{lite.thing}.Configured", f"{lite.thing}.Other"
    lite.fleet.publish(name, {"install": "echo installed", **RUN}, configuration={"n": "1"})
    lite.fleet.publish(other, {"install": "echo installed", **RUN})
    assert ends(lite, {name: "1.0.0", other: "1.0.0"}) == "SUCCEEDED"
    update = {"componentVersion": "1.0.0", "configurationUpdate": {"merge": json.dumps({"n": value})}}
    assert ends(lite, {name: update, other: "1.0.0"}) == "SUCCEEDED"
    assert lite.log(name) == "installed\n" * 2
    assert (len(pids(lite, name)), len(pids(lite, other))) == (2, 1)


def test_three_starts_an_hour_then_it_is_given_up_until_the_next_deployment(lite: DeviceProcess) -> None:
    name = f"{lite.thing}.Dies"
    lite.fleet.publish(name, RUN)
    assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
    for number in (1, 2, 3):
        eventually(lambda number=number: len(pids(lite, name)) == number, f"start {number}")  # type: ignore[misc]
        os.kill(pids(lite, name)[-1], signal.SIGKILL)
    eventually(lambda: state(lite, name) == State.BROKEN.value, "given up")
    assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
    assert len(pids(lite, name)) == 4


def test_a_void_token_closes_the_connection_without_a_word(loop: Loop, tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "s", {"token": "C"}.get, {}, LITE)
    loop.run(server.start())
    try:
        with pytest.raises(Exception, match="AWS_IO_SOCKET_CLOSED"):
            connect(ipc_socket=str(tmp_path / "s"), authtoken="another")
    finally:
        loop.run(server.stop())


def test_a_restarted_mqtt_daemon_forgets_subscriptions_and_leaves_their_streams_open(
    lite: DeviceProcess, local_aws: LocalAwsProcess
) -> None:
    name = f"{lite.thing}.Listens"
    lite.fleet.publish(
        name,
        {"run": python("listen.py")},
        files={"listen.py": LISTENER},
        configuration={"accessControl": ACCESS},
    )
    assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
    eventually(lambda: "ready" in lite.log(name), "component ready")
    with Cloud(local_aws, lite.thing) as cloud:
        cloud.client.publish(f"tell/{lite.thing}", b"one", qos=1)
        eventually(lambda: "one" in lite.log(name), "heard")
        assert lite.child is not None
        connections = len(lite.events("cloud_connected"))
        os.kill(lite.child.pid, signal.SIGUSR2)
        eventually(lambda: len(lite.events("cloud_connected")) > connections, "connected again")
        cloud.client.publish(f"tell/{lite.thing}", b"two", qos=1)
        # What the device itself hears after that is the proof that the message had the time to come.
        assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
        assert "two" not in lite.log(name)
        assert len(pids(lite, name)) == 1


def test_jobs_come_on_namespaced_topics_and_name_a_configuration(
    lite: DeviceProcess, local_aws: LocalAwsProcess
) -> None:
    name = f"{lite.thing}.C"
    lite.fleet.publish(name, RUN)
    with Cloud(local_aws, lite.thing) as cloud:
        cloud.client.subscribe(f"$aws/things/{lite.thing}/jobs/#", 1)
        assert ends(lite, {name: "1.0.0"}) == "SUCCEEDED"
        topics, arns = set[str](), set[str]()
        while not any(topic.endswith("/update/accepted") for topic in topics):
            message = cloud.heard.get(timeout=ENDLESS)
            topics.add(message.topic.removeprefix(f"$aws/things/{lite.thing}/jobs/"))
            execution = json.loads(message.payload).get("execution") or {}
            if "jobDocument" in execution:
                arns.add(execution["jobDocument"]["configurationArn"])
    assert "notify-next-namespace-aws-gg-deployment" in topics
    assert all("namespace-aws-gg-deployment" in topic for topic in topics if topic.endswith(("/update", "/get")))
    [arn] = arns
    assert f":configuration:thinggroup/{lite.fleet.name}:" in arn


class Cloud:
    """An MQTT client on the cloud's side."""

    def __init__(self, aws: LocalAwsProcess, thing: str) -> None:
        self.heard: queue.Queue[MQTTMessage] = queue.Queue()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=f"cloud-{thing}")
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        host, _, port = aws.mqtt.partition(":")
        self.client.connect(host, int(port))
        self.client.loop_start()

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

"""A core device as a process, deployed to through the local AWS: what a fleet sees of it."""

import json
import os
import queue
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fedgrass.local.core_device.components import echo, python
from tests.fedgrass.local.core_device.harness import BUCKET, DeviceProcess, Fleet, is_gone
from tests.fixtures.waiting import PATIENCE, eventually

FOREVER = {"run": "exec sleep 100000"}


@pytest.fixture
def cloud(local_aws: LocalAwsProcess, unique: str) -> Iterator[Client]:
    """An MQTT client on the cloud's side; what it hears is in ``user_data_get()``."""
    heard: queue.Queue[MQTTMessage] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"cloud-{unique}", userdata=heard)
    client.on_message = lambda _client, _data, message: heard.put(message)
    host, _, port = local_aws.mqtt.partition(":")
    client.connect(host, int(port))
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def states(device: DeviceProcess) -> dict[str, str]:
    installed = device.fleet.greengrass.list_installed_components(
        coreDeviceThingName=device.thing, topologyFilter="ALL"
    )
    return {one["componentName"]: one["lifecycleState"] for one in installed["installedComponents"]}


def versions(device: DeviceProcess) -> dict[str, str]:
    installed = device.fleet.greengrass.list_installed_components(
        coreDeviceThingName=device.thing, topologyFilter="ALL"
    )
    return {one["componentName"]: one["componentVersion"] for one in installed["installedComponents"]}


def succeeds(device: DeviceProcess, components: dict[str, Any], **policies: Any) -> str:
    deployment = device.fleet.deploy(components, **policies)
    result = device.fleet.result(device.thing, deployment)
    assert result["coreDeviceExecutionStatus"] == "SUCCEEDED", result
    return deployment


def fails(device: DeviceProcess, components: dict[str, Any], **policies: Any) -> dict[str, Any]:
    fleet = device.fleet
    result = fleet.result(device.thing, fleet.deploy(components, **policies))
    assert result["coreDeviceExecutionStatus"] == "FAILED", result
    return result


def test_a_deployed_component_talks_to_the_cloud(
    fleet: Fleet, device: DeviceProcess, cloud: Client, unique: str
) -> None:
    fleet.publish(f"{unique}.Echo", **echo(greeting="hello"))
    merge = json.dumps({"settings": {"greeting": "overridden", "more": 1}})
    succeeds(
        device,
        {f"{unique}.Echo": {"componentVersion": "1.0.0", "configurationUpdate": {"merge": merge}}},
    )
    eventually(lambda: "ready" in device.log(f"{unique}.Echo"), "component ready")
    assert '{"greeting": "overridden", "more": 1}' in device.log(f"{unique}.Echo")
    cloud.subscribe(f"said/{device.thing}", 1)
    cloud.publish(f"tell/{device.thing}", b"ping", qos=1)
    answer: MQTTMessage = cloud.user_data_get().get(timeout=PATIENCE)
    assert (answer.topic, answer.payload) == (f"said/{device.thing}", b"PING")
    eventually(lambda: states(device).get(f"{unique}.Echo") == "RUNNING", "running reported")


def test_a_retained_message_waits_for_its_subscriber(
    fleet: Fleet, device: DeviceProcess, cloud: Client, unique: str
) -> None:
    cloud.publish(f"tell/{device.thing}", b"kept", qos=1, retain=True).wait_for_publish(PATIENCE)
    fleet.publish(f"{unique}.Echo", **echo())
    succeeds(device, {f"{unique}.Echo": "1.0.0"})
    eventually(lambda: f"told tell/{device.thing} kept" in device.log(f"{unique}.Echo"), "retained message")
    cloud.publish(f"tell/{device.thing}", b"", qos=1, retain=True).wait_for_publish(PATIENCE)


def test_dependencies_are_found_in_the_cloud_and_what_is_left_out_is_removed(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    base, top, other = f"{unique}.Base", f"{unique}.Top", f"{unique}.Other"
    for version in ("1.0.0", "1.2.0", "2.0.0"):
        fleet.publish(base, FOREVER, version=version)
    fleet.publish(top, FOREVER, dependencies={base: {"VersionRequirement": "^1.0.0"}})
    fleet.publish(other, FOREVER, files={"x": "y"})
    succeeds(device, {top: "1.0.0", other: "1.0.0"})
    eventually(lambda: versions(device) == {base: "1.2.0", top: "1.0.0", other: "1.0.0"}, "all reported")
    assert (device.root / "packages" / "artifacts-unarchived" / other / "1.0.0" / "code" / "x").read_text() == "y"
    succeeds(device, {top: "1.0.0"})
    eventually(lambda: versions(device) == {base: "1.2.0", top: "1.0.0"}, "removal reported")
    assert not (device.root / "packages" / "artifacts" / other / "1.0.0").exists()


def test_a_failed_deployment_is_rolled_back_with_its_configuration(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    name, kept = f"{unique}.A", f"{unique}.Kept"
    show = {"startup": "echo version {configuration:/version} of {artifacts:path}"}
    fleet.publish(name, show, version="1.0.0", configuration={"version": "one"})
    fleet.publish(name, {"startup": "exit 9"}, version="1.1.0", configuration={"version": "two"})
    fleet.publish(kept, FOREVER)
    succeeds(device, {name: "1.0.0", kept: "1.0.0"})
    pid = device.events("script_started")[-1]["pid"] if device.events("script_started") else 0
    result = fails(device, {name: "1.1.0", kept: "1.0.0"})
    assert "FAILED_ROLLBACK_COMPLETE" in str(result)
    assert "exited with code 9" in str(result)
    assert device.log(name).count("version one of") == 2  # at first, and again after the roll-back
    eventually(lambda: versions(device).get(name) == "1.0.0", "roll-back reported")
    assert psutil.pid_exists(pid)
    succeeds(device, {name: "1.0.0", kept: "1.0.0"})  # and the device is as good as before


def test_a_failed_deployment_stays_if_that_is_asked_for(fleet: Fleet, device: DeviceProcess, unique: str) -> None:
    name = f"{unique}.A"
    fleet.publish(name, FOREVER)
    fleet.publish(name, {"install": "exit 1"}, version="1.1.0")
    succeeds(device, {name: "1.0.0"})
    result = fails(device, {name: "1.1.0"}, failureHandlingPolicy="DO_NOTHING")
    assert "FAILED_ROLLBACK_NOT_REQUESTED" in str(result)
    eventually(lambda: states(device) == {name: "BROKEN"}, "broken component reported")
    fleet.publish(name, FOREVER, version="1.2.0")
    succeeds(device, {name: "1.2.0"})


def test_a_component_that_dies_three_times_is_broken_until_the_next_deployment_of_anything(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    name, other = f"{unique}.Dies", f"{unique}.Other"
    fleet.publish(name, {"run": "echo pid $$; exec sleep 3600"})
    fleet.publish(other, FOREVER)
    succeeds(device, {name: "1.0.0"})

    def pids() -> list[int]:
        return [int(line.removeprefix("pid ")) for line in device.log(name).splitlines() if line.startswith("pid ")]

    for number in (1, 2, 3):
        eventually(lambda number=number: len(pids()) == number, f"start {number}")  # type: ignore[misc]
        os.kill(pids()[-1], signal.SIGKILL)
    eventually(lambda: states(device)[name] == "BROKEN", "given up")
    assert stat.S_IMODE((device.root / "work" / name).stat().st_mode) == 0o700
    succeeds(device, {name: "1.0.0", other: "1.0.0"})
    assert len(pids()) == 4


def test_an_altered_artifact_changes_nothing_on_the_device(fleet: Fleet, device: DeviceProcess, unique: str) -> None:
    name = f"{unique}.A"
    fleet.publish(name, FOREVER, files={"x": "1"})
    fleet.publish(name, FOREVER, version="1.1.0", files={"x": "2"})
    succeeds(device, {name: "1.0.0"})
    fleet.s3.put_object(Bucket=BUCKET, Key=f"{name}/1.1.0/code.zip", Body=b"altered")
    result = fails(device, {name: "1.1.0"})
    assert "SHA-256" in str(result)
    assert "FAILED_NO_STATE_CHANGE" in str(result)
    eventually(lambda: versions(device) == {name: "1.0.0"}, "the component reported")


def test_a_deployment_waits_while_a_component_defers_it(fleet: Fleet, device: DeviceProcess, unique: str) -> None:
    busy, other = f"{unique}.Busy", f"{unique}.Other"
    component = echo()
    component["lifecycle"] = {"run": {"script": python("echo.py"), "setenv": {"DEFER_MS": "700"}}}
    fleet.publish(busy, **component)
    fleet.publish(other, FOREVER)
    succeeds(device, {busy: "1.0.0"})
    eventually(lambda: "ready" in device.log(busy), "component ready")
    deployment = succeeds(device, {busy: "1.0.0", other: "1.0.0"})
    deferred = [event for event in device.events("deployment_deferred") if event["deployment"] == deployment]
    assert [event["seconds"] for event in deferred] == [0.7]
    eventually(lambda: f"updated {deployment}" in device.log(busy), "post-update event")
    assert device.log(busy).count(f"asked {deployment}") == 2
    assert "bye" not in device.log(busy)


def test_components_are_not_asked_if_the_policy_says_so(fleet: Fleet, device: DeviceProcess, unique: str) -> None:
    busy, other = f"{unique}.Busy", f"{unique}.Other"
    fleet.publish(busy, **echo())
    fleet.publish(other, FOREVER)
    succeeds(device, {busy: "1.0.0"})
    eventually(lambda: "ready" in device.log(busy), "component ready")
    skip = {"action": "SKIP_NOTIFY_COMPONENTS", "timeoutInSeconds": 60}
    succeeds(device, {busy: "1.0.0", other: "1.0.0"}, componentUpdatePolicy=skip)
    assert "asked" not in device.log(busy)


def test_a_restarted_device_resumes_its_components_and_installs_again(own_device: DeviceProcess, unique: str) -> None:
    device, fleet = own_device, own_device.fleet
    name = f"{unique}.A"
    fleet.publish(name, {"install": "echo install", **echo()["lifecycle"]}, files=echo()["files"],
                  configuration=echo(x=1)["configuration"])  # fmt: skip
    succeeds(device, {name: "1.0.0"})
    eventually(lambda: "ready" in device.log(name), "component ready")
    assert device.stop() == 0
    assert "bye" in device.log(name)
    device.start()
    eventually(lambda: device.log(name).count("ready") == 2, "component ready again")
    assert device.log(name).count("install") == 2
    succeeds(device, {name: "1.0.0"})
    assert device.log(name).count("ready") == 2  # nothing changed, so nothing restarts


def test_nothing_is_left_of_a_stopped_device_but_its_root(own_device: DeviceProcess, unique: str) -> None:
    device, fleet = own_device, own_device.fleet
    name = f"{unique}.A"
    fleet.publish(
        name,
        {"run": "sleep 100000 & echo child $! me $$; wait"},
        dependencies={"aws.greengrass.StreamManager": {"VersionRequirement": "^2.0.0", "DependencyType": "SOFT"}},
    )
    succeeds(device, {name: "1.0.0"})
    eventually(lambda: "me" in device.log(name), "component running")
    assert device.child is not None
    family = psutil.Process(device.child.pid).children(recursive=True)
    assert len(family) >= 3  # the shell, its child, and Stream Manager
    socket = Path(json.loads(device.text("device.json"))["ipc_socket"])
    assert socket.is_socket()
    assert device.stop() == 0
    eventually(lambda: all(is_gone(process.pid) for process in family), "end of all processes")
    assert not socket.exists()
    assert not (device.root / "device.json").exists()


def test_a_killed_device_leaves_nothing_running_once_it_is_back(own_device: DeviceProcess, unique: str) -> None:
    device, fleet = own_device, own_device.fleet
    name = f"{unique}.A"
    fleet.publish(name, {"run": "sleep 100000 & echo child $!; wait"})
    succeeds(device, {name: "1.0.0"})
    eventually(lambda: "child" in device.log(name), "component running")
    orphan = int(device.log(name).split()[1])
    device.kill()
    device.start()
    eventually(lambda: is_gone(orphan), "end of the orphan")
    eventually(lambda: device.log(name).count("child") == 2, "component running again")
    succeeds(device, {name: "1.0.0"})


def test_a_deployment_cut_off_by_a_power_cut_is_undone_and_done_again(own_device: DeviceProcess, unique: str) -> None:
    device, fleet = own_device, own_device.fleet
    name = f"{unique}.A"
    fleet.publish(name, {"startup": "echo {configuration:/v}"}, configuration={"v": "one"})
    slow = {"startup": "echo {configuration:/v}; test -e {work:path}/go || sleep 100000"}
    fleet.publish(name, slow, version="1.1.0", configuration={"v": "two"})
    succeeds(device, {name: "1.0.0"})
    deployment = fleet.deploy({name: "1.1.0"})
    eventually(lambda: "two" in device.log(name), "new version starting")
    device.kill()
    undo = device.root / "deployments" / "undo.json"
    before = undo.read_bytes()
    (device.root / "work" / name / "go").touch()
    device.start()
    assert fleet.result(device.thing, deployment)["coreDeviceExecutionStatus"] == "SUCCEEDED"
    assert device.log(name).split() == ["one", "two", "one", "two"]
    assert len(device.events("deployment_interrupted")) == 1
    # The power goes once more, between the note that the deployment has ended and the end of what undoes it.
    device.kill()
    undo.write_bytes(before)
    device.start()
    eventually(lambda: len(device.log(name).split()) == 5, "component started again")
    assert device.log(name).split()[-1] == "two"
    assert len(device.events("deployment_interrupted")) == 1
    assert not undo.exists()


def test_two_devices_cannot_share_a_root(fleet: Fleet, device: DeviceProcess, unique: str) -> None:
    second = DeviceProcess(fleet, device.root, f"{unique}-2")
    with pytest.raises(AssertionError, match="another core device is running there"):
        second.start()
    fleet.publish(f"{unique}.A", FOREVER)
    succeeds(device, {f"{unique}.A": "1.0.0"})  # the first one is none the worse


def test_a_long_root_still_has_a_usable_socket(local_aws: LocalAwsProcess, unique: str, tmp_path: Path) -> None:
    fleet = Fleet(local_aws)
    fleet.add(unique)
    root = tmp_path / ("long" * 30) / "root"
    fleet.publish(f"{unique}.Echo", **echo())
    with DeviceProcess(fleet, root, unique) as device:
        succeeds(device, {f"{unique}.Echo": "1.0.0"})
        eventually(lambda: "ready" in device.log(f"{unique}.Echo"), "component ready")
        socket = Path(json.loads(device.text("device.json"))["ipc_socket"])
    assert not socket.parent.exists()


def test_interrupt_ends_a_device_as_terminate_does(own_device: DeviceProcess) -> None:
    device = own_device
    assert device.child is not None
    device.child.send_signal(signal.SIGINT)
    assert device.child.wait(PATIENCE) == 0


def test_components_get_role_credentials_only_with_the_token_exchange_service(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    show = "import boto3\\nprint(boto3.client('sts').get_caller_identity()['Arn'])"
    script = {"startup": python("who.py")}
    files = {"who.py": show.replace("\\n", "\n")}
    tes = {"aws.greengrass.TokenExchangeService": {"VersionRequirement": ">=2.0.0 <3.0.0"}}
    fleet.publish(f"{unique}.With", script, files=files, dependencies=tes)
    succeeds(device, {f"{unique}.With": "1.0.0"})
    assert f"assumed-role/GreengrassV2TokenExchangeRole/{device.thing}" in device.log(f"{unique}.With")
    fleet.publish(f"{unique}.Without", script, files=files)
    result = fails(device, {f"{unique}.With": "1.0.0", f"{unique}.Without": "1.0.0"})
    assert "Without is BROKEN" in str(result)
    assert "NoCredentialsError" in device.log(f"{unique}.Without")


def test_what_depends_soft_on_the_token_exchange_service_starts_before_it_and_finds_its_port(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    show = (
        "import boto3, os\n"
        "from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2 as Client\n"
        "assert 'AWS_CONTAINER_CREDENTIALS_FULL_URI' not in os.environ\n"
        "from fedgrass.edge.credentials import find_service\n"
        "class Ipc:\n"
        "    def get_configuration(self, name):\n"
        "        return Client().get_configuration(component_name=name, key_path=[]).value\n"
        "find_service(Ipc())\n"
        "print(boto3.client('sts').get_caller_identity()['Arn'], flush=True)\n"
        "os._exit(0)\n"
    )
    tes = {"aws.greengrass.TokenExchangeService": {"VersionRequirement": "^2.0.0", "DependencyType": "SOFT"}}
    name = f"{unique}.Early"
    fleet.publish(name, {"startup": python("who.py")}, files={"who.py": show}, dependencies=tes)
    succeeds(device, {name: "1.0.0"})
    assert f"assumed-role/GreengrassV2TokenExchangeRole/{device.thing}" in device.log(name)


def test_a_component_sees_the_nucleus_variables_and_none_of_the_devices_own(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    name = f"{unique}.A"
    fleet.publish(name, {"startup": {"script": "env", "setenv": {"OWN": "{iot:thingName}"}}})
    succeeds(device, {name: "1.0.0"})
    seen = dict(line.split("=", 1) for line in device.log(name).splitlines() if "=" in line)
    assert seen["AWS_IOT_THING_NAME"] == seen["OWN"] == device.thing
    assert {"SVCUID", "AWS_REGION", "GGC_VERSION", "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"} <= seen.keys()
    assert "PYTHONPATH" not in seen
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in seen


def test_a_requirement_that_a_builtin_component_does_not_meet_is_named(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    fleet.publish(
        f"{unique}.A", FOREVER, dependencies={"aws.greengrass.StreamManager": {"VersionRequirement": "^9.0.0"}}
    )
    assert "aws.greengrass.StreamManager ^9.0.0" in str(fails(device, {f"{unique}.A": "1.0.0"}))


UPLOAD = """
import os, sys
from stream_manager import *
from stream_manager.util import Util
client = StreamManagerClient()
if "tasks" not in client.list_streams():
    export = S3ExportTaskExecutorConfig(identifier="e")
    client.create_message_stream(MessageStreamDefinition(
        name="tasks", strategy_on_full=StrategyOnFull.RejectNewData, flush_on_write=True,
        export_definition=ExportDefinition(s3_task_executor=[export])))
thing = os.environ["AWS_IOT_THING_NAME"]
path = os.path.abspath("update")
open(path, "w").write("update of " + thing)
task = S3ExportTaskDefinition(input_url="file://" + path, bucket="core-device-tests", key="updates/" + thing)
client.append_message("tasks", Util.validate_and_serialize_to_json_bytes(task))
print("appended", flush=True)
"""


def test_a_component_uploads_through_stream_manager_which_comes_back_when_killed(
    fleet: Fleet, device: DeviceProcess, unique: str
) -> None:
    name = f"{unique}.Uploader"
    dependencies = {
        "aws.greengrass.TokenExchangeService": {"VersionRequirement": "^2.0.0"},
        "aws.greengrass.StreamManager": {"VersionRequirement": "^2.0.0", "DependencyType": "SOFT"},
    }
    for version in ("1.0.0", "1.1.0"):
        fleet.publish(name, {"startup": python("upload.py")}, version=version, files={"upload.py": UPLOAD},
                      dependencies=dependencies)  # fmt: skip
    succeeds(device, {name: "1.0.0"})
    key = {"Bucket": BUCKET, "Key": f"updates/{device.thing}"}

    def uploaded() -> bool:
        return bool(fleet.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"updates/{device.thing}").get("Contents"))

    eventually(uploaded, "upload")
    assert fleet.s3.get_object(**key)["Body"].read() == f"update of {device.thing}".encode()
    fleet.s3.delete_object(**key)
    before = device.events("stream_manager_running")
    psutil.Process(before[-1]["pid"]).kill()
    eventually(lambda: len(device.events("stream_manager_running")) > len(before), "Stream Manager back")
    succeeds(device, {name: "1.1.0"})
    eventually(uploaded, "upload after the restart")

"""Core devices, as Greengrass v2 knows them from their status messages."""

from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.greengrass import Greengrass
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import eventually


def health(components: list[dict[str, Any]], message_type: str = "COMPLETE", status: str = "HEALTHY") -> dict[str, Any]:
    return {
        "ggcVersion": "2.13.0",
        "platform": "linux",
        "architecture": "x86_64",
        "thing": "ignored: the topic says who it is",
        "overallDeviceStatus": status,
        "timestamp": 1_700_000_000_000,
        "messageType": message_type,
        "trigger": "NUCLEUS_LAUNCH",
        "components": components,
    }


def component(name: str, status: str, *, root: bool = True) -> dict[str, Any]:
    return {"componentName": name, "version": "1.0.0", "status": status, "isRoot": root, "fleetConfigArns": []}


def test_a_device_is_known_from_its_status_messages(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    topic = f"$aws/things/{unique}/greengrassv2/health/json"

    def installed(topology: str = "ALL") -> dict[str, str]:
        found = greengrass.client.list_installed_components(coreDeviceThingName=unique, topologyFilter=topology)
        return {one["componentName"]: one["lifecycleState"] for one in found["installedComponents"]}

    with MqttClient(local_aws.mqtt) as device:
        device.publish(topic, health([component("a", "RUNNING"), component("b", "RUNNING", root=False)]))
        eventually(lambda: unique in [one["coreDeviceThingName"] for one in listed(greengrass)])
        assert installed() == {"a": "RUNNING", "b": "RUNNING"}
        assert installed("ROOT") == {"a": "RUNNING"}

        device.publish(topic, health([component("a", "BROKEN")], "PARTIAL", "UNHEALTHY"))
        eventually(lambda: installed() == {"a": "BROKEN", "b": "RUNNING"})
        known = greengrass.client.get_core_device(coreDeviceThingName=unique)
        assert (known["status"], known["coreVersion"], known["platform"]) == ("UNHEALTHY", "2.13.0", "linux")
        assert known["lastStatusUpdateTimestamp"].timestamp() == 1_700_000_000

        device.publish(topic, b"not json")
        device.publish(topic, health([component("a", "RUNNING")]))
        eventually(lambda: installed() == {"a": "RUNNING"})


def listed(greengrass: Greengrass, **filters: str) -> list[dict[str, Any]]:
    pages = greengrass.client.get_paginator("list_core_devices").paginate(**filters)
    return [device for page in pages for device in page["coreDevices"]]


def test_devices_are_listed_by_group_and_status(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    target = greengrass.group(unique, f"{unique}-in")
    with MqttClient(local_aws.mqtt) as client:
        for thing, status in ((f"{unique}-in", "HEALTHY"), (f"{unique}-out", "UNHEALTHY")):
            client.publish(f"$aws/things/{thing}/greengrassv2/health/json", health([], status=status))
    eventually(
        lambda: f"{unique}-out" in [one["coreDeviceThingName"] for one in listed(greengrass, status="UNHEALTHY")]
    )
    assert [one["coreDeviceThingName"] for one in listed(greengrass, thingGroupArn=target)] == [f"{unique}-in"]


def test_a_deleted_device_is_unknown_until_it_reports_again(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    with MqttClient(local_aws.mqtt) as client:
        client.publish(f"$aws/things/{unique}/greengrassv2/health/json", health([]))
    eventually(lambda: unique in [one["coreDeviceThingName"] for one in listed(greengrass)])
    greengrass.client.delete_core_device(coreDeviceThingName=unique)
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException):
        greengrass.client.get_core_device(coreDeviceThingName=unique)

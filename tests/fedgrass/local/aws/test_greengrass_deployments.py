"""Deployments of Greengrass v2, as boto3 and a core device meet them."""

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.greengrass import Greengrass
from tests.fixtures.mqtt import MqttClient


def test_a_deployment_reaches_a_device_as_a_job_and_its_report_comes_back(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    greengrass.component(unique)
    target = greengrass.group(unique, unique)
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"$aws/things/{unique}/jobs/#")
        created = greengrass.client.create_deployment(
            targetArn=target,
            deploymentName="first",
            components={
                unique: {
                    "componentVersion": "1.0.0",
                    "configurationUpdate": {"merge": '{"a": {"b": 1}}', "reset": ["/c"]},
                }
            },
            deploymentPolicies={"componentUpdatePolicy": {"action": "SKIP_NOTIFY_COMPONENTS", "timeoutInSeconds": 5}},
        )
        offered = device.next_on(f"$aws/things/{unique}/jobs/notify-next").json()["execution"]
        assert offered["jobId"] == created["deploymentId"]
        document = offered["jobDocument"]
        assert document["targetArn"] == target
        assert document["thingGroupName"] == unique
        assert document["deploymentName"] == "first"
        assert document["failureHandlingPolicy"] == "ROLLBACK"
        assert document["componentUpdatePolicy"] == {"action": "SKIP_NOTIFY_COMPONENTS", "timeout": 5}
        assert document["components"][unique]["version"] == "1.0.0"
        assert document["components"][unique]["configurationUpdate"] == {"merge": {"a": {"b": 1}}, "reset": ["/c"]}

        report = {"status": "SUCCEEDED", "statusDetails": {"detailed-deployment-status": "SUCCESSFUL"}}
        device.publish(f"$aws/things/{unique}/jobs/{created['deploymentId']}/update", report)
        device.next_on(f"$aws/things/{unique}/jobs/{created['deploymentId']}/update/accepted")

    [effective] = greengrass.client.list_effective_deployments(coreDeviceThingName=unique)["effectiveDeployments"]
    assert (effective["deploymentId"], effective["coreDeviceExecutionStatus"]) == (created["deploymentId"], "SUCCEEDED")
    assert greengrass.client.get_deployment(deploymentId=created["deploymentId"])["deploymentStatus"] == "ACTIVE"


def test_a_failure_on_a_device_is_shown_with_its_cause(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    greengrass.component(unique)
    deployment = greengrass.deploy(greengrass.group(unique, unique), **{unique: "1.0.0"})
    details = {
        "detailed-deployment-status": "FAILED_ROLLBACK_COMPLETE",
        "deployment-failure-cause": "the model was refused",
    }
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"$aws/things/{unique}/jobs/#")
        device.publish(f"$aws/things/{unique}/jobs/{deployment}/update", {"status": "FAILED", "statusDetails": details})
        device.next_on(f"$aws/things/{unique}/jobs/{deployment}/update/accepted")
    [effective] = greengrass.client.list_effective_deployments(coreDeviceThingName=unique)["effectiveDeployments"]
    assert effective["coreDeviceExecutionStatus"] == "FAILED"
    assert effective["reason"] == "the model was refused"
    assert effective["statusDetails"]["errorStack"] == ["DEPLOYMENT_FAILURE", "FAILED_ROLLBACK_COMPLETE"]


def test_a_second_deployment_replaces_the_first_for_its_target(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique)
    greengrass.component(unique, "1.1.0")
    target = greengrass.group(unique, unique)
    first = greengrass.deploy(target, **{unique: "1.0.0"})
    second = greengrass.deploy(target, **{unique: "1.1.0"})
    latest = greengrass.client.list_deployments(targetArn=target)["deployments"]
    assert [one["deploymentId"] for one in latest] == [second]
    history = greengrass.client.list_deployments(targetArn=target, historyFilter="ALL")["deployments"]
    assert [(one["deploymentId"], one["deploymentStatus"], one["isLatestForTarget"]) for one in history] == [
        (second, "ACTIVE", True),
        (first, "INACTIVE", False),
    ]
    statuses = greengrass.client.list_effective_deployments(coreDeviceThingName=unique)["effectiveDeployments"]
    assert [one["coreDeviceExecutionStatus"] for one in statuses] == ["QUEUED", "CANCELED"]


def test_a_thing_that_joins_the_group_is_offered_its_deployment(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    greengrass.component(unique)
    deployment = greengrass.deploy(greengrass.group(unique), **{unique: "1.0.0"})
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"$aws/things/{unique}/jobs/notify-next")
        greengrass.join(unique, unique)
        assert device.next().json()["execution"]["jobId"] == deployment


def test_the_deployment_of_a_single_thing_completes_with_it(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    greengrass.component(unique)
    thing = local_aws.client("iot").create_thing(thingName=unique)["thingArn"]
    deployment = greengrass.deploy(thing, **{unique: "1.0.0"})
    with MqttClient(local_aws.mqtt) as device:
        device.subscribe(f"$aws/things/{unique}/jobs/#")
        device.publish(f"$aws/things/{unique}/jobs/{deployment}/update", {"status": "SUCCEEDED"})
        device.next_on(f"$aws/things/{unique}/jobs/{deployment}/update/accepted")
    assert greengrass.client.get_deployment(deploymentId=deployment)["deploymentStatus"] == "COMPLETED"


def test_a_cancelled_deployment_is_withdrawn(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique)
    deployment = greengrass.deploy(greengrass.group(unique, unique), **{unique: "1.0.0"})
    greengrass.client.cancel_deployment(deploymentId=deployment)
    assert greengrass.client.get_deployment(deploymentId=deployment)["deploymentStatus"] == "CANCELED"
    [effective] = greengrass.client.list_effective_deployments(coreDeviceThingName=unique)["effectiveDeployments"]
    assert effective["coreDeviceExecutionStatus"] == "CANCELED"
    with pytest.raises(greengrass.exceptions.ConflictException):
        greengrass.client.cancel_deployment(deploymentId=deployment)


def test_a_deployment_to_a_group_that_does_not_exist_is_refused(greengrass: Greengrass, unique: str) -> None:
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException, match=unique):
        greengrass.deploy(f"arn:aws:iot:us-east-1:123456789012:thinggroup/{unique}")


def test_a_deployment_of_an_unknown_version_is_refused(greengrass: Greengrass, unique: str) -> None:
    target = greengrass.group(unique)
    with pytest.raises(greengrass.exceptions.ValidationException, match=r"9\.9\.9 cannot be deployed"):
        greengrass.deploy(target, **{unique: "9.9.9"})


def test_a_merge_that_is_no_json_object_is_refused(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique)
    target = greengrass.group(unique)
    for merge in ("{", "[1]"):
        wanted = {unique: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": merge}}}
        with pytest.raises(greengrass.exceptions.ValidationException, match="merge"):
            greengrass.client.create_deployment(targetArn=target, components=wanted)

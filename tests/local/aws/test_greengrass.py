"""Greengrass v2 as boto3 and a core device meet it."""

import base64
import hashlib
import json
from typing import Any

import pytest

from local.aws.client import LocalAwsProcess
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import eventually


def recipe(name: str, version: str = "1.0.0", **parts: Any) -> bytes:
    whole = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": name,
        "ComponentVersion": version,
        "Manifests": [{"Platform": {"os": "linux", "runtime": "*"}, "Lifecycle": {}}],
    }
    return json.dumps({**whole, **parts}).encode()


class Greengrass:
    """boto3's client, and the two steps that most tests begin with."""

    def __init__(self, account: LocalAwsProcess) -> None:
        self.client = account.client("greengrassv2")
        self.exceptions = self.client.exceptions
        self._iot = account.client("iot")

    def settled(self, arn: str) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            status: dict[str, Any] = self.client.describe_component(arn=arn)["status"]
            return status if status["componentState"] in {"DEPLOYABLE", "FAILED"} else None

        found = eventually(settled)
        assert found is not None
        return found

    def component(self, name: str, version: str = "1.0.0", **parts: Any) -> str:
        arn: str = self.client.create_component_version(inlineRecipe=recipe(name, version, **parts))["arn"]
        assert self.settled(arn)["componentState"] == "DEPLOYABLE"
        return arn

    def group(self, name: str, *things: str) -> str:
        arn: str = self._iot.create_thing_group(thingGroupName=name)["thingGroupArn"]
        for thing in things:
            self.join(name, thing)
        return arn

    def join(self, group: str, thing: str) -> None:
        self._iot.create_thing(thingName=thing)
        self._iot.add_thing_to_thing_group(thingGroupName=group, thingName=thing)

    def deploy(self, target: str, **components: str) -> str:
        wanted = {name: {"componentVersion": version} for name, version in components.items()}
        deployment: str = self.client.create_deployment(targetArn=target, components=wanted)["deploymentId"]
        return deployment


@pytest.fixture(scope="module")
def greengrass(local_aws: LocalAwsProcess) -> Greengrass:
    return Greengrass(local_aws)


# Components


def test_a_version_becomes_deployable_with_the_digests_of_its_artifacts(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    s3 = local_aws.client("s3")
    s3.create_bucket(Bucket=unique)
    s3.put_object(Bucket=unique, Key="a.zip", Body=b"content")
    manifest = {"Platform": {"os": "linux"}, "Artifacts": [{"Uri": f"s3://{unique}/a.zip", "Unarchive": "ZIP"}]}
    created = greengrass.client.create_component_version(inlineRecipe=recipe(unique, Manifests=[manifest]))
    assert created["status"]["componentState"] == "REQUESTED"
    assert greengrass.settled(created["arn"])["componentState"] == "DEPLOYABLE"
    stored = json.loads(greengrass.client.get_component(arn=created["arn"], recipeOutputFormat="JSON")["recipe"])
    [artifact] = stored["Manifests"][0]["Artifacts"]
    assert artifact["Algorithm"] == "SHA-256"
    assert base64.b64decode(artifact["Digest"]) == hashlib.sha256(b"content").digest()
    assert artifact["Unarchive"] == "ZIP"


def test_a_version_whose_artifact_is_missing_fails_and_names_it(greengrass: Greengrass, unique: str) -> None:
    uri = f"s3://{unique}/missing.zip"
    created = greengrass.client.create_component_version(
        inlineRecipe=recipe(unique, Manifests=[{"Artifacts": [{"Uri": uri}]}])
    )
    status = greengrass.settled(created["arn"])
    assert status["componentState"] == "FAILED"
    assert "cannot be read" in status["errors"][uri]


def test_a_recipe_in_yaml_is_taken_and_given_back_in_either_format(greengrass: Greengrass, unique: str) -> None:
    text = f"""
RecipeFormatVersion: 2020-01-25
ComponentName: {unique}
ComponentVersion: 1.0.0
ComponentDescription: in YAML
Manifests:
  - Lifecycle: {{run: sleep 1}}
"""
    arn = greengrass.client.create_component_version(inlineRecipe=text.encode())["arn"]
    assert (
        b"ComponentDescription: in YAML"
        in greengrass.client.get_component(arn=arn, recipeOutputFormat="YAML")["recipe"]
    )
    as_json = json.loads(greengrass.client.get_component(arn=arn, recipeOutputFormat="JSON")["recipe"])
    assert as_json["RecipeFormatVersion"] == "2020-01-25"
    assert as_json["Manifests"][0]["Lifecycle"] == {"run": "sleep 1"}


def test_a_version_that_exists_is_a_conflict(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique)
    with pytest.raises(greengrass.exceptions.ConflictException, match="already exists") as caught:
        greengrass.client.create_component_version(inlineRecipe=recipe(unique))
    assert caught.value.response["resourceType"] == "component version"


def test_the_same_request_twice_is_one_version(greengrass: Greengrass, unique: str) -> None:
    first = greengrass.client.create_component_version(inlineRecipe=recipe(unique), clientToken=unique)
    again = greengrass.client.create_component_version(inlineRecipe=recipe(unique), clientToken=unique)
    assert first["arn"] == again["arn"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (recipe("bad name"), "ComponentName"),
        (recipe("x", "1.0"), "ComponentVersion"),
        (recipe("x", RecipeFormatVersion="2019-01-01"), "RecipeFormatVersion"),
        (recipe("x", Manifests=[]), "Manifests"),
        (recipe("x", ComponentDependencies={"y": {"VersionRequirement": "newest"}}), "ComponentDependencies"),
        (b"just text", "map of keys"),
        (b"{", "neither JSON nor YAML"),
        (recipe("x", ComponentDescription="d" * 16_000), "16000"),
    ],
)
def test_a_recipe_that_is_not_valid_is_refused_with_the_field(greengrass: Greengrass, data: bytes, field: str) -> None:
    with pytest.raises(greengrass.exceptions.ValidationException, match=field):
        greengrass.client.create_component_version(inlineRecipe=data)


def test_versions_are_listed_newest_first_page_by_page(greengrass: Greengrass, unique: str) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        arn = greengrass.component(unique, version)
    pages = greengrass.client.get_paginator("list_component_versions").paginate(
        arn=arn.rsplit(":", 2)[0], PaginationConfig={"PageSize": 2}
    )
    assert [one["componentVersion"] for page in pages for one in page["componentVersions"]] == [
        "1.10.0",
        "1.9.0",
        "1.0.0",
    ]
    [mine] = [one for one in greengrass.client.list_components()["components"] if one["componentName"] == unique]
    assert mine["latestVersion"]["componentVersion"] == "1.10.0"


def test_a_component_that_was_never_created_has_no_versions(greengrass: Greengrass, unique: str) -> None:
    arn = f"arn:aws:greengrass:us-east-1:123456789012:components:{unique}"
    assert greengrass.client.list_component_versions(arn=arn)["componentVersions"] == []
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException):
        greengrass.client.describe_component(arn=f"{arn}:versions:1.0.0")


def test_a_deleted_version_is_gone(greengrass: Greengrass, unique: str) -> None:
    arn = greengrass.component(unique)
    greengrass.client.delete_component(arn=arn)
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException):
        greengrass.client.get_component(arn=arn)


def resolve(greengrass: Greengrass, name: str, **requirements: str) -> list[dict[str, Any]]:
    resolved: list[dict[str, Any]] = greengrass.client.resolve_component_candidates(
        platform={"attributes": {"os": "linux", "architecture": "x86_64", "runtime": "*"}},
        componentCandidates=[{"componentName": name, "versionRequirements": requirements}],
    )["resolvedComponentVersions"]
    return resolved


def test_the_newest_version_that_all_requirements_allow_is_resolved(greengrass: Greengrass, unique: str) -> None:
    for version in ("1.0.0", "1.4.0", "1.5.0", "2.0.0"):
        greengrass.component(unique, version)
    [found] = resolve(greengrass, unique, group="^1.0.0", other="<1.5.0")
    assert found["componentVersion"] == "1.4.0"
    assert json.loads(found["recipe"])["ComponentVersion"] == "1.4.0"
    [pinned] = resolve(greengrass, unique, group="1.0.0")
    assert pinned["componentVersion"] == "1.0.0"


def test_requirements_that_cannot_be_met_are_named(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique, "1.0.0")
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException, match=r"group requires \^2.0.0.*1\.0\.0"):
        resolve(greengrass, unique, group="^2.0.0")


def test_a_version_for_another_platform_is_not_resolved(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique, "1.0.0", Manifests=[{"Platform": {"os": "linux", "architecture": "/x86_64|amd64/"}}])
    greengrass.component(unique, "1.1.0", Manifests=[{"Platform": {"os": "windows"}}])
    assert [one["componentVersion"] for one in resolve(greengrass, unique)] == ["1.0.0"]


def test_an_artifact_can_be_had_by_its_presigned_url(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    from urllib.request import urlopen

    s3 = local_aws.client("s3")
    s3.create_bucket(Bucket=unique)
    s3.put_object(Bucket=unique, Key="folder/a.zip", Body=b"content")
    arn = greengrass.component(unique, Manifests=[{"Artifacts": [{"Uri": f"s3://{unique}/folder/a.zip"}]}])
    url = greengrass.client.get_component_version_artifact(arn=arn, artifactName="a.zip")["preSignedUrl"]
    with urlopen(url) as response:
        assert response.read() == b"content"


def test_an_operation_that_is_not_here_says_so(greengrass: Greengrass) -> None:
    with pytest.raises(greengrass.exceptions.ClientError, match="local AWS has no GET /greengrass/servicerole"):
        greengrass.client.get_service_role_for_account()


# Deployments


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


# Core devices


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


def test_the_calls_that_the_gdk_makes_to_publish_work(local_aws: LocalAwsProcess, unique: str) -> None:
    """In the order of GDK 1.6.2's ``component publish``."""
    sts, s3, greengrass = (local_aws.client(name) for name in ("sts", "s3", "greengrassv2"))
    account = sts.get_caller_identity()["Account"]
    arn = f"arn:aws:greengrass:us-east-1:{account}:components:{unique}"
    assert greengrass.list_component_versions(arn=arn)["componentVersions"] == []
    bucket = f"{unique}-us-east-1-{account}"
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.get_bucket_location(Bucket=bucket)
    assert caught.value.response["Error"]["Code"] == "NoSuchBucket"
    s3.create_bucket(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    s3.put_object(Bucket=bucket, Key=f"{unique}/1.0.0/a.zip", Body=b"zip")
    manifest = {"Artifacts": [{"Uri": f"s3://{bucket}/{unique}/1.0.0/a.zip"}]}
    created = greengrass.create_component_version(inlineRecipe=recipe(unique, Manifests=[manifest]))
    assert created["arn"] == f"{arn}:versions:1.0.0"
    assert [one["componentVersion"] for one in greengrass.list_component_versions(arn=arn)["componentVersions"]] == [
        "1.0.0"
    ]

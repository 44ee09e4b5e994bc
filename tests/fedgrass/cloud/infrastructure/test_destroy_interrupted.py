"""`destroy` stopped before each single call that it makes, and run again: nothing of the fleet is left.

Each fleet has one of everything that destroy looks for. Its stack is the part of the template that destroy reads, so that
some hundred of them are made in a minute. The stand-in lags behind what was detached, as AWS does.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint import decode

from fedgrass.cloud.infrastructure.destroy import destroy
from fedgrass.cloud.infrastructure.identity import KEY, make_key
from fedgrass.cloud.infrastructure.provision import policy_name, provision
from fedgrass.cloud.infrastructure.script import Steps, identify
from fedgrass.cloudformation import StackOutputs, stack_name
from fedgrass.errors import InfrastructureError
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.protocol.device_policy import policy_prefix
from fedgrass.protocol.names import fleet_digest, job_prefix, round_topic, sum_request_key
from tests.fixtures.doubles import double
from tests.fixtures.local_aws import local_aws, unique
from tests.fixtures.places import TEMPLATE
from tests.fixtures.waiting import eventually

__all__ = ["local_aws", "unique"]

pytestmark = pytest.mark.end_to_end
_JOB_LOGS = "/aws/sagemaker/ProcessingJobs"
_AT_ONCE = 6


class Stopped(BaseException):
    """Ctrl-C, a closed laptop, a lost link: none of them is an `Exception` that code could take for something else."""


class Account:
    """What of a boto3 session is used, with clients that all share: making one takes longer than what it is used for.

    Each thread can count its calls, and have itself stopped before one of them.
    """

    region_name = "us-east-1"

    def __init__(self) -> None:
        self._session = boto3.Session()
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._own = threading.local()
        self._session.events.register("before-call", self._called)

    def client(self, name: str) -> Any:
        with self._lock:
            if name not in self._clients:
                connect: Callable[..., Any] = self._session.client
                self._clients[name] = connect(name)
            return self._clients[name]

    def get_credentials(self) -> Any:
        return self._session.get_credentials()

    @contextmanager
    def counting(self, stop_before: int | None = None) -> Iterator[list[str]]:
        self._own.made, self._own.stop_before = [], stop_before
        try:
            yield self._own.made
        finally:
            self._own.made = None

    def _called(self, model: Any, **_: Any) -> None:
        made = getattr(self._own, "made", None)
        if made is not None:
            if len(made) == self._own.stop_before:
                raise Stopped(model.name)
            made.append(model.name)


def stack(fleet: str) -> dict[str, Any]:
    document, _ = decode.decode(str(TEMPLATE))
    whole = json.loads(json.dumps(document))
    kept = ("Bucket", "BucketPolicy", "ThingGroup", "ModelPackageGroup")
    states = {"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 600, "End": True}}}
    machine = {
        "StateMachineName": f"fedgrass-{fleet}-round",
        "RoleArn": "arn:aws:iam::123456789012:role/r",
        "DefinitionString": json.dumps(states),
    }
    return {
        "Parameters": {
            name: whole["Parameters"][name]
            for name in ("Fleet", "FleetDigest", "BucketName", "ModelComponent", "UpdateRetentionDays")
        },
        "Conditions": {"BucketIsNamed": whole["Conditions"]["BucketIsNamed"]},
        "Resources": {
            **{name: whole["Resources"][name] for name in kept},
            "StateMachine": {"Type": "AWS::StepFunctions::StateMachine", "Properties": machine},
            "RoundSchedule": {"Type": "AWS::Events::Rule", "Properties": {"ScheduleExpression": "rate(1 day)"}},
        },
    }


class Whole:
    """A fleet with one of everything."""

    def __init__(self, session: Account, fleet: str, folder: Path, key: Path) -> None:
        self.session = session
        self.fleet = fleet
        self.component = f"com.fedgrass.GlobalModel.{fleet}"
        parameters = {"Fleet": fleet, "FleetDigest": fleet_digest(fleet), "ModelComponent": self.component}
        cloudformation = session.client("cloudformation")
        cloudformation.create_stack(
            StackName=stack_name(fleet),
            TemplateBody=json.dumps(stack(fleet)),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        )
        found = cloudformation.describe_stack_resources(StackName=stack_name(fleet))["StackResources"]
        names = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found}
        self.bucket, self.group, self.machine = names["Bucket"], names["ModelPackageGroup"], names["StateMachine"]
        self.thing, self.old_thing = f"{fleet}:press", f"{fleet}-old"
        self.target = f"arn:aws:iot:us-east-1:123456789012:thinggroup/{fleet}"
        outputs = StackOutputs(**{**dict.fromkeys(StackOutputs.__dataclass_fields__, "x"), "fleet": fleet})
        session.client("iot").create_thing(thingName=self.old_thing)
        for thing in (self.thing, self.old_thing):
            place = folder / thing.replace(":", "_")
            place.mkdir(parents=True)
            (place / KEY).write_bytes(key.read_bytes())
            provision(
                double(session),
                outputs,
                identify(double(session)),
                thing,
                place,
                Steps(dry_run=False, tell=lambda _: None),
            )
        self.certificates = self._certificates()
        self._data()
        self._what_runs()

    def _certificates(self) -> set[str]:
        iot = self.session.client("iot")
        policies = [policy_name(self.fleet, thing) for thing in (self.thing, self.old_thing)]
        return {arn for policy in policies for arn in iot.list_targets_for_policy(policyName=policy)["targets"]}

    def _data(self) -> None:
        s3, session = self.session.client("s3"), self.session
        for content in (b"1", b"2"):
            s3.put_object(Bucket=self.bucket, Key=f"models/{self.fleet}/1.0.0/model.json", Body=content)
        s3.put_object(Bucket=self.bucket, Key=sum_request_key(self.fleet, 1, self.thing), Body=b"sealed seeds")
        manifest = {"Artifacts": [{"Uri": f"s3://{self.bucket}/models/{self.fleet}/1.0.0/model.json"}]}
        recipe = {
            "RecipeFormatVersion": "2020-01-25",
            "ComponentName": self.component,
            "ComponentVersion": "1.0.0",
            "Manifests": [manifest],
        }
        greengrass = session.client("greengrassv2")
        arn = greengrass.create_component_version(inlineRecipe=json.dumps(recipe))["arn"]
        eventually(lambda: greengrass.describe_component(arn=arn)["status"]["componentState"] == "DEPLOYABLE")
        session.client("sagemaker").create_model_package(ModelPackageGroupName=self.group, ModelPackageDescription="m")

    def _what_runs(self) -> None:
        session = self.session
        session.client("stepfunctions").start_execution(stateMachineArn=self.machine)
        session.client("greengrassv2").create_deployment(
            targetArn=self.target, components={self.component: {"componentVersion": "1.0.0"}}
        )
        cluster = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
        session.client("sagemaker").create_processing_job(
            ProcessingJobName=f"{job_prefix(self.fleet)}x-000001-0123456789",
            RoleArn="arn:aws:iam::123456789012:role/r",
            AppSpecification={"ImageUri": "i", "ContainerEntrypoint": ["sleep", "300"]},
            Environment={"FEDGRASS_FLEET": self.fleet},
            ProcessingResources={"ClusterConfig": cluster},
        )
        logs = session.client("logs")
        with_group = {"logGroupName": _JOB_LOGS}
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(**with_group)
        logs.create_log_stream(**with_group, logStreamName=f"{job_prefix(self.fleet)}x-000001-0123456789/algo-1")
        session.client("iot-data").publish(topic=round_topic(self.fleet), qos=1, retain=True, payload=b"{}")

    def left(self) -> list[str]:
        """What there is of it."""
        client = self.session.client
        iot, sagemaker, logs = client("iot"), client("sagemaker"), client("logs")
        fleet, greengrass = self.fleet, client("greengrassv2")
        prefix = job_prefix(fleet)
        jobs = sagemaker.list_processing_jobs(NameContains=prefix)["ProcessingJobSummaries"]
        listed = {
            "stack": [one["StackName"] for one in client("cloudformation").describe_stacks()["Stacks"]],
            "thing": [one["thingName"] for one in iot.list_things()["things"]],
            "group": [one["groupName"] for one in iot.list_thing_groups()["thingGroups"]],
            "bucket": [one["Name"] for one in client("s3").list_buckets()["Buckets"]],
            "models": [
                one["ModelPackageGroupName"]
                for one in sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
            ],
            "component": [one["componentName"] for one in greengrass.list_components()["components"]],
            "machine": [one["name"] for one in client("stepfunctions").list_state_machines()["stateMachines"]],
        }
        found = [
            f"{kind} {name}"
            for kind, names in listed.items()
            for name in names
            if fleet in name and name != self.old_thing
        ]
        found += [
            name["policyName"]
            for name in iot.list_policies()["policies"]
            if name["policyName"].startswith(policy_prefix(fleet))
        ]
        found += [
            one["certificateArn"]
            for one in iot.list_certificates(pageSize=250)["certificates"]
            if one["certificateArn"] in self.certificates
        ]
        found += [
            one["deploymentId"]
            for one in greengrass.list_deployments(targetArn=self.target, historyFilter="ALL")["deployments"]
        ]
        found += [one["ProcessingJobName"] for one in jobs if one["ProcessingJobStatus"] == "InProgress"]
        found += [
            one["logStreamName"]
            for one in logs.describe_log_streams(logGroupName=_JOB_LOGS, logStreamNamePrefix=prefix)["logStreams"]
        ]
        found += [
            one["topic"]
            for one in client("iot-data").list_retained_messages(maxResults=200)["retainedTopics"]
            if one["topic"] == round_topic(fleet)
        ]
        return found


@pytest.fixture
def account(local_aws: LocalAwsProcess, monkeypatch: pytest.MonkeyPatch) -> Account:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    return Account()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    make_key(folder)
    return folder / KEY


def test_a_fleet_is_removed_whole(account: Account, key: Path, unique: str, tmp_path: Path) -> None:
    fleet = Whole(account, unique, tmp_path / "devices", key)
    assert len(fleet.left()) >= 15
    destroy(double(fleet.session), fleet=unique)
    assert fleet.left() == []
    # The thing that was there before has lost what it was given, and nothing else.
    assert fleet.session.client("iot").list_thing_principals(thingName=fleet.old_thing)["principals"] == []
    assert not destroy(double(fleet.session), fleet=unique)


@pytest.mark.skipif(
    "FEDGRASS_ALL_CRASHES" not in os.environ, reason="a minute or more; a sample of it runs in the next test"
)
def test_stopped_before_any_call_it_goes_on_when_run_again(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    assert stopped_everywhere(account, key, unique, tmp_path, every=1) == {}


def test_stopped_before_some_of_its_calls_it_goes_on_when_run_again(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    assert stopped_everywhere(account, key, unique, tmp_path, every=9) == {}


def stopped_everywhere(account: Account, key: Path, unique: str, folder: Path, *, every: int) -> dict[str, list[str]]:
    """What was left, by the call before which destroy was stopped."""
    Whole(account, f"{unique}0", folder / "0", key)
    with account.counting() as calls:
        destroy(double(account), fleet=f"{unique}0")
    points = range(0, len(calls), every)

    def stopped_before(call: int) -> list[str]:
        fleet = Whole(account, f"{unique}{call}x", folder / f"{call}x", key)
        with (
            account.counting(stop_before=call),
            suppress(Stopped),
        ):  # the last ones may not come: waiting is not always alike
            destroy(double(account), fleet=fleet.fleet)
        destroy(double(account), fleet=fleet.fleet)
        left = fleet.left()
        print(f"stopped before call {call}, {calls[call]}, and run again: {len(left)} left", flush=True)
        return left

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = list(pool.map(stopped_before, points))
    remaining = sum(map(len, results))
    print(
        f"destroy makes {len(calls)} calls; stopped before {len(results)} of them and run again, it left {remaining} things"
    )
    return {f"{call} {calls[call]}": left for call, left in zip(points, results, strict=True) if left}


@pytest.mark.parametrize("stop_before", [25, 40, 55])
def test_what_is_kept_stays_kept_however_often_it_is_run(
    account: Account, key: Path, unique: str, tmp_path: Path, stop_before: int
) -> None:
    fleet = Whole(account, unique, tmp_path / "devices", key)
    with account.counting(stop_before=stop_before), suppress(Stopped):
        destroy(double(account), fleet=unique, keep_models=True)
    destroy(double(account), fleet=unique, keep_models=True)
    kept = {f"bucket {fleet.bucket}", f"models {fleet.group}", f"component {fleet.component}"}
    assert kept <= set(fleet.left())
    destroy(double(fleet.session), fleet=unique)
    assert kept <= set(fleet.left())
    assert not [one for one in fleet.left() if one.startswith(("stack", "thing", "group", "machine"))]


def test_data_whose_stack_somebody_deleted_is_found_by_its_marks(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    fleet = Whole(account, unique, tmp_path / "devices", key)
    fleet.session.client("cloudformation").delete_stack(StackName=stack_name(unique))
    assert any(one.startswith("bucket") for one in fleet.left())
    assert destroy(double(fleet.session), fleet=unique)
    # Its thing group is gone, and with it what ran for it.
    assert [one for one in fleet.left() if one.startswith(("bucket", "models", "component", "thing"))] == []


def test_another_fleet_s_stack_thing_and_jobs_are_left_alone(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    mine, other = f"{unique}-{'m' * 20}1", f"{unique}-{'m' * 20}2"  # more in common than a job's name shows
    fleet, neighbour = Whole(account, mine, tmp_path / "a", key), Whole(account, other, tmp_path / "b", key)
    before = sorted(neighbour.left())
    destroy(double(fleet.session), fleet=mine)
    assert sorted(neighbour.left()) == before
    iot = fleet.session.client("iot")
    outputs = StackOutputs(**{**dict.fromkeys(StackOutputs.__dataclass_fields__, "x"), "fleet": mine})
    steps = Steps(dry_run=False, tell=lambda _: None)
    with pytest.raises(InfrastructureError, match=f"is of fleet '{other}'"):
        provision(
            double(fleet.session), outputs, identify(double(fleet.session)), neighbour.thing, tmp_path / "c", steps
        )
    assert iot.describe_thing(thingName=neighbour.thing)
    destroy(double(fleet.session), fleet=other)


def test_a_protected_stack_is_told_before_anything_is_removed(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    fleet = Whole(account, unique, tmp_path / "devices", key)
    before = sorted(fleet.left())
    session = boto3.Session()

    def protect(parsed: Any, **_: Any) -> None:
        for one in parsed["Stacks"]:
            one["EnableTerminationProtection"] = True

    session.events.register("after-call.cloudformation.DescribeStacks", protect)
    with pytest.raises(InfrastructureError, match=r"protected from deletion.*update-termination-protection"):
        destroy(double(session), fleet=unique)
    assert sorted(fleet.left()) == before
    destroy(double(fleet.session), fleet=unique)


def test_provision_stopped_before_any_call_goes_on_and_leaves_no_certificate_behind(
    account: Account, key: Path, unique: str, tmp_path: Path
) -> None:
    iot = account.client("iot")
    iot.create_thing_group(thingGroupName=unique)
    outputs = StackOutputs(**{**dict.fromkeys(StackOutputs.__dataclass_fields__, "x"), "fleet": unique})
    steps = Steps(dry_run=False, tell=lambda _: None)
    before = {one["certificateArn"] for one in iot.list_certificates(pageSize=250)["certificates"]}
    for stop_before in itertools.count():
        thing, folder = f"{unique}-{stop_before}", tmp_path / str(stop_before)
        caller = identify(double(account))
        folder.mkdir()
        if stop_before % 2:  # made in an earlier run, not now
            (folder / KEY).write_bytes(key.read_bytes())
        try:
            with account.counting(stop_before=stop_before):
                provision(double(account), outputs, caller, thing, folder, steps)
        except Stopped:
            provision(double(account), outputs, caller, thing, folder, steps)
            [certificate] = iot.list_thing_principals(thingName=thing)["principals"]
            assert (
                iot.describe_certificate(certificateId=certificate.rpartition("/")[2])["certificateDescription"][
                    "status"
                ]
                == "ACTIVE"
            )
            assert [one["policyName"] for one in iot.list_attached_policies(target=certificate)["policies"]] == [
                policy_name(unique, thing)
            ]
            assert (folder / "device.pem.crt").exists()
            continue
        break
    assert stop_before > 8
    after = {one["certificateArn"] for one in iot.list_certificates(pageSize=250)["certificates"]} - before
    assert len(after) == stop_before + 1  # one for each device, none forsaken
    destroy(double(account), fleet=unique)
    assert {one["certificateArn"] for one in iot.list_certificates(pageSize=250)["certificates"]} & after == set()

"""The scripts' code against the local AWS: what it makes, that it can run twice, and that a dry run changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from fedgrass.checkout import build_tool
from fedgrass.cloud.infrastructure import deploy as deploying
from fedgrass.cloud.infrastructure.deploy import check, deploy
from fedgrass.cloud.infrastructure.destroy import destroy
from fedgrass.cloud.infrastructure.image import build_image, image_exists
from fedgrass.cloud.infrastructure.package import _archive
from fedgrass.cloud.infrastructure.provision import amazon_root_ca, policy_name, provision, provisioned_things
from fedgrass.cloud.infrastructure.publish import GDK_VERSION, find_gdk, publish_all
from fedgrass.cloud.infrastructure.script import Caller, Steps, advice, identify
from fedgrass.cloudformation import StackOutputs, stack_name
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.local.aws.client import LocalAwsProcess
from tests.fedgrass.cloud.rounds.harness import client_error
from tests.fixtures.doubles import double
from tests.fixtures.local_aws import local_aws, unique
from tests.fixtures.places import ROOT

__all__ = ["local_aws", "unique"]

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def session(local_aws: LocalAwsProcess, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    return boto3.Session()


@pytest.fixture
def outputs(session: Any, unique: str) -> StackOutputs:
    return deploy(session, fleet=unique, parameters=own_component(unique), dependencies=False)


def own_component(fleet: str) -> dict[str, str]:
    return {"ModelComponent": f"com.fedgrass.GlobalModel.{fleet}"}


def make(session: Any, outputs: StackOutputs, folder: Path, *, dry_run: bool = False) -> list[str]:
    """Provision one device; what was told."""
    told: list[str] = []
    steps = Steps(dry_run=dry_run, tell=told.append)
    provision(session, outputs, identify(session), f"{outputs.fleet}-press", folder, steps)
    return told


def test_a_device_gets_its_identity_once_and_all_that_its_nucleus_needs(
    session: Any, outputs: StackOutputs, tmp_path: Path
) -> None:
    folder = tmp_path / "press"
    told = make(session, outputs, folder, dry_run=True)
    assert all(line.startswith("would ") for line in told)
    assert not folder.exists()

    make(session, outputs, folder)
    iot = session.client("iot")
    thing = f"{outputs.fleet}-press"
    [principal] = iot.list_thing_principals(thingName=thing)["principals"]
    assert iot.list_things_in_thing_group(thingGroupName=outputs.fleet)["things"] == [thing]
    [policy] = iot.list_attached_policies(target=principal)["policies"]
    assert policy["policyName"] == policy_name(outputs.fleet, thing)
    assert stat.S_IMODE((folder / "private.pem.key").stat().st_mode) == 0o600
    assert (folder / "device.pem.crt").read_text().startswith("-----BEGIN CERTIFICATE-----")
    for name, nucleus in (
        ("config.yaml", "aws.greengrass.Nucleus"),
        ("config-lite.yaml", "aws.greengrass.NucleusLite"),
    ):
        config = yaml.safe_load((folder / name).read_text())
        assert config["system"]["thingName"] == thing
        assert "version" not in config["services"][nucleus]  # the nucleus knows its own
        settings = config["services"][nucleus]["configuration"]
        assert settings["iotRoleAlias"] == outputs.token_exchange_role_alias
        assert settings["iotDataEndpoint"]
        assert settings["iotCredEndpoint"]

    key = (folder / "private.pem.key").read_text()
    make(session, outputs, folder)
    assert (folder / "private.pem.key").read_text() == key
    assert iot.list_thing_principals(thingName=thing)["principals"] == [principal]

    (folder / "private.pem.key").unlink()
    with pytest.raises(InfrastructureError, match="its private key is not at"):
        make(session, outputs, folder)


def test_a_fleet_is_removed_with_what_runs_and_its_devices_and_keeps_its_models_if_it_is_told_to(
    session: Any, outputs: StackOutputs, tmp_path: Path
) -> None:
    s3, sagemaker = session.client("s3"), session.client("sagemaker")
    make(session, outputs, tmp_path / "press")
    s3.put_object(Bucket=outputs.bucket, Key="models/x", Body=b"x")
    running = session.client("stepfunctions").start_execution(stateMachineArn=outputs.state_machine_arn, input="{}")
    told: list[str] = []
    assert destroy(session, fleet=outputs.fleet, steps=Steps(dry_run=True, tell=told.append))
    assert any("delete stack" in line for line in told)
    assert list(provisioned_things(session.client("iot"), outputs.fleet))

    assert destroy(session, fleet=outputs.fleet, keep_models=True)
    assert s3.get_object(Bucket=outputs.bucket, Key="models/x")["Body"].read() == b"x"
    assert sagemaker.describe_model_package_group(ModelPackageGroupName=outputs.model_package_group)
    with pytest.raises(session.client("iot").exceptions.ResourceNotFoundException):
        session.client("iot").describe_thing(thingName=f"{outputs.fleet}-press")
    with pytest.raises(ClientError, match="DoesNotExist"):
        session.client("stepfunctions").start_execution(stateMachineArn=outputs.state_machine_arn, input="{}")
    assert running["executionArn"]
    assert not destroy(session, fleet=outputs.fleet)


def test_a_fleet_of_the_same_name_is_deployed_beside_kept_models(session: Any, outputs: StackOutputs) -> None:
    destroy(session, fleet=outputs.fleet, keep_models=True)
    again = deploy(
        session,
        fleet=outputs.fleet,
        parameters={"AlarmMail": "a@example.org", **own_component(outputs.fleet)},
        dependencies=False,
    )
    assert again.bucket != outputs.bucket
    assert again.model_package_group != outputs.model_package_group


def test_a_bucket_that_exists_elsewhere_is_told_before_anything_is_made(session: Any, unique: str) -> None:
    session.client("s3").create_bucket(Bucket=unique)
    with pytest.raises(InfrastructureError, match="outside the stack: choose another name"):
        check(session, unique, {"BucketName": unique, **own_component(unique)})


def test_a_misspelt_parameter_is_told_with_those_there_are(session: Any, unique: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no parameter 'AlarmMial'.*AlarmMail"):
        check(session, unique, {"AlarmMial": "a@example.org"})


@pytest.mark.parametrize("code", ["ThrottlingException", "LimitExceededException", "AccessDenied", "ExpiredToken"])
def test_what_aws_refuses_comes_with_what_to_do(code: str) -> None:
    assert " - " in advice(client_error(code))


@pytest.mark.parametrize("script", ["deploy", "destroy", "publish", "provision"])
def test_a_script_without_credentials_or_region_stops_before_changing_anything(script: str, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
        "FEDGRASS_FLEET": "digits",
    }
    arguments = ["press"] if script == "provision" else ["--yes"] if script == "destroy" else []
    for more, missing in (({}, "no AWS region"), ({"AWS_REGION": "eu-central-1"}, "no AWS credentials")):
        done = subprocess.run(
            [sys.executable, "-m", f"fedgrass.cloud.infrastructure.{script}", *arguments],
            cwd=ROOT,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert missing in done.stderr
        assert "Traceback" not in done.stderr


class Builds:
    """CodeBuild and ECR, which the local AWS does not run: a build that ends after two looks."""

    class exceptions:  # noqa: N801 - as botocore has it
        class ImageNotFoundException(Exception):  # noqa: N818
            pass

    def __init__(self, end: str) -> None:
        self.end = end
        self.looks = 0

    def client(self, _name: str) -> Builds:
        return self

    def start_build(self, *, projectName: str, **other: Any) -> Any:  # noqa: N803
        self.asked = other
        return {"build": {"id": f"{projectName}:1", "buildStatus": "IN_PROGRESS"}}

    def batch_get_builds(self, *, ids: list[str]) -> Any:
        self.looks += 1
        status = self.end if self.looks == 2 else "IN_PROGRESS"
        return {"builds": [{"id": ids[0], "buildStatus": status, "currentPhase": "BUILD", "logs": {"deepLink": "L"}}]}

    def describe_images(self, *, repositoryName: str, imageIds: list[Any]) -> None:  # noqa: N803
        assert repositoryName == "fedgrass/0"
        if imageIds[0]["imageTag"] != "there":
            raise self.exceptions.ImageNotFoundException


def stand_in() -> StackOutputs:
    names = dict.fromkeys(StackOutputs.__dataclass_fields__, "x")
    return StackOutputs(
        **{**names, "repository_uri": "1.dkr.ecr.r.amazonaws.com/fedgrass/0", "image_build_project": "p"}
    )


def test_an_image_is_built_once_and_a_failed_build_names_its_log() -> None:
    builds = Builds("SUCCEEDED")
    assert image_exists(double(builds), stand_in(), "there")
    assert not image_exists(double(builds), stand_in(), "missing")
    build_image(double(builds), stand_in(), tag="t", source="b/k.zip", tell=lambda _: None, pause=lambda _: None)
    assert builds.looks == 2
    assert builds.asked["sourceLocationOverride"] == "b/k.zip"
    assert builds.asked["environmentVariablesOverride"] == [{"name": "IMAGE_TAG", "value": "t", "type": "PLAINTEXT"}]
    with pytest.raises(InfrastructureError, match="FAILED; see L"):
        build_image(double(Builds("FAILED")), stand_in(), tell=lambda _: None, pause=lambda _: None)


def test_an_update_points_at_its_image_when_that_is_built_and_a_failed_build_changes_nothing(
    session: Any, outputs: StackOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(deploying, "image_exists", lambda *_: False)
    monkeypatch.setattr(
        deploying, "functions_archive", lambda **_: _archive({"fedgrass/cloud/__init__.py": b"# newer"})
    )
    monkeypatch.setattr(deploying, "image_source", lambda: b"newer source")
    apply, stack = deploying._apply, session.client("cloudformation")

    def tag() -> str:
        [found] = stack.describe_stacks(StackName=stack_name(outputs.fleet))["Stacks"]
        return str(next(one["ParameterValue"] for one in found["Parameters"] if one["ParameterKey"] == "ImageTag"))

    before = tag()

    def build(*_: Any, **named: Any) -> None:
        assert tag() == before
        done.append(named["tag"])
        if len(done) == 1:
            raise InfrastructureError("the build failed")

    monkeypatch.setattr(deploying, "build_image", build)

    def update(*arguments: Any, **named: Any) -> StackOutputs:
        done.append("update")
        return apply(*arguments, **named)

    monkeypatch.setattr(deploying, "_apply", update)
    with pytest.raises(InfrastructureError, match="the build failed"):
        deploying.main(outputs.fleet, dependencies=False)
    assert (tag(), "update" in done) == (before, False)
    deploying.main(outputs.fleet, dependencies=False)
    assert done == [done[0], done[0], "update"]
    assert tag() == done[0] != before
    # Without a build the stack keeps the image that it has.
    monkeypatch.setattr(deploying, "image_source", lambda: b"newest source")
    deploying.main(outputs.fleet, dependencies=False, image=False)
    assert tag() == done[0]


def test_a_second_fleet_is_told_to_name_its_model_component_and_that_case_makes_no_name(
    session: Any, outputs: StackOutputs
) -> None:
    with pytest.raises(ConfigurationError, match=r"ModelComponent=com\.fedgrass\.GlobalModel\.second"):
        check(session, "second", own_component(outputs.fleet))
    assert not check(session, "second", {"ModelComponent": "com.fedgrass.GlobalModel.second"})
    with pytest.raises(ConfigurationError, match="but for case"):
        check(session, outputs.fleet.upper(), {"ModelComponent": "com.fedgrass.GlobalModel.second"})


def test_the_image_s_tag_is_its_source_s() -> None:
    assert deploying.Code(dependencies=False).image_tag == deploying.Code(dependencies=False).image_tag


def test_the_root_certificate_is_amazon_s() -> None:
    text = amazon_root_ca()
    assert text.startswith("-----BEGIN CERTIFICATE-----")
    assert text.count("BEGIN") == 1


def test_every_component_is_published_and_a_dry_run_publishes_none(session: Any) -> None:
    caller = identify(session)
    told: list[str] = []
    publish_all(session, caller, Steps(dry_run=True, tell=told.append), gdk=None)
    assert len(told) == len(build_tool().projects())
    publish_all(session, caller, Steps(dry_run=False, tell=told.append), gdk=None)
    listed = session.client("greengrassv2").list_components()["components"]
    names = {next(iter(json.loads((p / "gdk-config.json").read_text())["component"])) for p in build_tool().projects()}
    assert names <= {component["componentName"] for component in listed}


@pytest.mark.skipif(
    find_gdk() is None, reason=f"the Greengrass Development Kit {GDK_VERSION} is not installed: scripts/gdk"
)
def test_the_development_kit_builds_and_publishes_every_component(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".git", ".fedgrass"))
    copied = [copy / project.relative_to(ROOT) for project in build_tool().projects()]
    monkeypatch.setattr(build_tool(), "projects", lambda: copied)
    publish_all(session, identify(session), Steps(dry_run=False, tell=lambda _: None), gdk=find_gdk())
    listed = session.client("greengrassv2").list_components()["components"]
    assert "com.fedgrass.Suite" in {component["componentName"] for component in listed}


def test_who_calls_is_known_by_account_region_and_partition(session: Any) -> None:
    assert identify(session) == Caller("123456789012", "us-east-1", "aws")

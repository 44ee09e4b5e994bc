"""The job as SageMaker starts it: a process, an ``/opt/ml`` folder, and AWS at an endpoint."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import typer
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.commands import publish
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.cloud.aggregator.release import FleetClients, publish_model
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.inference import write_bundle
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import GLOBAL_MODEL, MODEL_DEPLOYER, RUNTIME, evaluation_key, report_key, update_key
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_state
from tests.fedgrass.cloud.aggregator.conftest import ROUND, make_record, update_bytes
from tests.fedgrass.cloud.aggregator.test_tracking import runs as tracked_runs
from tests.fixtures.mlflow_server import mlflow_server
from tests.fixtures.tables import create_tables
from tests.fixtures.waiting import PATIENCE, eventually

__all__ = ["mlflow_server"]

ROOT = Path(__file__).parents[4]


@dataclass
class Place:
    """A fleet of its own in the local AWS, with its first model published."""

    aws: LocalAwsProcess
    fleet: str
    clients: FleetClients
    base: Base
    folder: Path

    def run(self, **environment: str) -> tuple[int, str]:
        """Run the job; its exit code and its exit message."""
        ml = self.folder / "ml"
        aws = self.aws.environment()
        given = {**os.environ, **aws, "FEDGRASS_ML_ROOT": str(ml), **self.environment(), **environment}
        argv = [sys.executable, "-m", "fedgrass.cloud.aggregator"]
        done = subprocess.run(argv, env=given, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False)
        message = ml / "output" / "message"
        return done.returncode, message.read_text() if message.exists() else done.stderr.decode()

    def environment(self) -> dict[str, str]:
        """What the state machine tells the job."""
        return {
            "FEDGRASS_FLEET": self.fleet,
            "FEDGRASS_ROUND": str(ROUND),
            "FEDGRASS_BUCKET": self.clients.bucket.name,
            "FEDGRASS_ROUNDS_TABLE": self.clients.rounds.name,
            "FEDGRASS_DEVICES_TABLE": f"{self.fleet}-devices",
            "FEDGRASS_THING_GROUP_ARN": self.clients.thing_group_arn,
        }

    def report(self) -> RoundReport:
        content = self.clients.bucket.read(report_key(self.fleet, ROUND), max_bytes=1 << 20)
        return RoundReport.model_validate_json(content or b"")

    def deployed(self) -> Mapping[str, Any]:
        arn = self.clients.thing_group_arn
        (latest,) = self.clients.greengrass.list_deployments(targetArn=arn)["deployments"]
        found: Mapping[str, Any] = self.clients.greengrass.get_deployment(deploymentId=latest["deploymentId"])
        return found


@pytest.fixture
def place(local_aws: LocalAwsProcess, unique: str, digits: Bundle, tmp_path: Path) -> Place:
    s3, greengrass = local_aws.client("s3"), local_aws.client("greengrassv2")
    s3.create_bucket(Bucket=unique)
    s3.put_bucket_versioning(Bucket=unique, VersioningConfiguration={"Status": "Enabled"})
    for name in (RUNTIME, MODEL_DEPLOYER):
        recipe = {
            "RecipeFormatVersion": "2020-01-25",
            "ComponentName": name,
            "ComponentVersion": "1.0.0",
            "Manifests": [{"Platform": {"os": "linux"}}],
        }
        with contextlib.suppress(greengrass.exceptions.ConflictException):  # another test of this worker made it
            greengrass.create_component_version(inlineRecipe=json.dumps(recipe).encode())
    create_tables(local_aws.client("dynamodb"), rounds=unique, devices=f"{unique}-devices")
    dynamodb = _dynamodb(local_aws)
    clients = FleetClients(
        fleet=unique,
        bucket=Bucket(s3, unique),
        rounds=dynamodb.Table(unique),
        devices=dynamodb.Table(f"{unique}-devices"),
        greengrass=greengrass,
        thing_group_arn=local_aws.client("iot").create_thing_group(thingGroupName=unique)["thingGroupArn"],
    )
    # One component serves the whole account: each test takes versions of its own.
    first = f"{int(unique[1:], 16) % 899_999 + 100_000}.0.0"
    bundle = write_bundle(digits, digits.parameters(), tmp_path / "first", version=first)
    released = publish_model(bundle, clients)
    clients.rounds.put_item(Item=make_record(unique, released.base).to_item())
    for seed, thing in enumerate(["press-a", "press-b"]):
        body = update_bytes(bundle, thing, seed, tmp_path, fleet=unique)
        s3.put_object(Bucket=unique, Key=update_key(unique, ROUND, thing), Body=body)
        dynamodb.Table(f"{unique}-devices").put_item(Item={"fleet": unique, "thing": thing, "received_at": 1})
    return Place(local_aws, unique, clients, released.base, tmp_path)


def _dynamodb(aws: LocalAwsProcess) -> Any:
    return aws.resource("dynamodb")


def test_the_job_makes_a_round_of_the_environment_alone(place: Place) -> None:
    others: dict[str, Any] = {
        RUNTIME: {"componentVersion": "1.0.0", "configurationUpdate": {"merge": '{"threads": "2"}'}}
    }
    place.clients.greengrass.create_deployment(
        targetArn=place.clients.thing_group_arn,
        deploymentName="by hand",
        components=others,
        deploymentPolicies={"failureHandlingPolicy": "DO_NOTHING"},
    )
    digits_x, digits_y = load_digits(return_X_y=True)
    file = io.BytesIO()
    np.savez(file, x=(digits_x[:100].reshape(-1, 8, 8, 1) / 16).astype(np.float32), y=digits_y[:100].astype(np.int32))
    place.clients.bucket.write(evaluation_key(place.fleet), file.getvalue())

    code, message = place.run()

    assert code == 0, message
    said = json.loads(message)
    report = place.report()
    assert (said["outcome"], said["participants"], said["quarantined"]) == ("released", 2, 0)
    assert report.model is not None
    assert said["version"] == report.model.version
    assert report.evaluation is not None
    assert said["accuracy"] == report.evaluation.accuracy
    found = place.deployed()
    assert found["components"] == {**others, GLOBAL_MODEL: {"componentVersion": report.model.version}}
    assert found["deploymentName"] == "by hand"
    assert found["deploymentPolicies"]["failureHandlingPolicy"] == "DO_NOTHING"
    assert report.release is not None
    assert report.release.deployment_id == found["deploymentId"]
    described = place.clients.greengrass.describe_component(arn=report.release.component_arn)
    assert described["status"]["componentState"] == "DEPLOYABLE"

    assert place.run() == (0, message)
    assert place.deployed()["deploymentId"] == found["deploymentId"]


def test_a_round_is_tracked_where_its_settings_say_and_does_not_fail_with_the_server(
    place: Place, mlflow_server: str
) -> None:
    for server in ("http://127.0.0.1:9", mlflow_server):
        settings = FleetSettings.model_validate({"tracking": {"uri": server}})
        place.clients.rounds.put_item(Item=make_record(place.fleet, place.base, settings).to_item())
        code, message = place.run()
        assert (code, json.loads(message)["outcome"]) == (0, "released")
    [run] = tracked_runs(mlflow_server, place.fleet)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["fedgrass.parameters_sha256"] == getattr(place.report().model, "parameters_sha256", None)


def test_a_round_without_a_record_is_a_failure_that_says_so(place: Place) -> None:
    code, message = place.run(FEDGRASS_ROUND="77")
    assert code == 1
    assert "round 77" in message


def test_a_missing_variable_is_told_in_the_exit_message(place: Place) -> None:
    code, message = place.run(FEDGRASS_THING_GROUP_ARN="nonsense")
    assert code == 2
    assert "FEDGRASS_THING_GROUP_ARN" in message


def test_aws_that_refuses_is_told_in_the_exit_message(place: Place) -> None:
    code, message = place.run(FEDGRASS_ROUNDS_TABLE="no-such-table")
    assert code == 1
    assert "ResourceNotFoundException" in message


def test_the_command_publishes_the_operators_model(
    place: Place, digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.aws.environment().items():
        monkeypatch.setenv(name, value)
    major = int(place.base.version.split(".")[0])
    bundle = write_bundle(digits, digits.parameters(), tmp_path / "next", version=f"{major + 1}.0.0")
    app = typer.Typer()
    app.command()(publish)
    fleet = f"{place.fleet}-2"
    component = f"com.example.{place.fleet}"
    outputs = deploy(boto3.Session(), fleet=fleet, parameters={"ModelComponent": component}, dependencies=False)
    done = CliRunner().invoke(app, [str(bundle.folder), f"--fleet={fleet}"])
    assert done.exit_code == 0, done.output
    assert f"components:{component}:versions:{major + 1}.0.0" in done.output
    assert "no deployment yet" in done.output
    current = load_state(_dynamodb(place.aws).Table(outputs.rounds_table), fleet).model
    assert current is not None
    assert current.version == f"{major + 1}.0.0"


def test_sagemaker_runs_the_job_on_two_instances_and_keeps_its_last_word(place: Place, tmp_path: Path) -> None:
    sagemaker = place.aws.client("sagemaker")
    sagemaker.create_processing_job(
        ProcessingJobName=f"round-{place.fleet}",
        RoleArn="arn:aws:iam::123456789012:role/processing",
        AppSpecification={"ImageUri": "fedgrass-aggregator"},
        Environment=place.environment(),
        ProcessingResources={
            "ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 30}
        },
    )

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_processing_job(ProcessingJobName=f"round-{place.fleet}")
        return None if found["ProcessingJobStatus"] == "InProgress" else found

    job = eventually(ended) or {}
    assert job["ProcessingJobStatus"] == "Completed", job
    report = place.report()
    assert report.outcome == "released"
    assert report.model is not None
    assert json.loads(job["ExitMessage"])["version"] == report.model.version
    alone = tmp_path / "alone"
    alone.mkdir()
    for thing in ("press-a", "press-b"):
        content = place.clients.bucket.read(update_key(place.fleet, ROUND, thing), max_bytes=1 << 30)
        (alone / f"{thing}.safetensors").write_bytes(content or b"")
    aggregate_folder(tmp_path / "first", alone, tmp_path / "out")
    assert Bundle.open(tmp_path / "out").manifest.parameters_sha256 == report.model.parameters_sha256

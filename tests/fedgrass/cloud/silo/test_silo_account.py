"""A silo's stack: its account fixes the job, and who starts it chooses the number of rounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedgrass.errors import ConfigurationError, InfrastructureError, RoundRefusedError
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.silos import Silo, split_name
from tests.fixtures.doubles import double
from tests.fixtures.places import TEMPLATE
from tests.fixtures.waiting import eventually

IMAGE = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/fedgrass/image@sha256:{'5' * 64}"


class Session:
    """A session of the silo's role."""

    region_name = "us-east-1"

    def __init__(self, account: LocalAwsProcess) -> None:
        self.client = account.client


def deployed(account: LocalAwsProcess, name: str, **changes: str) -> Silo:
    bucket = f"data-{name}"
    account.client("s3").create_bucket(Bucket=bucket)
    account.client("s3").put_object(Bucket=bucket, Key="fedgrass/data.csv", Body=b"x,label\n1,0\n")
    parameters = {
        "Silo": name,
        "Fleet": "clinics",
        "FleetAccount": "210987654321",
        "FleetRole": "arn:aws:iam::210987654321:role/silo",
        "FleetRegion": "us-east-1",
        "Image": IMAGE,
        "DataBucket": bucket,
        "MaxRounds": "5",
        "MinNoiseMultiplier": "1.5",
        **changes,
    }
    account.client("cloudformation").create_stack(
        StackName=f"silo-{name}",
        TemplateBody=TEMPLATE.with_name("silo_account.yaml").read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    return Silo(f"{account.account}-{name}", double(Session(account)))


def test_whoever_starts_the_job_chooses_the_rounds_and_nothing_else(local_aws: LocalAwsProcess, unique: str) -> None:
    silo = deployed(local_aws, unique)
    machine = f"arn:aws:states:us-east-1:{local_aws.account}:stateMachine:fedgrass-silo-{unique}"
    asked: dict[str, Any] = {
        "rounds": 2,
        "TrainingImage": "evil",
        "AlgorithmSpecification": {"TrainingImage": "evil"},
        "HyperParameters": {"min_noise_multiplier": "0", "role_arn": "evil"},
        "builder": "evil:build",
    }
    local_aws.client("stepfunctions").start_execution(stateMachineArn=machine, name="evil", input=json.dumps(asked))
    job = eventually(lambda: next((one for one in silo.jobs() if one.status == "InProgress"), None))
    assert job is not None
    described = local_aws.client("sagemaker").describe_training_job(TrainingJobName=f"fedgrass-{unique}-evil")
    assert "evil" not in json.dumps({**described, "TrainingJobName": "", "TrainingJobArn": ""}, default=str)
    assert described["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    given = described["HyperParameters"]
    assert (given["rounds"], given["min_noise_multiplier"], given["silo"]) == ("2", "1.5", silo.name)
    with pytest.raises(RoundRefusedError, match="goes on"):
        silo.start(1)
    silo.stop(job)
    eventually(lambda: next(silo.jobs()).status == "Stopped")


@pytest.mark.parametrize(
    "asked", [{}, {"rounds": 6}, {"rounds": 0}, {"rounds": "1"}, {"rounds": None}, {"rounds": [1]}]
)
def test_rounds_beyond_the_silo_s_limit_start_nothing(local_aws: LocalAwsProcess, unique: str, asked: Any) -> None:
    silo = deployed(local_aws, unique)
    machine = f"arn:aws:states:us-east-1:{local_aws.account}:stateMachine:fedgrass-silo-{unique}"
    local_aws.client("stepfunctions").start_execution(stateMachineArn=machine, name="asked", input=json.dumps(asked))
    job = eventually(lambda: next((one for one in silo.jobs() if one.status == "refused"), None))
    assert job is not None
    assert "N from 1 to 5" in job.reason


def test_a_silo_that_is_not_deployed_is_said_to_be_missing(local_aws: LocalAwsProcess, unique: str) -> None:
    with pytest.raises(InfrastructureError, match="deploy"):
        Silo(f"{local_aws.account}-{unique}", double(Session(local_aws))).start(1)


@pytest.mark.parametrize(
    "name", ["", "clinic", "1-clinic", "111111111111-", "111111111111-a_b", "111111111111-" + "a" * 31]
)
def test_a_name_that_is_no_silo_s_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected <account>-<name>"):
        split_name(name)

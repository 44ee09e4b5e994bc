"""SageMaker Processing: the container contract, kept by real processes."""

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.functions import RECORDER, function, table
from tests.fixtures.waiting import eventually

FINAL = {"Completed", "Failed", "Stopped"}

PROLOGUE = """
import json, os, pathlib, signal, sys, time
ml = pathlib.Path(os.environ["FEDGRASS_ML_ROOT"])
resources = json.loads((ml / "config" / "resourceconfig.json").read_text())
me = resources["current_host"]
"""

Run = Callable[..., dict[str, Any]]


class Sagemaker:
    """Processing jobs whose container is a piece of Python."""

    def __init__(self, account: LocalAwsProcess) -> None:
        self.client = account.client("sagemaker")

    def create(self, name: str, source: str, *, instances: int = 1, **settings: Any) -> None:
        command = ["python", "-c", PROLOGUE + textwrap.dedent(source)]
        self.client.create_processing_job(
            **{
                "ProcessingJobName": name,
                "RoleArn": "arn:aws:iam::123456789012:role/processing",
                "AppSpecification": {"ImageUri": "any", "ContainerEntrypoint": command},
                "ProcessingResources": {
                    "ClusterConfig": {"InstanceCount": instances, "InstanceType": "ml.t3.medium", "VolumeSizeInGB": 1}
                },
                **settings,
            }
        )

    def describe(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.describe_processing_job(ProcessingJobName=name)
        return found

    def ended(self, name: str) -> dict[str, Any]:
        eventually(lambda: self.describe(name)["ProcessingJobStatus"] in FINAL)
        return self.describe(name)

    def run(self, name: str, source: str, **settings: Any) -> dict[str, Any]:
        self.create(name, source, **settings)
        return self.ended(name)


@pytest.fixture(scope="module")
def sagemaker(local_aws: LocalAwsProcess) -> Sagemaker:
    return Sagemaker(local_aws)


@pytest.fixture
def bucket(local_aws: LocalAwsProcess, unique: str) -> Any:

    local_aws.client("s3").create_bucket(Bucket=unique)
    return local_aws.resource("s3").Bucket(unique)


def s3_input(uri: str, **more: str) -> dict[str, Any]:
    source = {"S3Uri": uri, "LocalPath": "/opt/ml/processing/input", "S3DataType": "S3Prefix", "S3InputMode": "File"}
    return {"InputName": "input", "S3Input": {**source, **more}}


def s3_output(uri: str) -> dict[str, Any]:
    target = {"S3Uri": uri, "LocalPath": "/opt/ml/processing/output", "S3UploadMode": "EndOfJob"}
    return {"Outputs": [{"OutputName": "output", "S3Output": target}]}


def test_inputs_become_outputs_under_the_contract(sagemaker: Sagemaker, bucket: Any, unique: str) -> None:
    bucket.put_object(Key="in/a.txt", Body=b"a")
    bucket.put_object(Key="in/deep/b.txt", Body=b"b")
    source = """
        config = json.loads((ml / "config" / "processingjobconfig.json").read_text())
        found = {str(p.relative_to(ml / "processing")): p.read_text() for p in (ml / "processing" / "input").rglob("*.txt")}
        output = ml / "processing" / "output" / "deep"
        output.mkdir(parents=True)
        seen = {"found": found, "hosts": resources["hosts"], "config": config, "setting": os.environ["SETTING"]}
        (output / "seen.json").write_text(json.dumps(seen))
        (ml / "output" / "message").write_text("all well")
    """
    ended = sagemaker.run(
        unique,
        source,
        Environment={"SETTING": "x"},
        ProcessingInputs=[s3_input(f"s3://{unique}/in/")],
        ProcessingOutputConfig=s3_output(f"s3://{unique}/out"),
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    assert (ended["ProcessingJobStatus"], ended["ExitMessage"]) == ("Completed", "all well")
    assert ended["Environment"] == {"SETTING": "x"}
    assert ended["CreationTime"] <= ended["ProcessingStartTime"] <= ended["ProcessingEndTime"]
    assert "FailureReason" not in ended
    seen = json.loads(bucket.Object("out/deep/seen.json").get()["Body"].read())
    assert seen["found"] == {"input/a.txt": "a", "input/deep/b.txt": "b"}
    assert (seen["hosts"], seen["setting"]) == (["algo-1"], "x")
    config = seen["config"]
    assert config["ProcessingJobName"] == unique
    assert config["Environment"] == {"SETTING": "x"}
    assert config["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1
    assert config["ProcessingInputs"][0]["S3Input"]["S3Uri"] == f"s3://{unique}/in/"
    assert config["StoppingCondition"] == {"MaxRuntimeInSeconds": 60}
    assert config["RoleArn"].endswith("role/processing")


def test_each_instance_gets_its_share_of_sharded_objects(sagemaker: Sagemaker, bucket: Any, unique: str) -> None:
    for index in range(5):
        bucket.put_object(Key=f"in/{index}", Body=b"")
    source = """
        output = ml / "processing" / "output"
        output.mkdir()
        (output / me).write_text(" ".join(sorted(p.name for p in (ml / "processing" / "input").iterdir())))
    """
    ended = sagemaker.run(
        unique,
        source,
        instances=2,
        ProcessingInputs=[s3_input(f"s3://{unique}/in", S3DataDistributionType="ShardedByS3Key")],
        ProcessingOutputConfig=s3_output(f"s3://{unique}/out"),
    )
    assert ended["ProcessingJobStatus"] == "Completed"
    shares = [bucket.Object(f"out/algo-{number}").get()["Body"].read().decode().split() for number in (1, 2)]
    assert sorted(shares[0] + shares[1]) == ["0", "1", "2", "3", "4"]
    assert {len(share) for share in shares} == {2, 3}


def test_a_manifest_names_exactly_what_is_fetched(sagemaker: Sagemaker, bucket: Any, unique: str) -> None:
    for name in ("a", "b", "c"):
        bucket.put_object(Key=f"data/{name}", Body=name.encode())
    bucket.put_object(Key="manifest", Body=json.dumps([{"prefix": f"s3://{unique}/data/"}, "a", "c"]).encode())
    ended = sagemaker.run(
        unique,
        """
        names = sorted(p.name for p in (ml / "processing" / "input").iterdir())
        (ml / "output" / "message").write_text(" ".join(names))
        """,
        ProcessingInputs=[s3_input(f"s3://{unique}/manifest", S3DataType="ManifestFile")],
    )
    assert ended["ExitMessage"] == "a c"


def test_a_job_fails_with_the_exit_code_of_any_host_and_ends_the_others(sagemaker: Sagemaker, unique: str) -> None:
    source = """
        if me == "algo-2":
            (ml / "output" / "message").write_text("x" * 2000)
            sys.exit(3)
        time.sleep(100_000)
    """
    ended = sagemaker.run(unique, source, instances=2)
    assert (ended["ProcessingJobStatus"], ended["FailureReason"]) == ("Failed", "AlgorithmError: , exit code: 3")
    assert ended["ExitMessage"] == "x" * 1024


def test_a_missing_input_fails_the_job_and_names_it(sagemaker: Sagemaker, bucket: Any, unique: str) -> None:
    ended = sagemaker.run(unique, "", ProcessingInputs=[s3_input(f"s3://{unique}/nothing")])
    assert ended["ProcessingJobStatus"] == "Failed"
    assert f"s3://{unique}/nothing" in ended["FailureReason"]


def test_an_entry_point_that_does_not_exist_fails_the_job(sagemaker: Sagemaker, unique: str) -> None:
    application = {"ImageUri": "any", "ContainerEntrypoint": ["/no/such/program"]}
    ended = sagemaker.run(unique, "", AppSpecification=application)
    assert ended["ProcessingJobStatus"] == "Failed"
    assert "/no/such/program" in ended["FailureReason"]


def test_a_stopped_job_is_asked_to_end(sagemaker: Sagemaker, unique: str) -> None:
    source = """
        def end(*_):
            (ml / "output" / "message").write_text("asked to")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        (ml / "processing").mkdir()
        signal.pause()
    """
    sagemaker.create(unique, source)
    eventually(lambda: "ProcessingStartTime" in sagemaker.describe(unique))
    sagemaker.client.stop_processing_job(ProcessingJobName=unique)
    ended = sagemaker.ended(unique)
    assert ended["ProcessingJobStatus"] == "Stopped"
    assert "FailureReason" not in ended
    with pytest.raises(sagemaker.client.exceptions.ClientError, match="cannot be stopped"):
        sagemaker.client.stop_processing_job(ProcessingJobName=unique)


def test_a_job_over_its_time_is_stopped_with_the_reason(sagemaker: Sagemaker, unique: str) -> None:
    ended = sagemaker.run(unique, "time.sleep(100_000)", StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert ended["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeInSeconds (1)" in ended["FailureReason"]


def test_every_change_of_status_is_an_event(sagemaker: Sagemaker, local_aws: LocalAwsProcess, unique: str) -> None:
    rows = table(local_aws, unique)
    arn = function(local_aws, unique, RECORDER, Environment={"Variables": {"TABLE": unique}})
    events = local_aws.client("events")
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Processing Job State Change"],
        "detail": {"ProcessingJobName": [{"prefix": unique}]},
    }
    events.put_rule(Name=unique, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=unique, Targets=[{"Id": "1", "Arn": arn}])
    sagemaker.run(unique, "(ml / 'output' / 'message').write_text('bye')", Environment={"A": "b"})

    def seen() -> dict[str, Any] | None:
        details = [json.loads(row["event"])["detail"] for row in rows.scan()["Items"]]
        found = {detail["ProcessingJobStatus"]: detail for detail in details}
        return found if len(found) == 2 else None

    found = eventually(seen)
    assert found is not None
    assert set(found) == {"InProgress", "Completed"}
    assert found["Completed"]["ExitMessage"] == "bye"
    assert found["Completed"]["Environment"] == {"A": "b"}
    assert found["Completed"]["CreationTime"] > 1_700_000_000_000


def test_a_name_can_be_used_once(sagemaker: Sagemaker, unique: str) -> None:
    sagemaker.run(unique, "")
    with pytest.raises(sagemaker.client.exceptions.ResourceInUse, match=unique):
        sagemaker.create(unique, "")


def test_an_unknown_job_is_not_found(sagemaker: Sagemaker, unique: str) -> None:
    with pytest.raises(sagemaker.client.exceptions.ClientError, match="Could not find requested job"):
        sagemaker.describe(unique)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ProcessingJobName": "not_allowed"}, "does not match"),
        ({"ProcessingJobName": "x" * 64}, "does not match"),
        ({"Environment": {str(index): "" for index in range(101)}}, "100 entries"),
        ({"Environment": {"A": "x" * 257}}, "256 characters"),
        ({"ProcessingInputs": [{"InputName": str(index), "AppManaged": True} for index in range(11)]}, "10 entries"),
        ({"ProcessingInputs": [s3_input("s3://b/k", S3InputMode="Pipe")]}, "Pipe"),
    ],
)
def test_what_sagemaker_refuses_is_refused(
    sagemaker: Sagemaker, unique: str, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(sagemaker.client.exceptions.ClientError, match=problem):
        sagemaker.create(unique, "", **settings)


def test_jobs_are_listed_by_name_and_status(sagemaker: Sagemaker, unique: str) -> None:
    sagemaker.run(f"{unique}-1", "")
    sagemaker.run(f"{unique}-2", "sys.exit(1)")

    def names(**filters: Any) -> list[str]:
        pages = sagemaker.client.get_paginator("list_processing_jobs").paginate(
            NameContains=unique, PaginationConfig={"PageSize": 1}, **filters
        )
        return [job["ProcessingJobName"] for page in pages for job in page["ProcessingJobSummaries"]]

    assert names() == [f"{unique}-2", f"{unique}-1"]
    assert names(SortOrder="Ascending") == [f"{unique}-1", f"{unique}-2"]
    assert names(StatusEquals="Failed") == [f"{unique}-2"]

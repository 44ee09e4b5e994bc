"""Rounds on MLflow: told to MLflow's own server, and read back through its own interface."""

from __future__ import annotations

import inspect
import json
import re
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.credentials import Credentials
from pydantic import ValidationError

from fedgrass.cloud.aggregator import tracking
from fedgrass.cloud.aggregator.tracking import Tracking, lineage, metrics, parameters
from fedgrass.errors import TransferError
from fedgrass.protocol.messages import Base
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, NOW, ROUND, make_record
from tests.fedgrass.cloud.infrastructure.resolved import Template, actions, allows
from tests.fixtures.mlflow_server import mlflow_server
from tests.fixtures.waiting import PATIENCE

__all__ = ["mlflow_server"]

ARN = "arn:aws:sagemaker:eu-central-1:123456789012:mlflow-tracking-server/lab"
REPORT = "s3://fedgrass-test/report.json"
ENTRY: dict[str, Any] = {"version": "1.2.0", "parameters_sha256": "a" * 64, "graph_sha256": "b" * 64}


@pytest.fixture
def record() -> RoundRecord:
    base = Base(parameters_key="models/mill/1.2.0/parameters.safetensors", **ENTRY)
    return make_record(FLEET, base, FleetSettings().overridden({"fit": {"epochs": 3}}))


@pytest.fixture
def report() -> RoundReport:
    return RoundReport.model_validate(
        {
            "fleet": FLEET,
            "round": ROUND,
            "outcome": "released",
            "strategy": "fedavg",
            "started_at": NOW,
            "finished_at": NOW,
            "base": ENTRY,
            "model": {**ENTRY, "version": "1.3.0", "parameters_sha256": "c" * 64},
            "evaluation": {"loss": 0.25, "accuracy": 0.5, "examples": 10},
            "inference_accuracy": {"inference_int8.tflite": 0.75},
            "seconds": {"base": 1.5},
        }
    )


def runs(server: str, experiment: str) -> list[dict[str, Any]]:
    found = ask(f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}")
    places = [found["experiment"]["experiment_id"]]
    listed: list[dict[str, Any]] = ask(f"{server}/api/2.0/mlflow/runs/search", {"experiment_ids": places})["runs"]
    return listed


def ask(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def by_name(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in entries}


def test_each_round_is_one_run_of_the_fleets_experiment_however_often_its_job_runs(
    mlflow_server: str, record: RoundRecord, report: RoundReport
) -> None:
    server = Tracking(mlflow_server + "/")
    again = record.model_copy(update={"round": ROUND + 1})
    for told in (record, record, again):
        server.follow(told, report, experiment="press shop", report_uri=REPORT)
    found = {run["info"]["run_name"]: run for run in runs(mlflow_server, "press%20shop")}
    assert found.keys() == {f"round {ROUND}", f"round {ROUND + 1}"}
    run = found[f"round {ROUND}"]
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["start_time"] == run["info"]["end_time"] == int(NOW.timestamp() * 1000)
    assert by_name(run["data"]["params"]) == parameters(record)
    assert by_name(run["data"]["params"])["fit.epochs"] == "3"
    assert by_name(run["data"]["metrics"]) == metrics(report)
    assert {"accuracy": 0.5, "accuracy.inference_int8.tflite": 0.75}.items() <= metrics(report).items()
    assert {metric["step"] for metric in run["data"]["metrics"]} == {ROUND}
    tags = by_name(run["data"]["tags"])
    assert {f"fedgrass.{key}": value for key, value in lineage(record, report, REPORT).items()}.items() <= tags.items()
    assert (tags["fedgrass.base_version"], tags["fedgrass.version"], tags["fedgrass.report"]) == (
        "1.2.0",
        "1.3.0",
        REPORT,
    )


def test_more_settings_than_mlflow_takes_at_once_and_names_that_it_refuses_are_recorded_all_the_same(
    mlflow_server: str, record: RoundRecord, report: RoundReport
) -> None:
    fit = {
        "class_weight": {f"/crack <{size} mm>/../": 2.0 for size in range(64)},
        "config": {f"key{number}": number for number in range(32)},
    }
    many = record.model_copy(update={"settings": record.settings.overridden({"fit": fit})})
    assert len(parameters(many)) > 100
    Tracking(mlflow_server).follow(many, report, experiment="many", report_uri=REPORT)
    [run] = runs(mlflow_server, "many")
    assert by_name(run["data"]["params"]) == parameters(many)
    assert by_name(run["data"]["metrics"]) == metrics(report)


def test_a_server_that_refuses_is_an_error_with_its_own_words(
    mlflow_server: str, record: RoundRecord, report: RoundReport
) -> None:
    with pytest.raises(TransferError, match=r"refused experiments/create: INVALID_PARAMETER_VALUE"):
        Tracking(mlflow_server).follow(record, report, experiment="e" * 2000, report_uri=REPORT)


def test_a_server_that_is_not_there_is_an_error_that_names_it(record: RoundRecord, report: RoundReport) -> None:
    with pytest.raises(TransferError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be reached"):
        Tracking("http://127.0.0.1:9").follow(record, report, experiment="x", report_uri=REPORT)


def test_requests_to_sagemakers_server_are_signed_for_it(record: RoundRecord, report: RoundReport) -> None:
    class Sagemaker:
        def __init__(self) -> None:
            self.asked: list[AWSPreparedRequest] = []

        def send(self, request: AWSPreparedRequest) -> SimpleNamespace:
            self.asked.append(request)
            content = b'{"experiment": {"experiment_id": "1"}, "runs": [{"info": {"run_id": "r"}}]}'
            return SimpleNamespace(status_code=200, content=content)

    http: Any = Sagemaker()
    server = Tracking(ARN, Credentials("id", "secret", "token"), http)
    assert server.follow(record, report, experiment=FLEET, report_uri=REPORT) == "r"
    for request in http.asked:
        assert request.url.startswith("https://eu-central-1.experiments.sagemaker.aws/api/2.0/mlflow/")
        assert request.headers["x-mlflow-sm-tracking-server-arn"] in (ARN, ARN.encode())
        signature = str(request.headers["Authorization"])
        assert "/eu-central-1/sagemaker-mlflow/aws4_request" in signature
        assert "x-mlflow-sm-tracking-server-arn" in signature


ACTIONS = {
    "experiments/create": "sagemaker-mlflow:CreateExperiment",
    "experiments/get-by-name": "sagemaker-mlflow:GetExperimentByName",
    "runs/create": "sagemaker-mlflow:CreateRun",
    "runs/log-batch": "sagemaker-mlflow:LogBatch",
    "runs/search": "sagemaker-mlflow:SearchRuns",
    "runs/update": "sagemaker-mlflow:UpdateRun",
}


def test_the_job_may_ask_the_server_that_the_stack_names_what_it_asks_and_nothing_more() -> None:
    assert "TrackingPolicy" not in Template().resources
    template = Template(TrackingServer=ARN)
    policy = template.resources["TrackingPolicy"]
    statements = policy["PolicyDocument"]["Statement"]
    assert policy["RoleName"] == template.resolve({"Ref": "ProcessingRole"})
    asked = set(re.findall(r'"((?:experiments|runs)/[a-z-]+)', inspect.getsource(tracking)))
    assert {ACTIONS[path] for path in asked} == actions(statements)
    assert allows(statements, "sagemaker-mlflow:LogBatch", ARN)
    assert not allows(statements, "sagemaker-mlflow:LogBatch", ARN.replace("lab", "other"))


@pytest.mark.parametrize("uri", ["mlflow.example.com", "file:///tmp/runs", "http://name:word@host", "arn:aws:s3:::b"])
def test_an_address_that_is_none_is_refused_in_the_settings(uri: str) -> None:
    with pytest.raises(ValidationError, match="tracking"):
        FleetSettings.model_validate({"tracking": {"uri": uri}})
    for good in ("", "https://mlflow.example.com/base", ARN):
        FleetSettings.model_validate({"tracking": {"uri": good}})

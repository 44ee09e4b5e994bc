from __future__ import annotations

import io
import tarfile
from typing import Any

import boto3
import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedgrass.bundle import GRAPH, MANIFEST
from fedgrass.cloud.aggregator.registry import Registry
from fedgrass.cloud.ending.registration import register
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import model_prefix, report_key
from fedgrass.protocol.report import Evaluation, ModelEntry
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, Fleet, make_record

GROUP = "fedgrass-mill"
VERSION = f"1.{ROUND}.0"


@pytest.fixture
def sagemaker(fleet: Fleet, session: boto3.Session) -> Any:
    client = session.client("sagemaker")
    client.create_model_package_group(ModelPackageGroupName=GROUP)
    for seed, thing in enumerate(["press-a", "press-b"]):
        fleet.put_update(thing, seed)
    return client


def packages(sagemaker: Any) -> list[str]:
    found = sagemaker.list_model_packages(ModelPackageGroupName=GROUP)["ModelPackageSummaryList"]
    return [package["ModelPackageArn"] for package in found]


def test_a_released_model_is_registered_with_its_figures_and_lineage(fleet: Fleet, sagemaker: Any) -> None:
    x, y = load_digits(return_X_y=True)
    fleet.put_evaluation_set((x[:50].reshape(-1, 8, 8, 1) / 16).astype(np.float32), y[:50].astype(np.int32))
    report = fleet.run(registry=Registry(sagemaker, GROUP, "image:1"))
    assert report.release is not None
    assert [report.release.model_package_arn] == packages(sagemaker)
    described = sagemaker.describe_model_package(ModelPackageName=report.release.model_package_arn)
    properties = described["CustomerMetadataProperties"]
    assert report.evaluation is not None
    assert float(properties["accuracy"]) == pytest.approx(report.evaluation.accuracy, abs=1e-5)
    assert properties["parameters_sha256"] == fleet_parameters(report)
    assert (properties["round"], properties["base_version"], properties["participants"]) == (str(ROUND), "1.0.0", "2")
    assert properties["report"].endswith(report_key(FLEET, ROUND))
    [container] = described["InferenceSpecification"]["Containers"]
    key = model_prefix(FLEET, VERSION) + "model.tar.gz"
    assert container["ModelDataUrl"] == fleet.clients.bucket.uri(key)
    with tarfile.open(fileobj=io.BytesIO(fleet.object(key) or b"")) as archive:
        assert {GRAPH, MANIFEST} <= set(archive.getnames())


def fleet_parameters(report: Any) -> str:
    assert report.model is not None
    return str(report.model.parameters_sha256)


def test_a_job_that_runs_again_registers_nothing_twice(fleet: Fleet, sagemaker: Any) -> None:
    registry = Registry(sagemaker, GROUP, "image:1")
    first = fleet.run(registry=registry)
    fleet.s3.delete_object(Bucket="fedgrass-test", Key=report_key(FLEET, ROUND))
    second = fleet.run(registry=registry)
    assert first.release is not None
    assert second.release is not None
    assert first.release.model_package_arn == second.release.model_package_arn
    assert len(packages(sagemaker)) == 1


def test_a_registry_that_refuses_does_not_undo_the_release(fleet: Fleet, sagemaker: Any) -> None:
    report = fleet.run(registry=Registry(sagemaker, "no-such-group", "image:1"))
    assert report.outcome == "released"
    assert report.release is not None
    assert report.release.model_package_arn is None


def test_a_model_of_many_figures_keeps_within_what_the_registry_takes(sagemaker: Any) -> None:
    base = Base(version="1.0.0", parameters_key="p", parameters_sha256="c" * 64, graph_sha256="b" * 64)
    entry = ModelEntry(version=VERSION, parameters_sha256="a" * 64, graph_sha256="b" * 64)
    figures = Evaluation(loss=0.5, examples=9, metrics={f"output{number}.rmse": 1.0 for number in range(80)})
    arn = register(
        sagemaker,
        GROUP,
        "image:1",
        "bucket",
        make_record(FLEET, base, FleetSettings()),
        entry,
        participants=2,
        evaluation=figures,
    )
    properties = sagemaker.describe_model_package(ModelPackageName=arn)["CustomerMetadataProperties"]
    limit = sagemaker.meta.service_model.shape_for("CustomerMetadataMap").metadata["max"]
    assert len(properties) == limit
    assert {"fleet", "round", "version", "parameters_sha256", "report", "execution", "loss"} <= properties.keys()

"""``fedgrass model serve`` from the stack to an answer, in the local account: the endpoint is a process."""

from __future__ import annotations

import io
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from fedgrass.account import Account
from fedgrass.bundle import Bundle
from fedgrass.checkout import checkout
from fedgrass.cloud.aggregator.commands import renamed
from fedgrass.cloud.aggregator.manual_release import fleet_clients
from fedgrass.cloud.aggregator.release import publish_model
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.cloud.infrastructure.destroy import destroy
from fedgrass.cloud.serving.endpoint import serve, stop_serving
from fedgrass.cloud.serving.model import ServedModel
from fedgrass.errors import ReleaseError
from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.local_aws import local_aws, unique

__all__ = ["local_aws", "unique"]

pytestmark = pytest.mark.end_to_end
BUNDLE = checkout() / "examples/digits/bundle"


def test_a_fleet_s_model_is_served_changed_and_taken_away(
    local_aws: LocalAwsProcess, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name, value in local_aws.environment().items():
        monkeypatch.setenv(name, value)
    parameters = {"ModelComponent": f"com.fedgrass.GlobalModel.{unique}"}
    deploy(boto3.Session(), fleet=unique, parameters=parameters, dependencies=False)
    account = Account.of(unique)
    runtime, sagemaker = local_aws.client("sagemaker-runtime"), local_aws.client("sagemaker")

    with pytest.raises(ReleaseError, match="no model yet"):
        serve(account)
    publish_model(Bundle.open(BUNDLE), fleet_clients(account))
    with pytest.raises(ReleaseError, match="never had it"):
        serve(account, "3.0.0")
    name, version = serve(account)
    assert version == Bundle.open(BUNDLE).manifest.version
    assert serve(account) == (name, version)  # again changes nothing

    x, content = np.random.default_rng(7).random((2, 8, 8, 1), np.float32), io.BytesIO()
    np.save(content, x)

    def ask(body: bytes) -> Any:
        return runtime.invoke_endpoint(EndpointName=name, ContentType="application/x-npy", Body=body)["Body"].read()

    assert np.array_equal(np.load(io.BytesIO(ask(content.getvalue()))), ServedModel(BUNDLE).predict(x))
    with pytest.raises(ClientError, match="not an npy file") as refused:
        ask(b"no npy")
    response: Any = refused.value.response
    assert response["OriginalStatusCode"] == 400

    publish_model(renamed(Bundle.open(BUNDLE), "2.0.0", tmp_path / "next"), fleet_clients(account))
    before = sagemaker.describe_endpoint(EndpointName=name)
    assert serve(account, instance_type="ml.m5.large") == (name, "2.0.0")
    assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == before["EndpointStatus"] == "InService"
    assert "2.0.0" in (local_aws.state / "logs" / f"endpoint-{name}.log").read_text()
    assert ask(content.getvalue())
    stop_serving(account)
    with pytest.raises(ClientError, match="Could not find"):
        sagemaker.describe_endpoint(EndpointName=name)
    stop_serving(account)  # again changes nothing

    serve(account)
    assert destroy(boto3.Session(), fleet=unique)
    with pytest.raises(ClientError, match="Could not find"):
        sagemaker.describe_endpoint(EndpointName=name)

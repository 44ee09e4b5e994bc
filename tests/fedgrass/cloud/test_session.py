"""The session of functions and jobs, beside boto3's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import UnknownServiceError

from fedgrass.cloud.rounds.services import Services
from fedgrass.cloud.session import SERVICES, known_session

_CLIENTS = ("rounds", "devices", "step_functions", "iot_data", "iot", "sagemaker", "s3", "greengrass")
_SETTINGS = ("FLEET", "ACCOUNT", "BUCKET", "ROUNDS_TABLE", "DEVICES_TABLE")


@pytest.fixture(autouse=True)
def _region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


@pytest.mark.parametrize("service", SERVICES)
def test_a_client_is_the_one_that_boto3_makes(service: str) -> None:
    def made(session: boto3.Session) -> Any:
        connect: Callable[..., Any] = session.client
        return connect(service)

    ours, theirs = made(known_session()), made(boto3.Session())
    assert ours.meta.endpoint_url == theirs.meta.endpoint_url
    assert ours.meta.service_model.operation_names == theirs.meta.service_model.operation_names
    assert ours.waiter_names == theirs.waiter_names


@pytest.mark.parametrize("name", _CLIENTS)
def test_what_functions_ask_for_can_be_made(name: str) -> None:
    environment = {f"FEDGRASS_{setting}": "111122223333" for setting in _SETTINGS}
    assert getattr(Services(known_session(), environment), name) is not None


def test_a_region_that_is_given_is_the_clients() -> None:
    assert known_session("us-east-2").client("iot").meta.region_name == "us-east-2"


def test_another_service_is_refused_by_name() -> None:
    with pytest.raises(UnknownServiceError, match="ec2"):
        known_session().client("ec2")

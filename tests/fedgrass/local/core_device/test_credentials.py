import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from botocore.credentials import ContainerMetadataFetcher, ContainerProvider

from fedgrass.local.core_device.credentials import RoleCredentials, TokenExchangeService, kept_failure
from fedgrass.local.core_device.nucleus import CLASSIC
from tests.fedgrass.local.core_device.conftest import Loop
from tests.fixtures.doubles import double
from tests.fixtures.waiting import PATIENCE


class Sts:
    """Answers AssumeRole, and counts."""

    def __init__(self, lifetime: timedelta) -> None:
        self.lifetime = lifetime
        self.calls: list[dict[str, str]] = []

    def assume_role(self, **parameters: str) -> Any:
        self.calls.append(parameters)
        expires = datetime.now(timezone.utc) + self.lifetime
        number = str(len(self.calls))
        return {
            "Credentials": {
                "AccessKeyId": "key" + number,
                "SecretAccessKey": "secret" + number,
                "SessionToken": "session" + number,
                "Expiration": expires,
            }
        }


def test_the_role_is_assumed_in_the_things_name_and_only_when_due() -> None:
    sts = Sts(timedelta(hours=1))
    role = RoleCredentials(double(sts), role_arn="arn:aws:iam::123456789012:role/R", thing="thing-1")
    assert role.get() == role.get()
    assert sts.calls == [{"RoleArn": "arn:aws:iam::123456789012:role/R", "RoleSessionName": "thing-1"}]


def test_credentials_about_to_expire_are_replaced() -> None:
    role = RoleCredentials(double(Sts(timedelta(minutes=4))), role_arn="arn", thing="thing-1")
    assert role.get().access_key == "key1"
    assert role.get().access_key == "key2"


@pytest.fixture
def service(loop: Loop) -> Iterator[TokenExchangeService]:
    role = RoleCredentials(double(Sts(timedelta(hours=1))), role_arn="arn", thing="thing-1")
    running = TokenExchangeService(role.get, {"good": "com.example.A"}.get)
    loop.run(running.start())
    yield running
    loop.run(running.stop())


def test_botocore_takes_the_credentials_as_in_a_container(service: TokenExchangeService) -> None:
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": service.url,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "good",
    }
    fetcher: Any = ContainerMetadataFetcher()  # what botocore itself passes; the stubs name another
    credentials = ContainerProvider(environ=environment, fetcher=fetcher).load()
    assert credentials is not None
    assert credentials.get_frozen_credentials() == ("key1", "secret1", "session1", None)


def status_of(url: str, token: str, method: str = "GET") -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(url, headers={"Authorization": token}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_token_that_is_no_components_is_refused(service: TokenExchangeService) -> None:
    assert status_of(service.url, "bad")[0] == 403
    assert status_of(service.url, "")[0] == 403
    assert status_of(service.url + "x", "good")[0] == 404
    assert status_of(service.url, "good", "POST")[0] == 404
    assert status_of(service.url, "good")[0] == 200


def test_a_failed_connection_is_kept_after_the_link_is_back_as_the_classic_nucleus_does(
    loop: Loop, service: TokenExchangeService
) -> None:
    now, link = [0.0], [False]

    def credentials() -> Any:
        if not link[0]:
            raise ConnectionError("offline")
        return service._credentials()

    running = TokenExchangeService(
        credentials,
        {"good": "com.example.A"}.get,
        keeps_failure=lambda: CLASSIC.keeps_failed_credentials,
        clock=lambda: now[0],
    )
    loop.run(running.start())
    assert status_of(running.url, "good")[0] == 500
    link[0], now[0] = True, CLASSIC.keeps_failed_credentials - 0.5
    assert status_of(running.url, "good")[0] == 500
    now[0] += 1
    assert status_of(running.url, "good")[0] == 200
    loop.run(running.stop())


@pytest.mark.parametrize(
    ("configuration", "seconds"),
    [
        ({}, 3.0),
        ({"credentialRetryInSec": {"clientError": 20}}, 3.0),
        ({"credentialRetryInSec": {"unknownError": 10}}, 0.1),
        ({"credentialRetryInSec": {"unknownError": "60"}}, 0.6),
        ({"credentialRetryInSec": {"unknownError": 1}}, 0.1),
        ({"credentialRetryInSec": "soon"}, 3.0),
    ],
)
def test_how_long_it_is_kept_is_configured_as_for_the_classic_nucleus(
    configuration: dict[str, Any], seconds: float
) -> None:
    assert kept_failure(configuration, CLASSIC.keeps_failed_credentials) == pytest.approx(seconds)


def test_without_the_cloud_there_are_no_credentials_and_no_crash(loop: Loop) -> None:
    def unreachable() -> Any:
        raise ConnectionError("offline")

    running = TokenExchangeService(unreachable, {"good": "com.example.A"}.get)
    loop.run(running.start())
    assert status_of(running.url, "good")[0] == 500
    loop.run(running.stop())

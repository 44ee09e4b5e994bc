"""Whether a device that claims an identity gets it, and with which rights."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fedgrass.cloud.rounds.claim_device import Claim, claim_device
from fedgrass.cloud.rounds.services import Services
from fedgrass.protocol.device_policy import device_policy, policy_name
from tests.fedgrass.cloud.rounds.harness import Session
from tests.fixtures.doubles import double

ARN = "arn:aws:iot:us-east-1:123456789012"
REFUSED = {"allowProvisioning": False}


class NotFoundError(Exception):
    pass


class ExistsError(Exception):
    pass


class Iot:
    """Things and policies by name."""

    exceptions = SimpleNamespace(ResourceNotFoundException=NotFoundError, ResourceAlreadyExistsException=ExistsError)

    def __init__(self) -> None:
        self.things: set[str] = set()
        self.policies: dict[str, str] = {}
        self.tags: dict[str, Any] = {}

    def describe_thing(self, *, thingName: str) -> dict[str, str]:  # noqa: N803 - boto3's names
        if thingName not in self.things:
            raise NotFoundError
        return {"thingName": thingName}

    def create_policy(self, *, policyName: str, policyDocument: str, tags: Any) -> None:  # noqa: N803
        if policyName in self.policies:
            raise ExistsError
        self.policies[policyName] = policyDocument
        self.tags[policyName] = tags

    def get_policy(self, *, policyName: str) -> dict[str, str]:  # noqa: N803
        return {"policyDocument": self.policies[policyName]}


def claimed(iot: Iot, parameters: dict[str, str], *, prefix: str = "press-") -> dict[str, Any]:
    services = Services(double(Session({"iot": iot})), {"FEDGRASS_FLEET": "mill", "FEDGRASS_CLAIM_PREFIX": prefix})
    template = f"{ARN}:provisioningtemplate/fedgrass-0123456789abcdef"
    return claim_device(services, Claim.model_validate({"templateArn": template, "parameters": parameters}))


def test_a_new_device_gets_a_name_below_the_prefix_and_a_policy_of_its_own() -> None:
    iot = Iot()
    answer = claimed(iot, {"SerialNumber": "7", "ThingName": "press-1", "PolicyName": "AdminPolicy"})
    name = policy_name("mill", "press-7")
    assert answer == {"allowProvisioning": True, "parameterOverrides": {"ThingName": "press-7", "PolicyName": name}}
    assert json.loads(iot.policies[name]) == device_policy("mill", "press-7", "fedgrass-mill", ARN)
    assert iot.tags[name] == [{"Key": "fedgrass:fleet", "Value": "mill"}]
    assert "press-8" not in iot.policies[name]


def test_a_name_that_exists_is_given_to_nobody() -> None:
    iot = Iot()
    iot.things.add("press-7")
    assert claimed(iot, {"SerialNumber": "7"}) == REFUSED
    assert iot.policies == {}


def test_a_claim_that_failed_later_can_be_made_again() -> None:
    iot = Iot()
    assert claimed(iot, {"SerialNumber": "7"}) == claimed(iot, {"SerialNumber": "7"})


def test_a_policy_of_the_name_that_says_something_else_is_not_used() -> None:
    iot = Iot()
    iot.policies[policy_name("mill", "press-7")] = json.dumps({"Statement": [{"Effect": "Allow", "Action": "*"}]})
    assert claimed(iot, {"SerialNumber": "7"}) == REFUSED


@pytest.mark.parametrize("serial", ["", "a b", "*", "a/b", "+", "#", "é", "x" * 123, "${iot:ClientId}"])
def test_a_serial_number_that_makes_no_name_is_refused(serial: str) -> None:
    iot = Iot()
    assert claimed(iot, {"SerialNumber": serial}) == REFUSED
    assert iot.policies == {}


@pytest.mark.parametrize("parameters", [{}, {"ThingName": "press-1"}])
def test_a_claim_without_a_serial_number_is_refused(parameters: dict[str, str]) -> None:
    assert claimed(Iot(), parameters) == REFUSED


def test_a_name_that_reads_like_a_silo_s_is_refused() -> None:
    assert claimed(Iot(), {"SerialNumber": "12-clinic"}, prefix="1234567890") == REFUSED

"""A fleet's tables, bucket, stack and state machine in moto, and a browser that speaks HTTP to the console."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from functools import cache
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from moto import mock_aws
from werkzeug.test import TestResponse

from fedgrass.account import Account
from fedgrass.cloud.console.app import create_app
from fedgrass.cloud.console.forms import form_of
from fedgrass.cloud.console.index import DeviceSnapshot
from fedgrass.cloud.console.security import Access
from fedgrass.cloudformation import StackOutputs, stack_name
from fedgrass.local.sample import Sample
from fedgrass.protocol.fleet_state import OpenRound
from fedgrass.protocol.records import RoundRecord, to_attribute
from fedgrass.protocol.settings import FleetSettings
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fixtures.doubles import double
from tests.fixtures.tables import create_tables

FLEET = "mill"
GROUP_ARN = f"arn:aws:iot:us-east-1:123456789012:thinggroup/{FLEET}"
NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
TOKEN = "correct horse battery staple"
_STATES = {"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 1, "End": True}}}


class Session:
    """A boto3 session whose Greengrass is the one in memory: moto has none."""

    def __init__(self, session: Any, greengrass: FakeGreengrass) -> None:
        self._session = session
        self._greengrass = greengrass

    def client(self, name: str, **arguments: Any) -> Any:
        return self._greengrass if name == "greengrassv2" else self._session.client(name, **arguments)

    def resource(self, name: str, **arguments: Any) -> Any:
        return self._session.resource(name, **arguments)


class Fleet:
    """A deployed stack with nothing in it."""

    def __init__(self) -> None:
        self.greengrass = FakeGreengrass()
        self.account = Account(FLEET, double(Session(_account(), self.greengrass)))
        session = self.account.session
        machine = session.client("stepfunctions").create_state_machine(
            name=f"fedgrass-{FLEET}-round", definition=json.dumps(_STATES), roleArn="arn:aws:iam::123456789012:role/r"
        )
        values = {field.name: field.name for field in fields(StackOutputs)} | {
            "bucket": f"fedgrass-{FLEET}",
            "state_machine_arn": machine["stateMachineArn"],
            "thing_group_arn": GROUP_ARN,
            "model_component": "com.fedgrass.GlobalModel",
        }
        outputs = {name.title().replace("_", ""): {"Value": value} for name, value in values.items() if name != "fleet"}
        template = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}, "Outputs": outputs}
        session.client("cloudformation").create_stack(StackName=stack_name(FLEET), TemplateBody=json.dumps(template))
        self.account.s3.create_bucket(Bucket=f"fedgrass-{FLEET}")
        create_tables(session.client("dynamodb"), rounds="rounds_table", devices="devices_table")

    def fill(self, *, devices: int, rounds: int, run: int = 0, profile: int = 0) -> Sample:
        sample = Sample(self.account, devices=devices, rounds=rounds, now=NOW, run=run, profile=profile)
        sample.write()
        return sample

    def open(self, record: RoundRecord) -> str:
        """Have a round open, held by an execution that runs; returns its ARN."""
        started = self.account.step_functions.start_execution(
            stateMachineArn=self.account.stack.state_machine_arn, input="{}"
        )
        execution = str(started["executionArn"])
        lock = OpenRound(round=record.round, execution=execution, opened_at=record.opened_at)
        table = self.account.rounds_table
        table.put_item(Item=record.model_copy(update={"execution": execution}).to_item())
        table.update_item(
            Key={"fleet": FLEET, "key": "state"},
            UpdateExpression="SET #open = :open, #last = :last",
            ExpressionAttributeNames={"#open": "open", "#last": "last"},
            ExpressionAttributeValues=to_attribute({":open": lock.model_dump(mode="json"), ":last": record.round}),
        )
        return execution

    def input_of(self, execution: str) -> dict[str, Any]:
        """Return what an execution was started with."""
        found: dict[str, Any] = json.loads(
            self.account.step_functions.describe_execution(executionArn=execution)["input"]
        )
        return found


class Browser:
    """Loads pages and submits their forms, as a browser does: with the page's CSRF token and its own ``Origin``."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def get(self, address: str, status: int = 200) -> str:
        answer = self.client.get(address)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, address: str, page: str = "/rounds/", **fields: str) -> TestResponse:
        """Submit a form of a page."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.client.get(page).text)
        assert found, f"{page} has no form"
        return self.client.post(address, data={"csrf": found[1], **fields}, headers={"Origin": "http://localhost"})

    def wait_for_index(self) -> DeviceSnapshot:
        """Have the devices read, however slow this machine is now."""
        look: DeviceSnapshot = self.client.application.extensions["context"].index.look(60)
        return look


@cache
def _account() -> Any:
    return Account.of(FLEET).session  # one for all tests: it keeps the services' models


@contextmanager
def fresh_fleet() -> Iterator[Fleet]:
    """An account in moto with nothing but a fleet's stack in it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        with mock_aws():
            yield Fleet()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with fresh_fleet() as fleet:
        yield fleet


def browser_of(account: Account, access: Access | None = None) -> Browser:
    """Return a browser that has not been to the console yet."""
    return Browser(_app(account, access or Access()).test_client())


@cache
def _app(account: Account, access: Access) -> Flask:
    return create_app(account, access, clock=NOW.timestamp)


@pytest.fixture
def browser(fleet: Fleet) -> Browser:
    return browser_of(fleet.account)


def visible(page: str) -> str:
    """Return a page's words."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def typed(settings: FleetSettings) -> dict[str, str]:
    """What a browser sends of a form that nobody touched."""
    fields = form_of(settings).fields
    return {one.name: one.value for one in fields if one.kind != "switch" or one.value == "true"}

"""A fleet in this process: moto's tables and bucket, and recording stand-ins for the services that act."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import boto3
from botocore.exceptions import ClientError

from fedgrass.cloud.rounds.notices import Delivery
from fedgrass.cloud.rounds.open_round import OpenRequest, open_round
from fedgrass.cloud.rounds.services import Services
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.message import Message
from fedgrass.protocol.messages import Base, ModelNotice, UpdateNotice
from fedgrass.protocol.names import device_topic, parameters_key, report_key, update_key
from fedgrass.protocol.records import RoundRecord, to_attribute
from fedgrass.protocol.report import Evaluation, ModelEntry, Outcome, RoundReport, UpdateEntry
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.tables import load_round, load_state, save_settings, set_current_model
from tests.fixtures.doubles import double
from tests.fixtures.tables import create_tables

FLEET = "digits"
EXECUTION = "arn:aws:states:us-east-1:123456789012:execution:fedgrass-digits-round:one"
GRAPH = "a" * 64
BASE = Base(
    version="1.0.0", parameters_key=parameters_key(FLEET, "1.0.0"), parameters_sha256="0" * 64, graph_sha256=GRAPH
)


def client_error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, "Operation")


class StepFunctions:
    """Tokens: ``waiting`` ones can be answered once. Executions: of one name there is one ever."""

    def __init__(self) -> None:
        self.started: dict[str, dict[str, Any]] = {}
        self.fails = 0
        self.answers: dict[str, tuple[str, Any]] = {}
        self.gone: set[str] = set()
        self.statuses: dict[str, str] = {EXECUTION: "RUNNING"}

    def send_task_success(self, *, taskToken: str, output: str) -> None:  # noqa: N803 - boto3's names
        self._answer(taskToken, ("success", json.loads(output)))

    def send_task_failure(self, *, taskToken: str, error: str, cause: str) -> None:  # noqa: N803
        self._answer(taskToken, ("failure", {"error": error, "cause": cause}))

    def describe_execution(self, *, executionArn: str) -> dict[str, str]:  # noqa: N803
        if executionArn not in self.statuses:
            raise client_error("ExecutionDoesNotExist")
        return {"status": self.statuses[executionArn]}

    def stop_execution(self, *, executionArn: str, error: str, cause: str) -> None:  # noqa: N803
        assert error
        assert cause
        self.statuses[executionArn] = "ABORTED"

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, str]:  # noqa: A002, N803
        if self.fails:
            self.fails -= 1
            raise client_error("InternalError")
        assert 1 <= len(name) <= 80
        arn = f"{stateMachineArn.replace(':stateMachine:', ':execution:')}:{name}"
        if arn in self.statuses and (self.statuses[arn] != "RUNNING" or self.started[name] != json.loads(input)):
            raise client_error("ExecutionAlreadyExists")
        self.started[name] = json.loads(input)
        self.statuses[arn] = "RUNNING"
        return {"executionArn": arn}

    def _answer(self, token: str, answer: tuple[str, Any]) -> None:
        if token in self.gone:
            raise client_error("TaskTimedOut")
        self.gone.add(token)
        self.answers[token] = answer


class IotData:
    """The retained message of each topic."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.published: list[tuple[str, bytes]] = []
        self.fails = 0

    def publish(self, *, topic: str, qos: int, retain: bool, payload: bytes) -> None:
        if self.fails:
            self.fails -= 1
            raise client_error("InternalFailureException")
        assert (qos, retain) == (1, True)
        self.published.append((topic, payload))
        self.retained.pop(topic, None)
        if payload:
            self.retained[topic] = payload


class SageMaker:
    """Jobs by name, each taken once."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []

    def create_processing_job(self, **arguments: Any) -> None:
        name = arguments["ProcessingJobName"]
        if name in self.jobs:
            raise client_error("ResourceInUse")
        self.jobs[name] = {**arguments, "ProcessingJobStatus": "InProgress"}

    def describe_processing_job(self, *, ProcessingJobName: str) -> dict[str, Any]:  # noqa: N803
        return self.jobs[ProcessingJobName]

    def stop_processing_job(self, *, ProcessingJobName: str) -> None:  # noqa: N803
        if self.jobs[ProcessingJobName]["ProcessingJobStatus"] != "InProgress":
            raise client_error("ValidationException")
        self.stopped.append(ProcessingJobName)


@cache
def _session() -> Any:
    return boto3.Session(region_name="us-east-1")  # one for all tests: it keeps the services' models


class Session:
    """A boto3 session in which some services are stand-ins."""

    def __init__(self, stand_ins: dict[str, Any]) -> None:
        self._stand_ins = stand_ins
        self._real = _session()

    def client(self, name: str, **arguments: Any) -> Any:
        return self._stand_ins.get(name) or self._real.client(name, **arguments)

    def resource(self, name: str, **arguments: Any) -> Any:
        return self._real.resource(name, **arguments)


class Fleet:
    """The fleet under test. Must be made where moto is active."""

    def __init__(self, settings: FleetSettings | None = None, *, subnets: str = "", groups: str = "") -> None:
        self.step_functions = StepFunctions()
        self.iot = IotData()
        self.sagemaker = SageMaker()
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        stand_ins = {"stepfunctions": self.step_functions, "iot-data": self.iot, "sagemaker": self.sagemaker}
        environment = {
            "FEDGRASS_FLEET": FLEET,
            "FEDGRASS_ACCOUNT": "123456789012",
            "FEDGRASS_BUCKET": "fedgrass-digits",
            "FEDGRASS_ROUNDS_TABLE": "rounds",
            "FEDGRASS_DEVICES_TABLE": "devices",
            "FEDGRASS_JOB_ROLE_ARN": "arn:aws:iam::123456789012:role/aggregator",
            "FEDGRASS_IMAGE": "aggregator",
            "FEDGRASS_THING_GROUP_ARN": "arn:aws:iot:us-east-1:123456789012:thinggroup/digits",
            "FEDGRASS_MODEL_COMPONENT": "com.fedgrass.GlobalModel",
            "FEDGRASS_MODEL_PACKAGE_GROUP": "fedgrass-digits",
            "FEDGRASS_INSTANCE_TYPE": "ml.m5.large",
            "FEDGRASS_INSTANCE_COUNT": "1",
            "FEDGRASS_STATE_MACHINE_ARN": EXECUTION.replace(":execution:", ":stateMachine:").removesuffix(":one"),
            "FEDGRASS_SUBNETS": subnets,
            "FEDGRASS_SECURITY_GROUPS": groups,
        }
        self.services = Services(double(Session(stand_ins)), environment, clock=lambda: self.now)
        self.rounds = self.services.rounds
        self.services.s3.create_bucket(Bucket="fedgrass-digits")
        create_tables(_session().client("dynamodb"), rounds="rounds", devices="devices")
        set_current_model(self.rounds, FLEET, BASE)
        save_settings(self.rounds, FLEET, settings or FleetSettings())

    @property
    def now_ms(self) -> int:
        return int(self.now.timestamp() * 1000)

    @property
    def announcement(self) -> bytes | None:
        return self.iot.retained.get("fedgrass/digits/round")

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def heartbeats(self, *things: str, **fields: Any) -> None:
        """Write what the topic rule writes."""
        for thing in things:
            beat = Heartbeat(fleet=FLEET, thing=thing, sent_at=self.now, interval_seconds=30, **fields)
            item = {**json.loads(beat.encode()), "received_at": self.now_ms}
            self.services.devices.put_item(Item=to_attribute(item))

    def open(self, execution: str = EXECUTION, **overrides: Any) -> RoundRecord:
        opened = open_round(self.services, OpenRequest(execution=execution, overrides=overrides))
        return self.round(opened["round"])

    def round(self, number: int = 1) -> RoundRecord:
        return load_round(self.rounds, FLEET, number)

    @property
    def open_round(self) -> int | None:
        lock = load_state(self.rounds, FLEET).open
        return lock.round if lock else None

    def update(self, thing: str, number: int = 1, **changes: Any) -> Delivery:
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "round": number,
            "thing": thing,
            "status": "uploaded",
            "key": update_key(FLEET, number, thing),
            "sha256": "1" * 64,
            "bytes": 1000,
            "num_examples": 60,
            "metrics": {"loss": 0.5},
        }
        return self.delivery(thing, "update", UpdateNotice(**{**fields, **changes}))

    def model(self, thing: str, outcome: Any = "active", version: str = "1.1.0", **changes: Any) -> Delivery:
        notice = ModelNotice(fleet=FLEET, thing=thing, version=version, outcome=outcome, **changes)
        return self.delivery(thing, "model", notice)

    def delivery(self, thing: str, channel: Any, message: Message | bytes) -> Delivery:
        payload = message if isinstance(message, bytes) else message.encode()
        return Delivery(
            topic=device_topic(FLEET, thing, channel),
            payload=base64.b64encode(payload).decode(),
            received_at=self.now_ms,
        )

    def write_report(self, outcome: Outcome = "released", number: int = 1, **changes: Any) -> RoundReport:
        """Write what the aggregator writes."""
        record = self.round(number)
        update = UpdateEntry(thing="a", key="k", etag="e", bytes=1, num_examples=1, weight=1.0, norm=1.0)
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "round": number,
            "outcome": outcome,
            "strategy": "fedavg",
            "started_at": self.now,
            "finished_at": self.now,
            "base": ModelEntry(
                version=record.base.version, parameters_sha256=record.base.parameters_sha256, graph_sha256=GRAPH
            ),
            "model": ModelEntry(version=record.version, parameters_sha256="2" * 64, graph_sha256=GRAPH),
            "updates": (update,),
            "evaluation": Evaluation(loss=0.25, accuracy=0.9, examples=100),
        }
        report = RoundReport(**{**fields, **changes})
        self.services.s3.put_object(
            Bucket="fedgrass-digits", Key=report_key(FLEET, number), Body=io.BytesIO(report.to_json())
        )
        return report


FleetFactory = Callable[..., Fleet]

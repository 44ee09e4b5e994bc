"""Every path of the state machine, run by an interpreter of the States Language with the real functions behind it.

The stack is the template's, deployed to the local AWS. Devices are scripted: they say over MQTT what components would.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest

from fedgrass.account import Account
from fedgrass.cloud.infrastructure.deploy import deploy
from fedgrass.cloudformation import StackOutputs
from fedgrass.local.aws.client import LocalAwsProcess, start
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.messages import Announcement, Base, ModelNotice, UpdateNotice
from fedgrass.protocol.names import device_topic, parameters_key, round_topic, update_key
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import load_round, load_state, set_current_model
from fedgrass.rounds_api import cancel_round, resume_run, run_so_far
from tests.fixtures.mqtt import MqttClient
from tests.fixtures.waiting import PATIENCE, eventually, longer_and_longer

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("state machine")]  # which one stack serves

FLEET = "path-tests"
THINGS = ("a", "b", "c")
_AGGREGATOR = Path(__file__).with_name("scripted_aggregator.py")


def scripted(script: str) -> dict[str, Any]:
    """A strategy's settings that only scripted_aggregator.py reads; the name is of the kind whose options nobody checks."""
    return {"name": "scripted:Aggregator", "options": {"script": script}}


class Stack:
    """A deployed fleet, its operator and its devices."""

    def __init__(self, session: Any, outputs: StackOutputs, mqtt: MqttClient) -> None:
        self.outputs = outputs
        self.mqtt = mqtt
        self.session = session
        self.step_functions = session.client("stepfunctions")
        self.s3 = session.client("s3")
        dynamodb = session.resource("dynamodb")
        self.rounds = dynamodb.Table(outputs.rounds_table)
        self.devices = dynamodb.Table(outputs.devices_table)

    def start(self, **overrides: Any) -> str:
        return self.begin({"deadline_seconds": int(PATIENCE), "rollout": {"wait_seconds": int(PATIENCE)}, **overrides})

    def begin(self, given: dict[str, Any]) -> str:
        started = self.step_functions.start_execution(
            stateMachineArn=self.outputs.state_machine_arn, input=json.dumps(given)
        )
        return str(started["executionArn"])

    def ended(self, execution: str) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            found: dict[str, Any] = self.step_functions.describe_execution(executionArn=execution)
            return found if found["status"] != "RUNNING" else None

        return eventually(lambda: check() or {})

    def results(self, execution: str) -> list[dict[str, Any]]:
        ended = self.ended(execution)
        assert ended["status"] == "SUCCEEDED", ended
        results: list[dict[str, Any]] = json.loads(ended["output"])["rounds"]
        return results

    def announced(self) -> Announcement:
        """Wait for the next announcement, passing over the clearing of the one before."""
        while not (message := self.mqtt.next_on(round_topic(FLEET))).payload:
            pass
        return Announcement.decode(message.payload)

    def withdrawn(self) -> None:
        assert self.mqtt.next_on(round_topic(FLEET)).payload == b""

    def round(self, number: int) -> RoundRecord:
        return load_round(self.rounds, FLEET, number)

    def is_free(self) -> bool:
        return load_state(self.rounds, FLEET).open is None

    def heartbeat(self, thing: str) -> None:
        beat = Heartbeat(fleet=FLEET, thing=thing, sent_at=datetime.now(timezone.utc), interval_seconds=600)
        self.mqtt.publish(device_topic(FLEET, thing, "heartbeat"), beat.encode())

    def upload(self, announcement: Announcement, *things: str) -> None:
        for thing in things:
            key = update_key(FLEET, announcement.round, thing)
            self.s3.put_object(Bucket=announcement.upload.bucket, Key=key, Body=b"update")
            self.answer(announcement, thing, status="uploaded", key=key, bytes=6, num_examples=10)

    def counted_before_the_deadline(self, *things: str) -> tuple[str, Announcement]:
        """Start a round whose deadline comes when these devices' updates are counted, and no others."""
        for seconds in longer_and_longer():
            execution = self.start(deadline_seconds=seconds)
            announcement = self.announced()
            self.upload(announcement, *things)
            eventually(
                lambda number=announcement.round: (  # type: ignore[misc]
                    self.round(number).uploaded == len(things) or self.round(number).phase == "closed"
                )
            )
            if self.round(announcement.round).uploaded == len(things):
                return execution, announcement
            self.ended(execution)
        raise AssertionError("this machine counts no update in time")

    def answer(self, announcement: Announcement, thing: str, **fields: Any) -> None:
        notice = UpdateNotice(fleet=FLEET, round=announcement.round, thing=thing, **fields)
        self.mqtt.publish(device_topic(FLEET, thing, "update"), notice.encode())

    def activate(self, version: str, *things: str, outcome: Any = "active") -> None:
        for thing in things:
            notice = ModelNotice(fleet=FLEET, thing=thing, version=version, outcome=outcome)
            self.mqtt.publish(device_topic(FLEET, thing, "model"), notice.encode())

    def in_phase(self, number: int, *phases: str) -> None:
        eventually(lambda: self.round(number).phase in phases)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAwsProcess]:
    command = shlex.join([sys.executable, str(_AGGREGATOR)])
    with start(tmp_path_factory.mktemp("aws"), processing_command=command) as account:
        yield account


@pytest.fixture(scope="module")
def deployed(account: LocalAwsProcess) -> tuple[Any, StackOutputs]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in account.environment().items():
            patch.setenv(name, value)
        session = boto3.Session()
        outputs = deploy(session, fleet=FLEET, parameters={"RoundsOfAnExecution": "3"}, dependencies=False)
        base = Base(
            version="1.0.0",
            parameters_key=parameters_key(FLEET, "1.0.0"),
            parameters_sha256="0" * 64,
            graph_sha256="a" * 64,
        )
        set_current_model(session.resource("dynamodb").Table(outputs.rounds_table), FLEET, base)
        return session, outputs


@pytest.fixture
def stack(
    account: LocalAwsProcess, deployed: tuple[Any, StackOutputs], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stack]:
    for name, value in account.environment().items():
        monkeypatch.setenv(name, value)
    session, outputs = deployed
    with MqttClient(account.mqtt) as mqtt:
        stack = Stack(session, outputs, mqtt)
        for thing in THINGS:
            stack.heartbeat(thing)
        eventually(lambda: len(fleet_members(stack.devices, FLEET)) == len(THINGS))
        mqtt.subscribe(round_topic(FLEET))
        yield stack
        eventually(stack.is_free)


def test_a_round_ends_on_quorum_and_waits_for_the_devices(stack: Stack) -> None:
    execution = stack.start()
    announcement = stack.announced()
    stack.upload(announcement, "a", "b", "c")
    before = time.monotonic()
    stack.withdrawn()
    stack.in_phase(announcement.round, "rolling_out")
    version = stack.round(announcement.round).version
    stack.activate(version, "a", "b")
    stack.activate(version, "c", outcome="refused")
    (result,) = stack.results(execution)
    print(f"from the last upload to the end: {time.monotonic() - before:.2f} s")
    assert result == {
        "round": announcement.round,
        "outcome": "released",
        "reason": "",
        "version": version,
        "participants": 3,
        "quarantined": 0,
        "accuracy": 0.9,
        "active": 2,
    }
    record = stack.round(announcement.round)
    assert (record.uploaded, record.active, record.refused, record.bytes_uploaded) == (3, 2, 1, 18)
    assert record.seconds_last_upload_to_active is not None
    parts = {part.thing: part.model_outcome for part in participations(stack.rounds, FLEET, announcement.round)}
    assert parts == {"a": "active", "b": "active", "c": "refused"}
    state = load_state(stack.rounds, FLEET)
    assert state.model is not None
    assert state.model.version == version


def test_at_the_deadline_the_round_goes_on_with_what_there_is(stack: Stack) -> None:
    execution, announcement = stack.counted_before_the_deadline("a", "b")
    stack.in_phase(announcement.round, "rolling_out")
    stack.upload(announcement, "c")  # too late
    eventually(lambda: stack.round(announcement.round).late)
    stack.activate(stack.round(announcement.round).version, *THINGS)
    (result,) = stack.results(execution)
    assert (result["outcome"], result["participants"]) == ("released", 2)
    record = stack.round(announcement.round)
    assert (record.uploaded, record.late) == (2, 1)


def test_an_execution_with_aggregate_now_ends_the_collecting_and_a_job_without_memory_is_repeated_larger(
    stack: Stack,
) -> None:
    execution = stack.start(deadline_seconds=3600, strategy=scripted("much_memory"))
    announcement = stack.announced()
    refused = stack.ended(stack.begin({"aggregate_now": True}))
    assert refused["status"] == "FAILED"
    assert "2 are needed" in refused["cause"]
    stack.upload(announcement, "a", "b")
    eventually(lambda: stack.round(announcement.round).uploaded == 2)
    ended = stack.ended(stack.begin({"aggregate_now": True}))
    assert json.loads(ended["output"]) == {"round": announcement.round, "uploaded": 2}
    stack.in_phase(announcement.round, "rolling_out")
    stack.activate(stack.round(announcement.round).version, *THINGS)
    (result,) = stack.results(execution)
    assert (result["outcome"], result["participants"]) == ("released", 2)


def test_too_few_updates_at_the_deadline_leave_the_model_unchanged(stack: Stack) -> None:
    before = load_state(stack.rounds, FLEET).model
    execution, _ = stack.counted_before_the_deadline("a")
    (result,) = stack.results(execution)
    assert result["outcome"] == "insufficient_updates"
    assert "1 of 3 devices sent an update, 2 are needed" in result["reason"]
    assert load_state(stack.rounds, FLEET).model == before


def test_nobody_is_waited_for_who_has_declined(stack: Stack) -> None:
    execution = stack.start(deadline_seconds=3600)
    announcement = stack.announced()
    stack.answer(announcement, "a", status="declined", reason="the disk is full")
    stack.upload(announcement, "b", "c")
    stack.in_phase(announcement.round, "rolling_out")
    stack.activate(stack.round(announcement.round).version, *THINGS)
    (result,) = stack.results(execution)
    assert (result["outcome"], result["participants"]) == ("released", 2)


def test_a_model_that_the_gate_holds_is_not_waited_for(stack: Stack) -> None:
    before = load_state(stack.rounds, FLEET).model
    execution = stack.start(strategy=scripted("held"), rollout={"wait_seconds": 3600})
    stack.upload(stack.announced(), *THINGS)
    (result,) = stack.results(execution)
    assert result["outcome"] == "held"
    assert load_state(stack.rounds, FLEET).model == before


def test_a_device_that_stays_silent_does_not_hold_up_the_close(stack: Stack) -> None:
    for seconds in longer_and_longer():
        execution = stack.start(rollout={"wait_seconds": seconds})
        announcement = stack.announced()
        stack.upload(announcement, *THINGS)
        stack.in_phase(announcement.round, "rolling_out")
        stack.activate(stack.round(announcement.round).version, "a")
        (result,) = stack.results(execution)
        if result["active"]:
            break
    assert (result["outcome"], result["active"]) == ("released", 1)


@pytest.mark.parametrize(
    ("script", "cause"),
    [("fail", "the evaluation set is not readable"), ("no_report", "left no report")],
)
def test_a_failed_aggregator_fails_the_round_with_its_own_words(stack: Stack, script: str, cause: str) -> None:
    execution = stack.start(strategy=scripted(script))
    announcement = stack.announced()
    stack.upload(announcement, *THINGS)
    ended = stack.ended(execution)
    assert (ended["status"], ended["error"]) == ("FAILED", "AggregationError")
    assert cause in ended["cause"]
    assert not ended["cause"].startswith("{")
    record = stack.round(announcement.round)
    assert (record.phase, record.outcome) == ("closed", "failed")
    assert cause in record.reason
    assert stack.is_free()


def test_a_round_cancelled_while_it_collects_is_withdrawn(stack: Stack) -> None:
    execution = stack.start()
    announcement = stack.announced()
    stack.step_functions.stop_execution(executionArn=execution, cause="the operator changed her mind")
    stack.withdrawn()
    eventually(stack.is_free)
    record = stack.round(announcement.round)
    assert (record.outcome, record.reason) == ("cancelled", "the operator changed her mind")
    account = Account.of(FLEET)
    started = resume_run(account, {})
    again = stack.announced()
    resumed = stack.round(again.round)
    assert (resumed.execution, resumed.run) == (started.execution, run_so_far(record))
    assert resumed.run is not None
    assert resumed.run.standing.done == 0, "the cancelled round counts as none, but for what it cost"
    assert resumed.settings == record.settings
    assert cancel_round(account, "that will do") == again.round
    eventually(stack.is_free)


def test_a_round_cancelled_while_it_aggregates_stops_the_job(stack: Stack) -> None:
    execution = stack.start(strategy=scripted("hang"))
    announcement = stack.announced()
    stack.upload(announcement, *THINGS)
    stack.in_phase(announcement.round, "aggregating")
    eventually(lambda: stack.round(announcement.round).job)
    stack.step_functions.stop_execution(executionArn=execution)
    eventually(stack.is_free)
    job = stack.round(announcement.round).job
    sagemaker = stack.session.client("sagemaker")
    eventually(lambda: sagemaker.describe_processing_job(ProcessingJobName=job)["ProcessingJobStatus"] == "Stopped")


def test_a_second_start_is_refused_with_the_open_round(stack: Stack) -> None:
    first = stack.start()
    announcement = stack.announced()
    refused = stack.ended(stack.start())
    assert (refused["status"], refused["error"]) == ("FAILED", "RoundRefusedError")
    assert f"round {announcement.round} of fleet '{FLEET}' is open" in refused["cause"]
    assert not stack.is_free()
    stack.step_functions.stop_execution(executionArn=first)


def test_a_setting_that_does_not_exist_fails_the_execution_by_its_name(stack: Stack) -> None:
    ended = stack.ended(stack.start(fit={"epoch": 1}))
    assert ended["error"] == "ConfigurationError"
    assert "fit.epoch" in ended["cause"]


def test_rounds_follow_one_another_each_from_the_model_of_the_one_before(stack: Stack) -> None:
    execution = stack.start(rounds=4)
    versions = []
    for _ in range(4):
        announcement = stack.announced()
        versions.append((announcement.base.version, stack.round(announcement.round).version))
        stack.upload(announcement, *THINGS)
        stack.in_phase(announcement.round, "rolling_out")
        stack.activate(versions[-1][1], *THINGS)
    results = stack.results(execution)
    assert [result["outcome"] for result in results] == ["released"] * 3
    assert versions[1][0] == versions[0][1]
    assert versions[2][0] == versions[1][1]
    pages = stack.step_functions.get_paginator("get_execution_history").paginate(executionArn=execution)
    events = sum(len(page["events"]) for page in pages)
    assert events / 3 * 500 < 25_000, "the most rounds that settings allow would not fit into an execution's history"
    # The fourth is another execution's: the stack lets one have three.
    following = json.loads(stack.ended(execution)["output"])["next"]
    (fourth,) = stack.results(following)
    assert (fourth["outcome"], stack.round(fourth["round"]).of_run) == (
        "released",
        f"4 of 4 since round {results[0]['round']}",
    )
    assert stack.round(fourth["round"]).execution == following
    record = stack.round(results[-1]["round"])
    assert record.closed_at is not None
    assert record.collected_at is not None
    assert record.aggregated_at is not None
    assert record.last_upload_at is not None
    print(
        f"collect lag {record.collected_at.timestamp() - record.last_upload_at / 1000:.3f} s, "
        f"aggregate {(record.aggregated_at - record.collected_at).total_seconds():.3f} s, "
        f"close {(record.closed_at - record.aggregated_at).total_seconds():.3f} s"
    )


def test_a_heartbeat_is_kept_under_the_name_of_its_topic_only(stack: Stack) -> None:
    liar = Heartbeat(fleet="another", thing="a", sent_at=datetime.now(timezone.utc), interval_seconds=5)
    before = time.time()
    stack.mqtt.publish(device_topic(FLEET, "liar", "heartbeat"), liar.encode())
    item = eventually(lambda: stack.devices.get_item(Key={"fleet": FLEET, "thing": "liar"}).get("Item"))
    honest = stack.devices.get_item(Key={"fleet": FLEET, "thing": "a"})["Item"]
    stack.devices.delete_item(Key={"fleet": FLEET, "thing": "liar"})
    assert item["interval_seconds"] == 5
    assert honest["interval_seconds"] == 600
    assert before * 1000 - 1 <= item["received_at"] <= time.time() * 1000
    assert before + 2_592_000 - 1 <= item["expires"] <= time.time() + 2_592_000
    assert item["trainer"]["state"] == "idle"


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"{}", b'{"interval_seconds": "soon"}'], ids=repr)
def test_a_heartbeat_that_is_none_is_not_kept(stack: Stack, payload: bytes) -> None:
    stack.mqtt.publish(device_topic(FLEET, "odd", "heartbeat"), payload)
    # Rules are executed in the order of messages: when this one is there, the other was looked at.
    beat = Heartbeat(fleet=FLEET, thing="marker", sent_at=datetime.now(timezone.utc), interval_seconds=1)
    stack.mqtt.publish(device_topic(FLEET, "marker", "heartbeat"), beat.encode())
    eventually(lambda: stack.devices.get_item(Key={"fleet": FLEET, "thing": "marker"}).get("Item"))
    stack.devices.delete_item(Key={"fleet": FLEET, "thing": "marker"})
    assert "Item" not in stack.devices.get_item(Key={"fleet": FLEET, "thing": "odd"})

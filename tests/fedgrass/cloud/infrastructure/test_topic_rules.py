"""What the template's topic rules make of the devices' messages, by their own SQL."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest

from fedgrass.local.aws import sql
from fedgrass.local.aws.sql_values import Message
from fedgrass.protocol.device_messages import Heartbeat, TrainerStatus
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.instances import Instance
from fedgrass.protocol.messages import Reply
from fedgrass.protocol.names import TRAINER, device_topic
from fedgrass.protocol.records import Device, reply_key
from tests.fedgrass.cloud.infrastructure.resolved import Template


@pytest.fixture(scope="module")
def template() -> Template:
    return Template()


def item(template: Template, rule: str, topic: str, payload: bytes) -> dict[str, Any] | None:
    """What the rule would write; None if it does not fire."""
    query, message = sql.parse(template.resources[rule]["TopicRulePayload"]["Sql"]), Message(topic, payload)
    if not query.fires(message):
        return None
    found: dict[str, Any] = json.loads(json.dumps(query.select(message)), parse_float=Decimal)
    return found


def test_a_heartbeat_reaches_the_table_whole(template: Template) -> None:
    beat = Heartbeat(
        fleet="digits",
        thing="a",
        sent_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        interval_seconds=30,
        able=False,
        reason="window",
        trainer_runs=False,
        cpu_percent=3.5,
        load=0.25,
        memory_percent=40,
        disk_free_bytes=1 << 40,
        examples=7,
        model_version="1.2.0",
        trainer=TrainerStatus(state="waiting"),
        components={TRAINER: "1.0.0"},
        silent=("com.fedgrass.ModelDeployer",),
        errors={TRAINER: "no route to host"},
        tags={"site": "north"},
        drift=Drift(profile=3, rows=500, inputs=0.5, feature=2, distance=1.25, scores=0.0, inputs_change=1e-7),
    )
    stored = Device.from_item(
        item(template, "HeartbeatRule", device_topic("digits", "a", "heartbeat"), beat.encode()) or {}
    )
    assert {name: getattr(stored, name) for name in Heartbeat.model_fields} == dict(beat)
    # One that is left out of the rule cannot hide behind its default: only what InstanceRule takes has it here.
    unset = {
        name
        for name, field in Heartbeat.model_fields.items()
        if getattr(beat, name) == field.get_default(call_default_factory=True)
    }
    assert unset == {"schema_", "instance", "up_seconds"}


def test_a_heartbeat_that_names_its_process_leaves_an_item_of_it(template: Template) -> None:
    sent_at, topic = datetime(2026, 1, 1, tzinfo=timezone.utc), device_topic("digits", "a", "heartbeat")
    beat = Heartbeat(
        fleet="digits", thing="b", sent_at=sent_at, interval_seconds=30, instance="0123abcd", up_seconds=12.5
    )
    found = item(template, "InstanceRule", topic, beat.encode()) or {}
    assert found["key"] == "instance#a#0123abcd"
    assert found["expires"] == found["received_at"] // 1000 + 60 + 900
    read = Instance.from_item(found)
    assert (read.fleet, read.thing, read.instance, read.sent_at) == ("digits", "a", "0123abcd", sent_at)
    assert read.up_seconds == 12.5
    unnamed = Heartbeat(fleet="digits", thing="a", sent_at=sent_at, interval_seconds=30)
    assert item(template, "InstanceRule", topic, unnamed.encode()) is None


def test_a_device_s_message_cannot_pass_for_another_s(template: Template) -> None:
    beat = {"fleet": "other", "thing": "b", "interval_seconds": 30}
    found = item(template, "HeartbeatRule", device_topic("digits", "a", "heartbeat"), json.dumps(beat).encode()) or {}
    assert (found["fleet"], found["thing"]) == ("digits", "a")
    reply = {"fleet": "other", "thing": "b", "id": "1", "key": "reply#b#1"}
    found = item(template, "ReplyRule", device_topic("digits", "a", "reply"), json.dumps(reply).encode()) or {}
    assert (found["fleet"], found["key"]) == ("digits", reply_key("a", "1"))


def test_a_message_larger_than_any_of_ours_leaves_no_item(template: Template) -> None:
    for size, kept in ((4096, True), (4099, False), (120_000, False)):
        beat = b'{"interval_seconds": 30, "id": "1", "reason": "%s"}' % (b"x" * (size - 49))
        beat = beat.ljust(size)
        assert len(beat) == size
        for rule, topic in (
            ("HeartbeatRule", device_topic("digits", "a", "heartbeat")),
            ("ReplyRule", device_topic("digits", "a", "reply")),
        ):
            assert (item(template, rule, topic, beat) is not None) == kept


def test_a_reply_is_kept_as_it_came_for_as_long_as_updates_are(template: Template) -> None:
    reply = Reply(fleet="digits", thing="a", id="x-1", kind="fit", status="done", metrics={"loss": 0.5})
    found = item(template, "ReplyRule", device_topic("digits", "a", "reply"), reply.encode()) or {}
    assert found["key"] == reply_key("a", "x-1")
    assert Reply.decode(base64.b64decode(found["payload"])) == reply
    assert found["expires"] == found["received_at"] // 1000 + 30 * 86_400


@pytest.mark.parametrize("payload", [b"{}", b"\xff", b'{"id": ""}', b"[]"])
def test_a_reply_without_an_id_is_not_kept(template: Template, payload: bytes) -> None:
    assert item(template, "ReplyRule", device_topic("digits", "a", "reply"), payload) is None


@pytest.mark.parametrize("runs", [True, False])
def test_only_a_heartbeat_that_says_that_the_trainer_is_gone_calls_a_function(template: Template, runs: bool) -> None:
    beat = Heartbeat(
        fleet="digits",
        thing="a",
        sent_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        interval_seconds=30,
        able=False,
        trainer_runs=runs,
    )
    found = item(template, "TrainerGoneRule", device_topic("digits", "a", "heartbeat"), beat.encode())
    assert (found is None) is runs
    if found is not None:
        assert base64.b64decode(found["payload"]) == beat.encode()

"""Commands from the operator's side: repeated until answered, answered once, checked on arrival."""

from __future__ import annotations

import base64
import io
import json
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedgrass.account import Account
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.commands import Commander
from fedgrass.errors import BundleError, CommandError
from fedgrass.files import sha256_of
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.messages import Command, Reply
from fedgrass.protocol.names import command_key, device_topic
from fedgrass.protocol.records import reply_key
from tests.fedgrass.edge import digits
from tests.fixtures.doubles import double

FLEET, THING, BUCKET = "f", "thing-1", "bucket"


class Table:
    """Items by their range key."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}

    def get_item(self, *, Key: dict[str, str], **_: Any) -> dict[str, Any]:  # noqa: N803
        found = self.items.get(Key.get("key") or Key["thing"])
        return {"Item": found} if found else {}


class Cloud:
    """An account whose one device answers the message number ``answers`` of each command; and its clock."""

    meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))

    class exceptions:  # noqa: N801 - as boto3's clients have it
        NoSuchKey = KeyError

    def __init__(self, *, answers: int = 1, settings: dict[str, Any] | None = None) -> None:
        self.rounds, self.devices = Table(), Table()
        self.objects: dict[str, bytes] = {}
        self.published: list[Command] = []
        self.now = 0.0
        self._answers = answers
        beat = Heartbeat(fleet=FLEET, thing=THING, sent_at=datetime.now(timezone.utc), interval_seconds=30)
        self.devices.items[THING] = beat.model_dump(mode="json") | {"received_at": 1}
        self.rounds.items["settings"] = {"json": json.dumps(settings or {})}

    def client(self, _name: str) -> Any:
        return self

    def resource(self, _name: str) -> Any:
        return self

    def publish(self, *, topic: str, qos: int, payload: bytes) -> None:
        command = Command.decode(payload)
        assert (topic, qos) == (device_topic(FLEET, command.thing, "command"), 1)
        self.published.append(command)
        if len(self.published) == self._answers:
            self.answer(command)

    def answer(self, command: Command, **fields: Any) -> None:
        """What the device says, and the stack's rule keeps."""
        reply = Reply(fleet=FLEET, thing=THING, id=command.id, kind=command.kind, **({"status": "done"} | fields))
        payload = base64.b64encode(reply.encode()).decode()
        self.rounds.items[reply_key(THING, command.id)] = {"payload": payload}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        assert Bucket == BUCKET
        return {"Body": io.BytesIO(self.objects[Key])}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    @property
    def commander(self) -> Commander:
        account = Account(FLEET, double(self))
        account.__dict__.update(  # as if they had been looked up
            {
                "rounds_table": self.rounds,
                "devices_table": self.devices,
                "stack": type("Stack", (), {"bucket": BUCKET, "account": "123456789012"}),
            }
        )
        return Commander(account, clock=lambda: self.now, sleep=self.wait)


def test_a_command_is_repeated_under_one_id_until_the_device_answers() -> None:
    cloud = Cloud(answers=3)
    commander = cloud.commander
    command = commander.make(THING, "evaluate")
    reply = commander.send(command, patience=60)
    assert (reply.id, reply.status) == (command.id, "done")
    assert cloud.published == [command] * 3
    assert 20 <= cloud.now < 30
    assert commander.make(THING, "evaluate").id != command.id


def test_without_an_answer_it_says_how_to_look_later_and_the_answer_is_kept() -> None:
    cloud = Cloud(answers=100)
    commander = cloud.commander
    command = commander.make(THING, "fit")
    with pytest.raises(CommandError, match=f"fedgrass device reply {THING} {command.id}"):
        commander.send(command, patience=30)
    assert commander.reply(THING, command.id) is None
    cloud.answer(command, status="refused", reason="no data")
    reply = commander.reply(THING, command.id)
    assert reply is not None
    assert (reply.status, reply.reason) == ("refused", "no data")


@pytest.mark.parametrize(("field", "value"), [("version", "the one before"), ("reason", "x" * 5000)])
def test_a_value_that_no_message_can_carry_is_refused_by_its_name(field: str, value: str) -> None:
    given: dict[str, Any] = {field: value}
    with pytest.raises(CommandError, match=f"roll_back: {field}"):
        Cloud().commander.make(THING, "roll_back", **given)


def test_a_model_is_named_by_the_digests_of_its_published_manifest() -> None:
    cloud, bundle = Cloud(), Bundle.open(digits.BUNDLE)
    cloud.objects["models/f/1.0.0/model.json"] = (digits.BUNDLE / "model.json").read_bytes()
    command = cloud.commander.make(THING, "set_parameters", model="1.0.0")
    assert command.base == digits.base_of(bundle, FLEET)
    assert command.bucket == BUCKET
    with pytest.raises(CommandError, match=r"model 1\.7\.0"):
        cloud.commander.make(THING, "set_parameters", model="1.7.0")


def test_a_device_that_was_never_heard_is_named() -> None:
    with pytest.raises(CommandError, match=r"thing-2.*never seen"):
        Cloud().commander.make("thing-2", "evaluate")


@pytest.mark.parametrize("kind", ["fit", "evaluate"])
def test_a_fleet_with_local_privacy_asks_no_device_for_what_carries_no_noise(kind: str) -> None:
    cloud = Cloud(settings={"privacy": {"mode": "local"}})
    with pytest.raises(CommandError, match="local"):
        cloud.commander.make(THING, kind)
    assert cloud.commander.make(THING, "get_parameters").kind == "get_parameters"


def test_parameters_are_fetched_by_their_digest(tmp_path: Path) -> None:
    cloud, content = Cloud(), (digits.BUNDLE / PARAMETERS).read_bytes()
    key = command_key(FLEET, THING, "a")
    cloud.objects[key] = content
    fields = {"bucket": BUCKET, "key": key, "sha256": sha256_of(digits.BUNDLE / PARAMETERS), "bytes": len(content)}
    reply = Reply.model_validate({"fleet": FLEET, "thing": THING, "id": "a", "kind": "fit", "status": "done", **fields})
    cloud.commander.fetch(reply, tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == content
    cloud.objects[key] = content[:-1] + b"\x01"
    with pytest.raises(BundleError, match="digest"):
        cloud.commander.fetch(reply, tmp_path / "q")
    assert not (tmp_path / "q").exists()
    with pytest.raises(CommandError, match="names no parameters"):
        cloud.commander.fetch(reply.model_copy(update={"key": None}), tmp_path / "q")

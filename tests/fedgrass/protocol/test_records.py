from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from fedgrass.errors import ConfigurationError, RecordError
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.messages import Base, Cohort
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import Device, Participation, RoundRecord, to_attribute
from fedgrass.protocol.settings import Fit, FleetSettings
from fedgrass.protocol.tables import (
    Table,
    load_round,
    load_settings,
    load_state,
    recent_rounds,
    save_settings,
    set_current_model,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BASE = Base(version="1.0.0", parameters_key="k", parameters_sha256="0" * 64, graph_sha256="1" * 64)


def record(number: int, **changes: Any) -> RoundRecord:
    fields: dict[str, Any] = {
        "fleet": "f",
        "round": number,
        "execution": "e",
        "settings": FleetSettings(fit=Fit(learning_rate=0.05)),
        "base": BASE,
        "version": f"1.{number}.0",
        "cohort": Cohort(salt="s", fraction=0.3),
        "alive": 3,
        "asked": 2,
        "quorum": 2,
        "opened_at": NOW,
        "deadline": NOW,
        "accuracy": 0.1,
    }
    return RoundRecord(**{**fields, **changes})


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        table: Table = boto3.resource("dynamodb", region_name="us-east-1").create_table(
            TableName="rounds",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "fleet", "KeyType": "HASH"}, {"AttributeName": "key", "KeyType": "RANGE"}],
            AttributeDefinitions=[
                {"AttributeName": "fleet", "AttributeType": "S"},
                {"AttributeName": "key", "AttributeType": "S"},
            ],
        )
        yield table


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives_the_way_through_dynamodb(value: float) -> None:
    attribute = to_attribute({"a": [value]})["a"][0]
    assert not isinstance(attribute, float)
    assert float(attribute) == value
    if isinstance(attribute, Decimal) and attribute:
        assert Decimal("1e-130") <= abs(attribute) <= Decimal("1e126")
        assert len(attribute.as_tuple().digits) <= 38


def test_a_round_s_record_survives_the_table(rounds: Table) -> None:
    rounds.put_item(Item=record(7).to_item())
    assert load_round(rounds, "f", 7) == record(7)


def test_a_record_that_another_version_wrote_can_be_read(rounds: Table) -> None:
    item = record(7).to_item()
    settings = {**json.loads(item["settings"]), "mood": "good", "fit": {"epochs": 3, "batch_size": 8}}
    rounds.put_item(Item={**item, "settings": json.dumps(settings), "weather": "fair"})
    found = load_round(rounds, "f", 7)
    assert (found.settings.fit.epochs, found.base) == (3, record(7).base)


def test_participations_are_those_of_the_round_in_the_order_of_names(rounds: Table) -> None:
    rounds.put_item(Item=record(7).to_item())
    for number, thing in ((7, "b"), (7, "a"), (70, "c"), (8, "d")):
        part = Participation(fleet="f", round=number, thing=thing, metrics={"loss": 0.25})
        rounds.put_item(Item=part.to_item())
    found = list(participations(rounds, "f", 7))
    assert [part.thing for part in found] == ["a", "b"]
    assert found[0].metrics == {"loss": 0.25}


def test_the_newest_rounds_come_first(rounds: Table) -> None:
    for number in (1, 2, 3):
        rounds.put_item(Item=record(number).to_item())
    rounds.put_item(Item={"fleet": "f", "key": "state", "last": 3})
    assert [found.round for found in recent_rounds(rounds, "f", limit=2)] == [3, 2]


def test_a_round_that_never_was_says_where_to_look(rounds: Table) -> None:
    with pytest.raises(RecordError, match=r"round 9 of fleet 'f'.*fedgrass round list"):
        load_round(rounds, "f", 9)


def test_an_item_that_cannot_be_read_names_the_attribute(rounds: Table) -> None:
    rounds.put_item(Item={**record(1).to_item(), "asked": "many"})
    with pytest.raises(RecordError, match=r"'round#000001' of fleet 'f': asked"):
        load_round(rounds, "f", 1)


def test_a_fleet_without_settings_has_the_defaults_and_keeps_what_it_saves(rounds: Table) -> None:
    assert load_settings(rounds, "f") == FleetSettings()
    save_settings(rounds, "f", FleetSettings(deadline_seconds=5))
    assert load_settings(rounds, "f").deadline_seconds == 5


def test_settings_that_are_not_valid_are_named(rounds: Table) -> None:
    rounds.put_item(Item={"fleet": "f", "key": "settings", "json": json.dumps({"quorum": 7})})
    with pytest.raises(ConfigurationError, match="settings of fleet 'f': quorum"):
        load_settings(rounds, "f")


def test_the_current_model_only_moves_forward(rounds: Table) -> None:
    newer = BASE.model_copy(update={"version": "1.10.0"})
    assert set_current_model(rounds, "f", BASE)
    assert set_current_model(rounds, "f", newer)
    assert set_current_model(rounds, "f", newer)
    assert not set_current_model(rounds, "f", BASE.model_copy(update={"version": "1.9.0"}))
    assert load_state(rounds, "f").model == newer


def test_a_device_is_alive_for_three_of_its_own_intervals() -> None:
    beat = Heartbeat(fleet="f", thing="a", sent_at=NOW, interval_seconds=10)
    device = Device.from_item({**json.loads(beat.encode()), "received_at": 1000})
    assert device.alive(31_000)
    assert not device.alive(31_001)


@pytest.mark.parametrize(
    ("counts", "collected"),
    [
        ({}, False),
        ({"uploaded": 1}, False),
        ({"uploaded": 2}, True),
        ({"uploaded": 1, "declined": 1}, True),
        ({"failed": 2}, True),
        ({"uploaded": 1, "late": 5}, False),
    ],
)
def test_collecting_ends_on_quorum_or_when_nobody_is_left(counts: dict[str, int], collected: bool) -> None:
    assert record(1, **counts).collected is collected

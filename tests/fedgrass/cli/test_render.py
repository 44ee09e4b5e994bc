"""What the tables of the command line say."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone

import pytest
from rich.console import Console

from fedgrass.cli import render
from fedgrass.protocol.members import FleetMember
from fedgrass.protocol.names import HEARTBEAT, TRAINER
from fedgrass.protocol.records import Device


def test_the_fleet_shows_at_a_glance_who_can_train_and_why_not() -> None:
    common = {"fleet": "f", "sent_at": datetime.now(timezone.utc), "interval_seconds": 30, "received_at": 1_000_000}
    members = [
        FleetMember("well", Device.model_validate({**common, "thing": "well"})),
        FleetMember(
            "unwell",
            Device.model_validate(
                {
                    **common,
                    "thing": "unwell",
                    "able": False,
                    "reason": "the trainer has been silent for 130 s",
                    "silent": [TRAINER],
                    "errors": {HEARTBEAT: "disk full"},
                }
            ),
        ),
        FleetMember("away", Device.model_validate({**common, "thing": "away", "received_at": 1})),
        FleetMember("new"),
    ]
    shown = io.StringIO()
    Console(file=shown, width=250).print(render.fleet_table(members, {}, now_ms=1_001_000))
    text = shown.getvalue()
    for said in (
        "alive",
        "no: the trainer has been silent for 130 s",
        "Trainer is silent",
        "Heartbeat: disk full",
        "silent for 1001 s",
        "never seen",
    ):
        assert said in text


def test_devices_that_share_a_name_are_told() -> None:
    beat = {"fleet": "f", "sent_at": datetime.fromtimestamp(1000, timezone.utc), "interval_seconds": 30}
    members = [
        FleetMember(name, Device.model_validate({**beat, "thing": name, "received_at": 1_000_000})) for name in "ab"
    ]
    shown = io.StringIO()
    Console(file=shown, width=250).print(render.fleet_table(members, {}, now_ms=1_001_000, shared={"b"}))
    lines = {
        line.strip().split()[0]: line for line in shown.getvalue().splitlines() if line.strip()[:2] in {"a ", "b "}
    }
    assert "two devices use this name" in lines["b"]
    assert "use this name" not in lines["a"]


def test_a_long_error_takes_no_other_columns_place() -> None:
    device = Device.model_validate(
        {
            "fleet": "f",
            "thing": "unwell",
            "sent_at": datetime.now(timezone.utc),
            "interval_seconds": 30,
            "received_at": 1_000_000,
            "errors": {HEARTBEAT: "no room on the disk " * 10, TRAINER: "no data " * 20},
        }
    )
    shown = io.StringIO()
    Console(file=shown, width=120).print(render.fleet_table([FleetMember("unwell", device)], {}, now_ms=1_001_000))
    assert "unwell" in shown.getvalue()
    assert "alive" in shown.getvalue()


def test_a_silo_that_is_not_listed_is_shown_as_not_counted() -> None:
    beat = {"fleet": "f", "sent_at": datetime.now(timezone.utc), "interval_seconds": 30, "received_at": 1_000_000}
    names = ("111111111111-clinic", "111111111111-invented")
    members = [FleetMember(name, Device.model_validate({**beat, "thing": name})) for name in names]
    shown = io.StringIO()
    table = render.fleet_table(members, {}, now_ms=1_001_000, silos=names[:1])
    Console(file=shown, width=250).print(table)
    said = {line.split("│")[0].strip().split()[0]: line for line in shown.getvalue().splitlines() if "1111" in line}
    assert "not counted" not in said[names[0]]
    assert "not counted" in said[names[1]]


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0.5, ""), (-0.5, ""), (2, "its clock is 2.0 hours ahead"), (-72, "its clock is 3.0 days behind"),
     (-24 * 365.25 * 6, "its clock is 6.0 years behind")],
)  # fmt: skip
def test_a_clock_that_is_wrong_is_told(hours: float, said: str) -> None:
    heard = datetime(2026, 1, 1, tzinfo=timezone.utc)
    device = Device(
        fleet="f",
        thing="line:3",
        sent_at=heard + timedelta(hours=hours),
        interval_seconds=30,
        received_at=int(heard.timestamp() * 1000),
    )
    shown = io.StringIO()
    Console(file=shown, width=250).print(
        render.fleet_table([FleetMember("line:3", device)], {}, now_ms=device.received_at + 1000)
    )
    assert ("its clock" in shown.getvalue()) is bool(said)
    assert said in shown.getvalue()
    assert "line:3" in shown.getvalue()

"""Rounds at the points from which counting is tried, and what they have counted."""

from __future__ import annotations

from typing import Any

from fedgrass.cloud.rounds.record_report import RoundRequest, record_report
from fedgrass.cloud.rounds.record_update import record_update
from fedgrass.cloud.rounds.start_aggregation import start_aggregation
from fedgrass.cloud.rounds.tokens import TokenRequest
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import Participation
from tests.fedgrass.cloud.rounds.harness import FLEET, Fleet

INVENTED = ("210987654321-x", "210987654321-y", "210987654321-z")


def parts(fleet: Fleet, number: int = 1) -> dict[str, Participation]:
    return {part.thing: part for part in participations(fleet.rounds, FLEET, number)}


def released(fleet: Fleet, **overrides: Any) -> None:
    fleet.open(**overrides)
    for thing in "abc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    fleet.write_report()
    record_report(fleet.services, RoundRequest(round=1))


def judging(fleet: Fleet) -> None:
    fleet.open(gate={"devices_seconds": 60})
    record_update(fleet.services, fleet.update("a", status="declined"))
    for thing in "bc":
        record_update(fleet.services, fleet.update(thing))
    start_aggregation(fleet.services, TokenRequest(round=1, token="job"))
    fleet.rounds.update_item(
        Key={"fleet": FLEET, "key": "round#000001"},
        UpdateExpression="SET judging = :yes",
        ExpressionAttributeValues={":yes": True},
    )


FIGURES = {"loss": 0.4, "accuracy": 0.9, "base_loss": 0.5, "base_accuracy": 0.8}

"""How often each device's updates were refused, over all rounds: an item ``refused#<thing>`` in the table of rounds.

A round's own refusals are in its report. What is counted here is what one report cannot show: a device that is refused again and
again, broken or hostile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from pydantic import Field

from fedgrass.protocol.items import get_item, items_below
from fedgrass.protocol.names import FleetName, RoundNumber, ThingName
from fedgrass.protocol.records import Record
from fedgrass.protocol.report import UNKNOWN_THING, RoundReport
from fedgrass.protocol.tables import Table
from fedgrass.protocol.writes import update_item

_PREFIX = "refused#"


class Refusals(Record):
    """A device's refused updates: how many, and round and reason of the last."""

    fleet: FleetName
    thing: ThingName
    count: int = Field(ge=1)
    round: RoundNumber
    reason: str


def refusals(rounds: Table, fleet: str) -> dict[str, Refusals]:
    """Return the refusals of all devices that had any, by thing."""
    found = (Refusals.from_item(item) for item in items_below(rounds, "key", fleet, _PREFIX))
    return {one.thing: one for one in found}


def refusals_before(rounds: Table, fleet: str, number: int, things: Iterable[str]) -> dict[str, int]:
    """Count how often each of some devices was refused before a round.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round that is being aggregated; what it counted itself, before the job was run again, is left out.
    things
        Thing names; repetitions count once.

    Returns
    -------
    dict
        Refusals by thing name, without the devices that had none.
    """
    items = {thing: get_item(rounds, fleet, _PREFIX + thing) for thing in sorted(set(things))}
    found = {thing: Refusals.from_item(item) for thing, item in items.items() if item is not None}
    return {thing: one.count for thing, one in found.items() if one.round < number}


def count_refusals(rounds: Table, report: RoundReport) -> None:
    """Add a report's refusals to what is counted of each device; a report that was counted before changes nothing.

    Of a stranger nothing is counted: there are as many names as somebody makes up.
    """
    known = [entry for entry in report.quarantined if entry.thing and entry.reason != UNKNOWN_THING]
    reasons = {entry.thing: entry.reason for entry in known}
    counts = Counter(entry.thing for entry in known)
    for thing, count in counts.items():
        # A job that is run again meets its own count, and the condition on the round keeps it from counting twice.
        with suppress(rounds.meta.client.exceptions.ConditionalCheckFailedException):
            update_item(
                rounds,
                Key={"fleet": report.fleet, "key": _PREFIX + thing},
                UpdateExpression="SET #thing = :thing, #round = :round, #reason = :reason ADD #count :count",
                ConditionExpression="attribute_not_exists(#round) OR #round < :round",
                ExpressionAttributeNames={f"#{name}": name for name in ("thing", "round", "reason", "count")},
                ExpressionAttributeValues={
                    ":thing": thing,
                    ":round": report.round,
                    ":reason": reasons[thing],
                    ":count": count,
                },
            )

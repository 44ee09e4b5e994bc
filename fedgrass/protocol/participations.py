"""Each device's part in a round: what handlers, aggregator, console and command line ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fedgrass.protocol.items import Table, get_item, items_below, items_under
from fedgrass.protocol.records import Participation, participation_key, round_key


def load_participation(rounds: Table, fleet: str, number: int, thing: str) -> Participation | None:
    """Read a device's part in a round as it is now.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round, from 1.
    thing
        The device's thing name.

    Returns
    -------
    Participation or None
        None if the device has said nothing to this round.
    """
    item = get_item(rounds, fleet, participation_key(number, thing))
    return Participation.from_item(item) if item is not None else None


def participations(rounds: Table, fleet: str, number: int, *, consistent: bool = False) -> Iterator[Participation]:
    """Yield each device's part in a round, in the order of thing names.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round, from 1.
    consistent
        Whether writes of the last moments must be seen, at twice the read units.

    Yields
    ------
    Participation
        One for each device that has said something to this round.
    """
    for item in items_below(rounds, "key", fleet, f"{round_key(number)}#", consistent=consistent):
        yield Participation.from_item(item)


def participations_after(
    rounds: Table, fleet: str, number: int, thing: str = "", limit: int = 25
) -> tuple[list[Participation], str]:
    """Read one page of the devices' parts in a round.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    number
        The round, from 1.
    thing
        The thing name after which the page begins; empty for the first page.
    limit
        Parts at most.

    Returns
    -------
    tuple
        The parts, and the thing name after which the next page begins; empty at the end.
    """
    prefix = f"{round_key(number)}#"
    arguments: dict[str, Any] = {
        "KeyConditionExpression": "#fleet = :fleet AND begins_with(#range, :prefix)",
        "ExpressionAttributeNames": {"#fleet": "fleet", "#range": "key"},
        "ExpressionAttributeValues": {":fleet": fleet, ":prefix": prefix},
        "Limit": limit,
    }
    if thing:
        arguments["ExclusiveStartKey"] = {"fleet": fleet, "key": participation_key(number, thing)}
    page = rounds.query(**arguments)
    found = [Participation.from_item(item) for item in page["Items"]]
    return found, str(page["LastEvaluatedKey"]["key"]).removeprefix(prefix) if "LastEvaluatedKey" in page else ""


def participations_at(rounds: Table, fleet: str, places: Iterable[tuple[int, str]]) -> list[Participation]:
    """Read the parts of some devices in some rounds.

    Parameters
    ----------
    rounds
        The rounds' table.
    fleet
        The fleet's name.
    places
        Pairs of round and thing name.

    Returns
    -------
    list
        Those that exist, in no particular order.
    """
    keys = [participation_key(number, thing) for number, thing in places]
    return [Participation.from_item(item) for item in items_under(rounds, "key", fleet, keys)]

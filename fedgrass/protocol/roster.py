"""Who is of a fleet, and who was there when a round opened: nobody else is counted.

A device is of the fleet while the table of devices holds a record of it, which its heartbeats make. A silo is of the fleet
if the settings list its name (``silos``): its account could make up any number of names, so a heartbeat is not enough.

What a round waits for is fixed at its opening: the devices that were *alive* (they are to get the model), and those of them that
were *asked* (able, and taken by the cohort). Their names lie beside the round's record, a few hundred in an item, so that neither
an item nor a message grows with the fleet; a device's item is found by a digest of its name.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedgrass.protocol.items import get_item, items_below
from fedgrass.protocol.names import SILO_NAME
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.tables import Table
from fedgrass.protocol.writes import put_item

PER_ITEM = 256
"""Names in an item, on average. A name has 128 bytes at most and an item may have 400 kB."""

# Counted from the round's deadline.
_KEPT_SECONDS = 400 * 86_400


def is_silo(thing: str) -> bool:
    """Whether a name is a silo's: it begins with an account's number, as the role that silos assume demands."""
    return SILO_NAME.match(thing) is not None


def may_count(thing: str, silos: Collection[str]) -> bool:
    """Whether a name may count at all: any device's, and of silos only those that the settings list."""
    return not is_silo(thing) or thing in silos


def is_of_fleet(devices: Table, fleet: str, thing: str, silos: Collection[str]) -> bool:
    """Say whether a thing belongs to the fleet now.

    Parameters
    ----------
    devices
        The devices' table.
    fleet
        The fleet's name.
    thing
        A device's thing name, or a silo's name.
    silos
        The fleet's silos, as its settings name them.

    Returns
    -------
    bool
        A silo is known by the settings; a device by an item that has not expired.
    """
    if is_silo(thing):
        return thing in silos
    item = devices.get_item(Key={"fleet": fleet, "thing": thing}, ConsistentRead=True).get("Item")
    return item is not None and item.get("expires", float("inf")) >= time.time()


def things_of_fleet(devices: Table, fleet: str, silos: Collection[str]) -> set[str]:
    """List all devices and silos that belong to the fleet now.

    Parameters
    ----------
    devices
        The devices' table.
    fleet
        The fleet's name.
    silos
        The fleet's silos, as its settings name them.

    Returns
    -------
    set
        Thing names, and the silos' names.
    """
    now = time.time()
    found = {
        str(item["thing"])
        for item in items_below(devices, "thing", fleet, "", attributes=("thing", "expires"))
        if item.get("expires", now) >= now
    }
    # Items with a '#' are models' (`<thing>#model`).
    return {thing for thing in found if "#" not in thing and not is_silo(thing)} | set(silos)


@dataclass(frozen=True)
class Presence:
    """Whether a thing was alive at a round's opening, and whether it was asked."""

    alive: bool = False
    asked: bool = False


def write_roster(rounds: Table, record: RoundRecord, *, alive: Iterable[str], asked: Collection[str]) -> None:
    """Write down which devices are alive and which are asked, before the round exists; safe to repeat.

    The keys contain the cohort's salt, so two openings at the same moment write separate rosters.

    Parameters
    ----------
    rounds
        The rounds' table.
    record
        The round that is about to open; its deadline says how long the roster is kept.
    alive
        Thing names.
    asked
        Those of them that are in the cohort.
    """
    expires = int(record.deadline.timestamp()) + _KEPT_SECONDS
    # One list for each answer of `presence`: asked devices are alive by definition.
    items: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: {"asked": [], "others": []})
    for thing in alive:
        items[_key(record, thing)]["asked" if thing in asked else "others"].append(thing)
    for key, names in items.items():
        put_item(rounds, Item={"fleet": record.fleet, "key": key, "expires": expires, **names})


def presence(rounds: Table, record: RoundRecord, thing: str) -> Presence:
    """Look up whether a device was alive when a round opened, and whether it was asked.

    Parameters
    ----------
    rounds
        The rounds' table.
    record
        The round.
    thing
        The device's thing name.

    Returns
    -------
    Presence
        Neither alive nor asked for a device that the roster does not have.
    """
    item = get_item(rounds, record.fleet, _key(record, thing)) or {}
    asked = thing in item.get("asked", ())
    return Presence(alive=asked or thing in item.get("others", ()), asked=asked)


def asked_things(rounds: Table, record: RoundRecord) -> list[str]:
    """Return the names of all that a round asked at its opening."""
    below = f"roster#{record.round:06d}#{record.cohort.salt}#"
    items = items_below(rounds, "key", record.fleet, below, attributes=("asked",), consistent=True)
    return [str(thing) for item in items for thing in item.get("asked", ())]


def pieces_of(record: RoundRecord) -> int:
    """Return into how many pieces a round's roster is divided."""
    return 1 + record.alive // PER_ITEM


def asked_in_piece(rounds: Table, record: RoundRecord, piece: int) -> list[str]:
    """Return the names of those that a round asked in one piece of its roster, from 0: some `PER_ITEM` of all at most."""
    item = get_item(rounds, record.fleet, _piece_key(record, piece)) or {}
    return [str(thing) for thing in item.get("asked", ())]


def _key(record: RoundRecord, thing: str) -> str:
    digest = int.from_bytes(hashlib.sha256(thing.encode()).digest()[:8], "big")
    return _piece_key(record, digest % pieces_of(record))


def _piece_key(record: RoundRecord, piece: int) -> str:
    return f"roster#{record.round:06d}#{record.cohort.salt}#{piece:05d}"

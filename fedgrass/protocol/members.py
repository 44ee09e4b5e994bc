"""The fleet's devices as their table has them: the last heartbeat of each, and its last report on a model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedgrass.errors import RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.items import Table, items_below, items_under
from fedgrass.protocol.records import MODEL_SUFFIX, Device, DeviceModel


@dataclass(frozen=True)
class FleetMember:
    """A device as the cloud knows it: its last heartbeat, its last report on a model, or both.

    One of which no heartbeat is known is shown, and not counted anywhere (`fedgrass.protocol.roster`).
    """

    thing: str
    heartbeat: Device | None = None
    model: DeviceModel | None = None

    def alive(self, now_ms: float) -> bool:
        """Whether its last heartbeat is younger than three of its intervals."""
        return self.heartbeat is not None and self.heartbeat.alive(now_ms)


def fleet_members(devices: Table, fleet: str, *, consistent: bool = False) -> list[FleetMember]:
    """List the fleet's devices in the order of their names; an item that cannot be read is logged and left out.

    Parameters
    ----------
    devices
        The devices' table.
    fleet
        The fleet's name.
    consistent
        Whether writes of the last moments must be seen, at twice the read units.

    Returns
    -------
    list
        A member for each device, with its last heartbeat and its last report on a model.
    """
    return _members(items_below(devices, "thing", fleet, "", consistent=consistent))


def members_named(devices: Table, fleet: str, things: Sequence[str]) -> list[FleetMember]:
    """List some of the fleet's devices in the order of their names.

    Parameters
    ----------
    devices
        The devices' table.
    fleet
        The fleet's name.
    things
        Thing names; unknown ones are left out.

    Returns
    -------
    list
        As of `fleet_members`.
    """
    return _members(items_under(devices, "thing", fleet, [*things, *(thing + MODEL_SUFFIX for thing in things)]))


def _members(items: Iterable[dict[str, Any]]) -> list[FleetMember]:
    # TTL removes an item up to days after it expired, so that is looked at here as well.
    now = time.time()
    heartbeats: dict[str, Device] = {}
    models: dict[str, DeviceModel] = {}
    for item in items:
        if item.get("expires", now) < now:
            continue
        thing = str(item["thing"])
        try:
            # A thing's name has no '#', so the suffix is unambiguous.
            if thing.endswith(MODEL_SUFFIX):
                models[thing.removesuffix(MODEL_SUFFIX)] = DeviceModel.from_item(item)
            else:
                heartbeats[thing] = Device.from_item(item)
        except RecordError as error:
            log_event("device_item_unreadable", thing=thing, reason=str(error))
    return [
        FleetMember(thing, heartbeats.get(thing), models.get(thing))
        # A device may have reported on a model and not been heard of otherwise: it is shown, too.
        for thing in sorted(heartbeats.keys() | models.keys())
    ]

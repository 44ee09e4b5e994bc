"""Measure the fleet, on a schedule: who is alive and which models are in the field, between rounds too."""

from __future__ import annotations

from fedgrass.cloud.rounds.metrics import measure_fleet
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.roster import may_count
from fedgrass.protocol.tables import load_settings, load_state

connect("devices", "rounds")


def handler(_event: dict[str, object], _context: object) -> None:
    """Entry point, called by EventBridge."""
    watch_fleet(own_services())


def watch_fleet(services: Services) -> None:
    """Write the fleet's figures as they are now."""
    state = load_state(services.rounds, services.fleet)
    silos = load_settings(services.rounds, services.fleet).silos
    members = fleet_members(services.devices, services.fleet)
    measure_fleet(services, [member for member in members if may_count(member.thing, silos)], state)

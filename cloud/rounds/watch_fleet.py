"""Measure the fleet, on a schedule: who is alive and which models are in the field, between rounds too."""

from __future__ import annotations

from typing import Any

from cloud.rounds.metrics import measure_fleet
from cloud.rounds.services import Services, connect, own_services
from fedgrass.protocol.tables import fleet_members

connect("devices")


def handler(_event: dict[str, Any], _context: object) -> None:
    """Entry point, called by EventBridge."""
    watch_fleet(own_services())


def watch_fleet(services: Services) -> None:
    """Write the fleet's figures as they are now."""
    measure_fleet(services, fleet_members(services.devices, services.fleet))

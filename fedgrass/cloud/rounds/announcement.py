"""The retained announcement of the open round, as the functions publish it."""

from __future__ import annotations

from fedgrass.cloud.ending.announcement import announce
from fedgrass.cloud.rounds.services import Services


def announce_round(services: Services) -> None:
    """Publish what devices are asked to do now: called after whatever changes that."""
    announce(services.rounds, services.iot_data, services.fleet, services.bucket)

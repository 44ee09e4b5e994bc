"""Measure the fleet, on a schedule: who is alive and which models are in the field, between rounds too; and act on drift."""

from __future__ import annotations

from fedgrass.cloud.rounds.drift import act_on_drift
from fedgrass.cloud.rounds.metrics import measure_drift, measure_fleet
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.protocol.drift import Standing
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.roster import may_count
from fedgrass.protocol.tables import load_settings, load_state

connect("devices", "rounds")


def handler(_event: dict[str, object], _context: object) -> None:
    """Entry point, called by EventBridge."""
    watch_fleet(own_services())


def watch_fleet(services: Services) -> None:
    """Write the fleet's figures as they are now, and start what its drift asks for."""
    state = load_state(services.rounds, services.fleet)
    settings = load_settings(services.rounds, services.fleet)
    members = fleet_members(services.devices, services.fleet)
    members = [member for member in members if may_count(member.thing, settings.silos)]
    measure_fleet(services, members, state)
    now_ms = services.now().timestamp() * 1000
    alive = [member.heartbeat for member in members if member.heartbeat and member.alive(now_ms)]
    standing = Standing.of(alive, settings.drift, state.profile)
    measure_drift(services, standing, settings.drift)
    act_on_drift(services, standing, settings.drift, state)

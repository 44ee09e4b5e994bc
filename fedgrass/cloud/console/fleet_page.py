"""The devices: alive or silent, able to train or why not, and what each did last."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flask import Blueprint, abort, render_template, request

from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.drifting import STANDS, drifting, started
from fedgrass.cloud.console.index import STATES, DeviceSnapshot, State
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.panel import live_panel
from fedgrass.cloud.console.streams import takes_late, turns
from fedgrass.protocol import tables
from fedgrass.protocol.gain import Gain
from fedgrass.protocol.instances import shared_names
from fedgrass.protocol.members import FleetMember, members_named
from fedgrass.protocol.participations import participations_at
from fedgrass.protocol.records import Participation, RoundRecord

_PER_PAGE = 25
_LAST_ROUNDS = 25
_MOST_VERSIONS = 50  # a device says itself which it has


@dataclass(frozen=True)
class Counts:
    """How many devices are in which state, and have which model."""

    devices: int
    states: dict[State, int]
    versions: list[tuple[str, int]]

    @classmethod
    def of(cls, look: DeviceSnapshot) -> Counts:
        """Count the devices of a look."""
        alive = [brief for brief in look.devices if brief.alive(look.at_ms)]
        able = sum(brief.able for brief in alive)
        versions = Counter(brief.version or "none" for brief in look.devices)
        states: dict[State, int] = {
            "alive": len(alive),
            "able": able,
            "unable": len(alive) - able,
            "silent": len(look.devices) - len(alive),
        }
        return cls(len(look.devices), states, versions.most_common(_MOST_VERSIONS))


def pages(context: Context) -> Blueprint:
    """Return the pages."""
    blueprint = Blueprint("fleet", __name__)
    fleet = context.account.fleet

    @blueprint.get("/")
    def devices() -> str:
        # Counts and filters are of the last look, some seconds old; the devices on the page are read by name below.
        look = context.index.look()
        name, version = request.args.get("name", ""), request.args.get("version", "")
        # Compared with the known ones: what stands in an address may be anything.
        state = next((state for state in STATES if state == request.args.get("state")), None)
        fleet_state = tables.load_state(context.account.rounds_table, fleet)
        drift = drifting(context, fleet_state)
        stand = next((stand for stand in STANDS if drift.watched and stand == request.args.get("drift")), None)
        found = [
            brief.thing
            for brief in look.devices
            if name.casefold() in brief.thing.casefold()
            and (state is None or brief.is_(state, look.at_ms))
            and (not version or (brief.version or "none") == version)
            and (stand is None or drift.stand(brief.drift, alive=brief.alive(look.at_ms)) == stand)
        ]
        page = Page.of(len(found), _PER_PAGE)
        shown = members_named(context.account.devices_table, fleet, found[page.first : page.end])
        return render_template(
            "fleet.html",
            look=look,
            counts=Counts.of(look),
            page=page,
            found=len(found),
            members=shown,
            shared=shared_names(context.account.rounds_table, fleet),
            parts=_parts(context, fleet_state.last, shown),
            last_round=next(iter(_records(context, [fleet_state.last])), None),
            chosen={"name": name, "state": state or "", "version": version, "drift": stand or ""},
            states=STATES,
            now_ms=context.now_ms,
            panel=live_panel(context, fleet_state),
            drift=drift,
            started=started(context.account, drift.record),
            stands=drift.counts(look) if drift.watched else {},
            gain=Gain.of_admissions(brief.own for brief in look.devices if brief.own),
        )

    @blueprint.get("/devices/<thing>")
    def device(thing: str) -> str:
        members = members_named(context.account.devices_table, fleet, [thing])
        if not members:
            abort(404, f"Fleet {fleet} knows no device {thing}.")
        state = tables.load_state(context.account.rounds_table, fleet)
        last = state.last
        # Keys are known, so it is a BatchGetItem of as many items, however large the fleet.
        places = [(number, thing) for number in range(max(1, last - _LAST_ROUNDS + 1), last + 1)]
        parts = participations_at(context.account.rounds_table, fleet, places)
        records = _records(context, [number for number, _ in places])
        return render_template(
            "device.html",
            member=members[0],
            parts=sorted(parts, key=lambda part: -part.round),
            drift=drifting(context, state),
            records={record.round: record for record in records},
            turns=turns(parts, records),
            streams=any(takes_late(record) for record in records),
            looked_at=_LAST_ROUNDS,
            now_ms=context.now_ms,
        )

    return blueprint


def _records(context: Context, numbers: list[int]) -> list[RoundRecord]:
    """Return the records of some rounds; none of round 0, which is no round."""
    wanted = [number for number in numbers if number]
    return tables.rounds_numbered(context.account.rounds_table, context.account.fleet, wanted) if wanted else []


def _parts(context: Context, number: int, members: list[FleetMember]) -> dict[str, Participation]:
    """Return what each device did in a round, by its name."""
    if not number:
        return {}
    places = [(number, member.thing) for member in members]
    found = participations_at(context.account.rounds_table, context.account.fleet, places)
    return {part.thing: part for part in found}

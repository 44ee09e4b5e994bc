"""Whom an open round still waits for, and what their newest heartbeats say."""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.protocol.members import members_named
from fedgrass.protocol.participations import participations_at
from fedgrass.protocol.records import Device, RoundRecord
from fedgrass.protocol.roster import asked_things
from fedgrass.protocol.tables import Table


@dataclass(frozen=True)
class Waiting:
    """A device that was asked and has not answered, and its newest heartbeat."""

    thing: str
    heartbeat: Device | None

    @property
    def gone(self) -> bool:
        """Whether it cannot answer: its trainer does not run."""
        return self.heartbeat is not None and not self.heartbeat.trainer_runs

    def said(self, now_ms: float) -> str:
        """Return what is known of the device at a Unix time in milliseconds: silent, why it is not able, or what it does."""
        beat = self.heartbeat
        if beat is None:
            return "silent"
        if not beat.alive(now_ms):
            return f"silent for {(now_ms - beat.received_at) / 1000:.0f} s"
        return beat.trainer.state if beat.able else f"no: {beat.reason}"


def waiting_for(rounds: Table, devices: Table, record: RoundRecord) -> list[Waiting]:
    """List the devices that a round asked and that have not answered in time.

    Parameters
    ----------
    rounds
        The rounds' table.
    devices
        The devices' table, for their last heartbeats.
    record
        The round.

    Returns
    -------
    list
        In the order of their names.
    """
    asked = asked_things(rounds, record)
    parts = participations_at(rounds, record.fleet, [(record.round, thing) for thing in asked])
    # An item may hold only what became of the model there, and no answer.
    answered = {part.thing for part in parts if part.status is not None and not part.late}
    missing = sorted(set(asked) - answered)
    beats = {member.thing: member.heartbeat for member in members_named(devices, record.fleet, missing)}
    return [Waiting(thing, beats.get(thing)) for thing in missing]

"""What a fleet is at between its rounds: the lock, who holds it, its model, what follows its drift."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from fedgrass.protocol.drift import Step
from fedgrass.protocol.message import Count
from fedgrass.protocol.messages import Base
from fedgrass.protocol.names import FleetName, RoundNumber, Version
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.profile import ProfileReference
from fedgrass.protocol.records import Record

STATE_KEY = "state"
DRIFT_KEY = "drift"


class OpenRound(Record):
    """The fleet's lock: the round that is open and the execution that holds it."""

    round: RoundNumber
    execution: str
    opened_at: AwareDatetime


class HandLock(Record):
    """A person's hold on the fleet while a model is released or brought back by hand: no round opens meanwhile.

    It is void after ``until`` (epoch seconds): its process is gone then, and whoever comes next does what it left undone.
    """

    action: str
    version: Version
    holder: str
    until: int


Word = Literal["round", "publish", "hand", "roll_back", "refusal"]


class Released(Record):
    """The version that the fleet's devices are to have, and who decided that: the deployment follows it.

    ``before`` is what takes its place if the fleet refuses it. ``refusal`` says that this has happened. Of a model that a person
    chose by name (``hand``, ``roll_back``), devices still judge, and nothing is taken back.
    """

    version: Version
    by: Word
    model: Base | None = None
    before: Base | None = None
    at: int = Field(default=0, description="Epoch milliseconds; refusals from before do not count")


class FleetState(Record):
    """What a fleet is at: ``model`` is the base of the next round."""

    last: int = Field(default=0, ge=0, description="Number of the last round that was opened")
    open: OpenRound | None = None
    hand: HandLock | None = None
    reserved: str | None = Field(
        default=None, description="The execution that has more rounds to run, between two of them"
    )
    model: Base | None = None
    released: Released | None = None
    privacy: PrivacyLedger = Field(default_factory=PrivacyLedger)
    profile: ProfileReference | None = Field(default=None, description="The newest that a round of statistics made")

    def released_next(self, model: Base, by: Word) -> Released:
        """Return what the devices are to have when ``model`` takes the place of what they have."""
        last = self.released
        before = None
        if last is not None:
            # States of earlier releases name only the version.
            had = last.model or (self.model if self.model and self.model.version == last.version else None)
            # Released once more: the model before is still that one, not itself.
            before = last.before if last.version == model.version else had
        return Released(version=model.version, by=by, model=model, before=before, at=time.time_ns() // 1_000_000)


class DriftRecord(Record):
    """What the fleet's drift has come to: ``step`` is the round that is to run for it, or runs, until all have.

    ``armed``: the next drift may begin something; from there on not before the devices were calm again.
    """

    fleet: FleetName
    looked_at: Count = Field(default=0, description="Epoch milliseconds; it changes with each look")
    alive: int = Field(default=0, ge=0)
    compared: int = Field(default=0, ge=0, description="Devices that compared with the newest profile")
    drifted: int = Field(default=0, ge=0)
    in_a_row: int = Field(default=0, ge=0, description="Looks in a row that found a drift")
    armed: bool = True
    number: int = Field(default=0, ge=0, description="Drifts so far that something was begun for")
    begun_at: Count | None = Field(default=None, description="Epoch milliseconds")
    step: Step | None = None
    execution: str | None = Field(default=None, description="The step's, once it was started")

    def execution_name(self, step: Step) -> str:
        """Return the name of the execution that a step of this drift is."""
        # The time as well: the table of a fleet that was set up again begins with drift 1 once more.
        return f"drift-{self.number}-{step}-{self.begun_at}"

    def to_item(self) -> dict[str, Any]:
        """Return the item with its range key."""
        return {**super().to_item(), "key": DRIFT_KEY}

"""The items of the two DynamoDB tables, and their way in and out.

========= =========== ================================= ==========================================================
table     hash, range range key                         item
========= =========== ================================= ==========================================================
devices   fleet,thing ``<thing>``                       `Device`: the last heartbeat, written by the topic rule itself
devices   fleet,thing ``<thing>#model``                 `DeviceModel`: what became of the last model there
rounds    fleet,key   ``settings``                      the fleet's settings
rounds    fleet,key   ``state``                         `fedgrass.protocol.fleet_state.FleetState`: the lock, the current model
rounds    fleet,key   ``drift``                         `fedgrass.protocol.fleet_state.DriftRecord`: what follows its drift
rounds    fleet,key   ``round#000007``                  `RoundRecord`
rounds    fleet,key   ``round#000007#<thing>``          `Participation`: one device's part in the round
rounds    fleet,key   ``roster#000007#<salt>#<n>``      some names of who was there at its opening (`fedgrass.protocol.roster`)
rounds    fleet,key   ``refused#<thing>``               `fedgrass.protocol.refusals.Refusals`: what was refused of a device
rounds    fleet,key   ``loss#<thing>``                  `fedgrass.protocol.losses.LossRecord`: the loss that it reported last
rounds    fleet,key   ``run#000007#000507``             some rounds of a run, of one execution (`fedgrass.protocol.run_pieces`)
rounds    fleet,key   ``ended#<execution>``             an execution that ended early and opens no round any more
rounds    fleet,key   ``instance#<thing>#<id>``         a heartbeat's process (`fedgrass.protocol.instances`), by a topic rule
rounds    fleet,key   ``reply#<thing>#<id>``            a device's `Reply` to a command, as it came, by the topic rule
========= =========== ================================= ==========================================================

DynamoDB has no floats: numbers travel as decimals. Times that the cloud takes of a device's message are epoch
milliseconds (as the topic rule gives them); other times are ISO 8601 text.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from fedgrass.errors import RecordError, first_problem
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.gain import Gain
from fedgrass.protocol.message import Count, Finite, Metrics, Reason, SumsText
from fedgrass.protocol.messages import Base, Cohort, SumTask
from fedgrass.protocol.names import FleetName, RoundNumber, ThingName, Version
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.profile import ProfileReference
from fedgrass.protocol.report import ADOPTED, ADVICE, HELD_IN_A_ROW, Hold
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.settings import FleetSettings

SETTINGS_KEY = "settings"
MODEL_SUFFIX = "#model"

Phase = Literal["collecting", "aggregating", "rolling_out", "closed"]
RoundOutcome = Literal[
    "released",
    "refused",
    "advanced",
    "held",
    "evaluated",
    "profiled",
    "insufficient_updates",
    "helpers_missing",
    "failed",
    "cancelled",
]
ModelOutcome = Literal["active", "refused", "rolled_back"]

ALIVE_INTERVALS = 3
"""A device that was silent for this many of its own heartbeat intervals is not counted."""

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base of every item. Unknown attributes are ignored, so that old readers survive new writers."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    def to_item(self) -> dict[str, Any]:
        """Return the item's attributes, without those that are None."""
        item: dict[str, Any] = to_attribute(self.model_dump(mode="json", exclude_none=True))
        return item

    @classmethod
    def from_item(cls: type[R], item: Mapping[str, Any]) -> R:
        """Read an item; raises `RecordError` naming the attribute that is wrong."""
        try:
            return cls.model_validate(dict(item))
        except ValidationError as error:
            name = item.get("key") or item.get("thing")
            problem = first_problem(error, "item", found=True)
            raise RecordError(f"{cls.__name__} {name!r} of fleet {item.get('fleet')!r}: {problem}") from error


class Device(Heartbeat, Record):
    """A device's last heartbeat, as the topic rule wrote it."""

    received_at: Count = Field(description="Epoch milliseconds, by the cloud's clock")

    def alive(self, now_ms: float) -> bool:
        """Whether its last heartbeat is younger than three of its intervals."""
        # By the cloud's clock, when the message came: devices' clocks may be anything.
        return now_ms - self.received_at <= ALIVE_INTERVALS * self.interval_seconds * 1000


class DeviceModel(Record):
    """What became of the last model that a device was given."""

    fleet: FleetName
    thing: str = Field(description="The thing's name and the suffix `#model`")
    version: Version
    outcome: ModelOutcome
    reason: Reason = ""
    active_version: Version | None = None
    metrics: Metrics = {}
    received_at: Count
    expires: Count | None = None


class CanaryTrial(Record):
    """Who was given the round's model first, and what they had before."""

    target: str = Field(description="ARN of their thing group")
    before: Version | None = None


class Question(Record):
    """A model that the devices are asked to compare with the round's base, and until when."""

    model: Base
    asked_at: AwareDatetime
    deadline: AwareDatetime


class JobRun(Record):
    """A Processing job that was started, on so many machines."""

    name: str
    machine: str
    machines: int = Field(ge=1)
    began_at: AwareDatetime


class RoundRecord(Record):
    """A round. Counters are of devices of the roster; tokens belong to the execution and are of no use to anyone else.

    What was asked is compared with what was answered by the same devices: ``uploaded``, ``declined``, ``failed``, ``judged`` and
    ``not_judged`` move for those that were asked, ``active``, ``refused`` and ``rolled_back`` for those that were alive.
    """

    fleet: FleetName
    round: RoundNumber
    phase: Phase = "collecting"
    outcome: RoundOutcome | None = None
    reason: str = ""
    execution: str
    run: Run | None = Field(default=None, description="The run that it is part of, as that was before it")
    settings: FleetSettings
    base: Base
    version: Version = Field(description="Version that the round's model gets if it is released")
    cohort: Cohort
    alive: int = Field(ge=0, description="Devices alive at the opening")
    asked: int = Field(ge=0, description="Of these, the able ones that the cohort takes")
    quorum: int = Field(ge=1, description="Uploads that end the collecting")

    opened_at: AwareDatetime
    deadline: AwareDatetime
    collected_at: AwareDatetime | None = None
    aggregated_at: AwareDatetime | None = None
    closed_at: AwareDatetime | None = None
    ended: str = Field(default="", description="Why its run was over after it, before its rounds were")

    uploaded: int = Field(default=0, description="Devices that were asked and did it: sent an update, or their figures")
    declined: int = 0
    failed: int = 0
    joined: int = Field(
        default=0, description="Devices that were silent or unable at the opening, and did in time what was asked"
    )
    late: int = Field(default=0, description="Devices that first answered after the collecting was over")
    late_updates: int = Field(default=0, description="Updates that came after the collecting was over")
    took: dict[RoundNumber, Count] | None = Field(
        default=None, description="How many updates it disposed of, by their round"
    )
    bytes_uploaded: int = 0
    evaluated_examples: int = Field(
        default=0, description="Of a round that evaluates: examples of all devices together, as they counted"
    )
    gone_at: int | None = Field(
        default=None, description="When an asked device last reported that its trainer is gone, in epoch milliseconds"
    )
    last_upload_at: int | None = Field(default=None, description="Epoch milliseconds")

    sums: SumTask | None = Field(default=None, description="While helpers are asked for the sums of masks")
    question: Question | None = Field(default=None, description="While devices are asked to evaluate the new model")
    judging: bool = Field(default=False, description="Devices were asked to evaluate the new model before its release")
    judged: int = Field(default=0, description="Devices that did")
    not_judged: int = Field(default=0, description="Devices that would or could not")
    judged_examples: int = Field(default=0, description="Examples of all devices together")

    active: int = 0
    refused: int = 0
    rolled_back: int = 0
    last_model_at: int | None = Field(default=None, description="Epoch milliseconds")

    participants: int | None = None
    quarantined: int | None = None
    accuracy: Finite | None = None
    loss: Finite | None = None
    metrics: dict[str, Finite] = Field(default={}, description="The model's other figures, such as f1 or rmse")
    reported: dict[str, Finite] = Field(default={}, description="What most devices report of their training")
    personal: Gain | None = Field(default=None, description="What models of their own bring the devices, as they say")
    hold: Hold | None = Field(default=None, description="Why the gate held the model, as a code")
    held_in_a_row: int = Field(default=0, description="Rounds held for that reason, one after the other, with this one")
    privacy: PrivacyLedger | None = Field(default=None, description="What is spent with this round, if it has noise")

    bounds: ProfileReference | None = Field(
        default=None, description="Of a round of statistics: the profile that its histograms have their bounds from"
    )
    profile: ProfileReference | None = Field(default=None, description="What a round of statistics made")
    watch: ProfileReference | None = Field(
        default=None, description="The profile that devices are told to compare their live data with"
    )

    canaries: CanaryTrial | None = None

    base_bytes: int = Field(default=0, ge=0, description="Of the base, if devices download it for the round")
    model_bytes: int = Field(default=0, ge=0, description="Of the round's model, as devices download it")
    jobs: tuple[JobRun, ...] = ()
    dollars: Finite | None = Field(
        default=None, description="What it cost by list prices, when it was closed: an estimate, not AWS's bill"
    )

    job: str | None = None
    collect_token: str | None = None
    job_token: str | None = None
    rollout_token: str | None = None

    def to_item(self) -> dict[str, Any]:
        """Return the item with its range key."""
        return {**super().to_item(), "key": round_key(self.round)}

    @field_serializer("settings")
    def _settings_as_text(self, settings: FleetSettings) -> str:
        return settings.model_dump_json()

    @field_validator("settings", mode="before")
    @classmethod
    def _settings_from_text(cls, value: object) -> object:
        # Kept as text: DynamoDB would turn its floats into decimals. Unknown settings are those of a newer release.
        return FleetSettings.model_validate_json(value, extra="ignore") if isinstance(value, str) else value

    @property
    def tree_step(self) -> int:
        """Which step it is of a tree of noise that it shares with rounds before; 0 if its noise is its own, or none."""
        tree = None if self.privacy is None else self.privacy.tree
        return tree.steps if tree is not None and tree.last == self.round else 0

    @property
    def of_run(self) -> str:
        """Which round of its run it is, in words; empty of one that is alone."""
        if self.run is None or self.settings.rounds == 1:
            return ""
        most = "at most " if self.settings.may_end_early else ""
        return f"{self.run.standing.done + 1} of {most}{self.settings.rounds} since round {self.run.first}"

    @property
    def costs(self) -> str:
        """What it cost by list prices, in words; empty while it is open."""
        if self.dollars is None:
            return ""
        so_far = self.dollars + (self.run.standing.cost.dollars if self.run else 0)
        of_run = f", {so_far:.3g} with the rounds of its run before" if so_far > self.dollars else ""
        return f"about {self.dollars:.3g} dollars by list prices{of_run}; not AWS's bill"

    @property
    def adopted(self) -> bool:
        """Whether the next round begins with this one's model."""
        return self.outcome in ADOPTED

    @property
    def taking_part(self) -> int:
        """Devices that were asked or joined in."""
        return self.asked + self.joined

    @property
    def contributed(self) -> int:
        """Devices that did in time what the round is about, whether they were asked or joined in."""
        return self.uploaded + self.joined

    @property
    def from_earlier(self) -> int:
        """Updates of earlier rounds that had their turn in this one."""
        return sum(count for number, count in (self.took or {}).items() if number != self.round)

    @property
    def alarm(self) -> str:
        """What a person must look at, and what to do; empty if there is nothing."""
        if self.hold is None or self.held_in_a_row < HELD_IN_A_ROW:
            return ""
        return f"{self.held_in_a_row} rounds in a row were held for the same reason ({self.hold}). {ADVICE[self.hold]}."

    @property
    def answered(self) -> int:
        """Devices that were asked and said what became of the round with them, in time."""
        return self.uploaded + self.declined + self.failed

    @property
    def collected(self) -> bool:
        """Whether there is nothing left to wait for: the quorum is there, or nobody is left who could add to it."""
        # Those that joined do not count: the quorum is a share of the devices that were asked.
        return self.uploaded >= self.quorum or self.answered >= self.asked

    @property
    def rolled_out(self) -> bool:
        """Whether all devices that were alive at the opening have said what became of the new model."""
        return self.active + self.refused + self.rolled_back >= self.alive

    @property
    def seconds_last_upload_to_active(self) -> float | None:
        """Seconds from the last upload to the last device's report on the new model."""
        if self.last_upload_at is None or self.last_model_at is None:
            return None
        return (self.last_model_at - self.last_upload_at) / 1000


class Participation(Record):
    """One device's part in a round: its update notice, and what became of the round's model there."""

    fleet: FleetName
    round: RoundNumber
    thing: ThingName
    status: Literal["uploaded", "evaluated", "declined", "failed"] | None = None
    asked: bool = Field(default=False, description="It was alive and able at the opening, and the cohort takes it")
    late: bool = Field(default=False, description="The notice came when collecting was over; it is not counted")
    reason: Reason = ""
    object_key: str | None = None
    sha256: str | None = None
    bytes: Count = 0
    num_examples: Count = 0
    metrics: Metrics = {}
    sums: SumsText | None = None
    seconds_train: float = 0.0
    received_at: Count | None = None

    judged_at: Count | None = Field(default=None, description="When it judged the new model before its release")
    judged_metrics: Metrics = {}
    judged_examples: Count = 0
    judged_sums: SumsText | None = None
    judged_base_sums: SumsText | None = None

    model_outcome: ModelOutcome | None = None
    model_reason: Reason = ""
    model_metrics: Metrics = {}
    model_received_at: Count | None = None

    def to_item(self) -> dict[str, Any]:
        """Return the item with its range key."""
        return {**super().to_item(), "key": participation_key(self.round, self.thing)}


def round_key(number: int) -> str:
    """Range key of a round's record."""
    return f"round#{number:06d}"


def participation_key(number: int, thing: str) -> str:
    """Range key of one device's part in a round."""
    return f"{round_key(number)}#{thing}"


def ended_key(execution: str) -> str:
    """Range key of the note that an execution has ended, and opens no round any more."""
    # The name at the end of the ARN.
    return f"ended#{execution.rpartition(':')[2]}"


def reply_key(thing: str, command: str) -> str:
    """Range key of a device's reply to a command; the stack's ReplyRule writes it."""
    return f"reply#{thing}#{command}"


def to_attribute(value: Any) -> Any:
    """Return ``value`` with its floats as decimals, which is what DynamoDB takes.

    A float beyond DynamoDB's range (1e-130 to 1e125) becomes text, which reads back as the same float.
    """
    if isinstance(value, float):
        # repr is the shortest text that reads back as the same float.
        return Decimal(repr(value)) if value == 0 or 1e-129 < abs(value) < 1e125 else repr(value)
    if isinstance(value, dict):
        return {key: to_attribute(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_attribute(below) for below in value]
    return value

"""The part of a fleet's settings that says when its data have drifted, and what follows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DriftSettings(BaseModel):
    """When the fleet counts as drifted, and what is done then (docs/how-to/drift.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    action: Literal["off", "alarm", "evaluate", "round"] = Field(
        default="off",
        description="off: devices are not asked to compare; alarm: they are, and an alarm tells; evaluate: a round that "
        "evaluates the model starts too; round: after it one that makes a new profile, and one that trains, whatever the "
        "evaluation found",
    )
    against: Literal["fleet", "device"] = Field(
        default="fleet",
        description="What counts: how far a device's inputs are from the fleet's profile, or from its own when it first knew "
        "that profile (device), for fleets whose devices differ: there the first alone finds drift from the first day",
    )
    figures: Literal["inputs", "scores", "either"] = Field(
        default="either",
        description="Whose distance counts: that of the inputs, of the model's scores on them, or either's",
    )
    threshold: float = Field(
        default=0.25, ge=0.01, le=100, description="Population stability index from which a device counts as drifted"
    )
    min_rows: int = Field(default=200, ge=20, description="Examples below which a device's figure does not count")
    share: float = Field(default=0.3, gt=0, le=1, description="Share of the devices alive that must have drifted")
    min_devices: int = Field(default=3, ge=2, description="And how many at least, so that a few liars start nothing")
    looks: int = Field(
        default=2, ge=1, le=100, description="Looks in a row, a quarter of an hour apart, that must find it so"
    )
    cool_down_hours: float = Field(
        default=24, ge=1, le=8760, description="Hours from one start to the next, whatever devices say meanwhile"
    )
    renew_profile: bool = Field(
        default=True,
        description="With round: make a new profile before training, from which the next drift is measured",
    )

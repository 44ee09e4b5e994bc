"""The part of a fleet's settings that says whom a round asks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.message import Where


class CohortSettings(BaseModel):
    """Who is asked, beside ``fraction``; each device finds out by itself from the announcement, whose size is fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    size: int = Field(
        default=0, ge=0, le=10_000_000, description="Devices whose updates a round wants; 0: ``fraction`` says how many"
    )
    over_ask: float = Field(
        default=1.3,
        ge=1,
        le=10,
        description="Ask this many times ``size`` devices; the first ``size`` updates end the round",
    )
    where: Where = Field(
        default={}, description="Tags that a device must have, each with one of some values: {site: [north, east]}"
    )
    min_examples: int = Field(default=0, ge=0, description="Examples that a device must have to train on")
    fair: bool = Field(
        default=False,
        description="Ask each device once before any is asked again: those that were asked least recently first",
    )

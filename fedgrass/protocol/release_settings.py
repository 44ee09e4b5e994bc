"""When a new model is released, in which forms, and how it reaches the devices."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.metrics import Metric

HALF = 0.5
"""Share of the fleet that takes a model back by refusing it, where the settings name none."""


class _Settings(BaseModel):
    # A misspelt setting must not pass silently: unlike messages, settings are written by hand.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Gate(_Settings):
    """When a new model is good enough: its accuracy may fall by at most ``tolerance`` (0.02 = two points)."""

    metric: Metric | None = Field(
        default=None,
        description="The figure that the gate watches, and that release on_improvement asks for; None: accuracy, else loss",
    )
    tolerance: float = Field(default=0.02, ge=0, le=1)
    loss_tolerance: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="Fraction of itself (of 0.1 at least) by which a classifier's loss may rise over its base's and the best",
    )
    below_best: float = Field(
        default=0.05,
        ge=0,
        allow_inf_nan=False,
        description="How far the accuracy may lie below the best that was released; without one: fraction of the lowest loss",
    )
    forget_best: bool = Field(
        default=False, description="Start over: the base's figures are the best so far, whatever was before"
    )
    devices_seconds: int = Field(
        default=0,
        ge=0,
        le=86_400,
        description="Without an evaluation set: how long the devices have to evaluate the new model and its base before it "
        "is released; 0 does not ask them",
    )


class Inference(_Settings):
    """What is made for the application, beside the float model."""

    int8: bool = Field(default=True, description="A model with 8-bit weights too")
    sparsity: float = Field(default=0.0, ge=0, lt=1, description="Share of each weight matrix that is pruned to zero")


class Rollout(_Settings):
    """How a new model goes out: to the canaries first, if there are any, and then to the fleet at a rate."""

    wait_seconds: int = Field(
        default=600,
        ge=0,
        le=86_400,
        description="How long the round waits to see it active on the devices that are alive",
    )
    canary_group: str = Field(
        default="", pattern=r"^[a-zA-Z0-9:_-]{0,128}$", description="Thing group of some of the fleet's devices"
    )
    canary_seconds: int = Field(default=300, ge=1, le=86_400, description="How long to wait for the canaries' reports")
    abort_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of refusals beyond which it goes no further: canaries, then fleet; 0: one canary, half of the fleet",
    )
    refusal: Literal["keep", "fail"] = Field(
        default="keep",
        description="What a refusal is on a device. keep: its deployment succeeds with the old model, and the fleet's function "
        "puts the model before back beyond the share; fail: its deployment fails, and AWS's own abort has the share",
    )
    per_minute: int | None = Field(
        default=None, ge=1, le=1000, description="Devices of the fleet that begin each minute"
    )

    def refusals_to_take_back(self, alive: int) -> int | None:
        """How many refusals of so many devices take a model back; None if none do."""
        # More than the share, so the least whole number above it.
        return math.floor((self.abort_share or HALF) * alive) + 1 if self.refusal == "keep" else None

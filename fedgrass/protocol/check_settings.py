"""What bounds a device's update before it counts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Settings(BaseModel):
    # A misspelt setting must not pass silently: unlike messages, settings are written by hand.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Checks(_Settings):
    """Bounds on updates. 0 switches a bound off, but for ``max_examples``.

    Those by the cohort's median hold from two good updates on; of an even number the lower one in the middle is the median.
    """

    max_examples: int = Field(default=1_000_000, ge=1, description="An update's example count is capped here")
    max_examples_over_median: float = Field(
        default=3.0,
        ge=0,
        allow_inf_nan=False,
        description="An update's example count is capped at this multiple of the cohort's median",
    )
    max_norm: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="L2 norm above which an update is refused"
    )
    max_norm_over_median: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Multiple of the cohort's median norm above which an update is refused",
    )
    clip_norm_over_median: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="Multiple of the cohort's median norm to which longer updates are scaled down; "
        "a strategy's own clip takes its place",
    )
    clip_loss_over_median: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="Where devices' own losses are averaged: multiple of the median loss from which none lies farther away",
    )

"""What a round of statistics measures, and with which other settings there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings


class Statistics(BaseModel):
    """What a round of statistics measures (docs/how-to/profile.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    bins: int = Field(default=64, ge=2, le=1024, description="Bins of each feature's histogram")
    low: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Where all histograms begin, and below which no minimum is told; null: the last profile's minimum of each",
    )
    high: float | None = Field(default=None, allow_inf_nan=False, description="Where they end; set both or none")
    max_rows: int = Field(
        default=1000,
        ge=1,
        le=1 << 24,
        description="With privacy.mode or secure: examples of which a device tells at most; the noise on counts grows with it",
    )
    leave_out: bool = Field(
        default=True, description="Leave out of exact sums the devices whose features do not fit the others'"
    )

    @model_validator(mode="after")
    def _is_a_span(self) -> Statistics:
        if (self.low is None) != (self.high is None):
            raise ValueError("low, high: set both, or none")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) is to be below high ({self.high:g})")
        return self


def tells_sums(settings: FleetSettings) -> bool:
    """Whether a round of statistics has devices tell bounded sums, which noise goes on or masks hide; else exact figures."""
    return settings.secure is not None or settings.privacy.mode != "none"


def require_measurable(settings: FleetSettings) -> None:
    """Raise `ValueError` naming the first setting with which a round of statistics cannot be.

    Parameters
    ----------
    settings
        With ``task`` statistics.
    """
    privacy = settings.privacy
    if not tells_sums(settings):
        if settings.update.figures == "left_out":
            raise ValueError(
                "task statistics: devices tell exact sums of their data, and update.figures left_out says that they tell none; "
                "set privacy.mode or secure, with which they tell sums under noise or masks"
            )
        return
    against = {
        "privacy.adaptive_clip": privacy.adaptive_clip is not None,
        f"strategy {settings.strategy.name}": bool(settings.strategy.tree),
        "secure.groups": settings.secure is not None and settings.secure.groups > 1,
    }
    if found := next((name for name, is_set in against.items() if is_set), ""):
        raise ValueError(
            f"{found}: a round of statistics is one sum with noise of its own; start it without that setting"
        )

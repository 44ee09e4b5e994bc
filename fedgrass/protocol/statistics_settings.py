"""What a round of statistics measures, and with which other settings there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings


class Statistics(BaseModel):
    """What a round of statistics measures (docs/how-to/profile.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bins: int = Field(default=64, ge=2, le=1024, description="Bins of each feature's histogram")
    low: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Where all histograms begin, and below which no minimum is told; null: the last profile's minimum of each",
    )
    high: float | None = Field(default=None, allow_inf_nan=False, description="Where they end; set both or none")
    leave_out: bool = Field(
        default=True, description="Leave out of the sums the devices whose features do not fit the others'"
    )

    @model_validator(mode="after")
    def _is_a_span(self) -> Statistics:
        if (self.low is None) != (self.high is None):
            raise ValueError("low, high: set both, or none")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) is to be below high ({self.high:g})")
        return self


def require_exact(settings: FleetSettings) -> None:
    """Raise `ValueError` if something says that devices tell nothing exact, or nothing alone."""
    hidden = {
        "secure": settings.secure is not None,
        f"privacy.mode {settings.privacy.mode}": settings.privacy.mode != "none",
        "update.figures left_out": settings.update.figures == "left_out",
    }
    if found := next((name for name, is_set in hidden.items() if is_set), ""):
        raise ValueError(
            f"task statistics: devices tell exact sums of their data, and {found} says that they tell none. No noise is added to "
            "statistics yet; start the round without that setting if the devices' owners agree"
        )

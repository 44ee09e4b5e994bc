"""The part of a fleet's settings that says whom a round asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.message import Where

if TYPE_CHECKING:
    from fedgrass.protocol.settings import FleetSettings


class ByLossSettings(BaseModel):
    """Devices that reported a high loss first: power of choice."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    candidates: float = Field(
        default=1.0,
        ge=1,
        le=100,
        description="Look at this many times as many devices as are asked, and ask those whose last loss is highest; 1: by lot "
        "alone",
    )
    explore: float = Field(
        default=0.2, ge=0, le=1, description="Share of those asked that lot alone decides on, whatever they reported"
    )
    max_age: int = Field(
        default=20, ge=1, le=100_000, description="Rounds for which a reported loss counts; older ones are unknown"
    )


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
    by_loss: ByLossSettings = Field(default_factory=ByLossSettings)

    @property
    def chooses_by_loss(self) -> bool:
        """Whether what devices reported has a part in who is asked."""
        return self.by_loss.candidates > 1


def require_losses(settings: FleetSettings) -> None:
    """Raise `ValueError` naming the first setting with which no reported loss could choose who is asked.

    Parameters
    ----------
    settings
        With ``cohort.by_loss.candidates`` above 1.
    """
    cohort, mode = settings.cohort, settings.privacy.mode
    against = {
        f"with privacy.mode {mode} no exact figure of a device's data may decide what others see": mode != "none",
        "with secure aggregation no update tells its loss": settings.secure is not None,
        "with figures left out no update tells its loss": settings.announced_update.hides_figures,
        "with cohort.fair all are asked in turn, whatever their loss": cohort.fair,
        "with mode asynchronous whoever is ready takes part": settings.mode == "asynchronous",
        "all devices are asked; set cohort.size, or fraction below 1": not cohort.size and settings.fraction == 1,
    }
    found = next((why for why, is_so in against.items() if is_so), "")
    if found:
        raise ValueError(f"cohort.by_loss: {found}. Else set cohort.by_loss.candidates to 1")

"""Whether devices have models of their own beside the fleet's, and how they train them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedgrass.protocol.messages import PersonalTask


class PersonalSettings(BaseModel):
    """A model of each device's own beside the fleet's (docs/personal.md); its application loads whichever is better there."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    mode: Literal["none", "fine_tune", "ditto"] = Field(
        default="none",
        description="fine_tune: each device keeps what its training made of the fleet's model; ditto: it also trains a second "
        "model from round to round, held near the fleet's",
    )
    strength: float = Field(
        default=0.1,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="ditto: how strongly it is held, the paper's lambda; 0 not at all, as if each device were alone",
    )
    epochs: int | None = Field(
        default=None, ge=1, le=10_000, description="ditto: of the second model; None: fit.epochs"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="ditto: of the second model; None: that of the round",
    )

    @property
    def announced(self) -> PersonalTask | None:
        """What devices are told; None: nothing."""
        return None if self.mode == "none" else PersonalTask.model_validate(self.model_dump())

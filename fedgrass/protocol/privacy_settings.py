"""The part of a fleet's settings that is about differential privacy."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AdaptiveClip(BaseModel):
    """A clipping norm that follows a quantile of the updates' norms, by a count to which noise is added as well.

    Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, https://arxiv.org/abs/1905.03871
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    quantile: float = Field(default=0.5, gt=0, lt=1, description="Share of the updates that should not be clipped")
    learning_rate: float = Field(default=0.2, gt=0, le=1, description="Step of the norm's logarithm in each round")
    count_noise: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Standard deviation of the noise on the count of updates within, in devices",
    )


class Privacy(BaseModel):
    """Differential privacy of each device's part in the model; docs/privacy.md says what it protects and what not.

    ``central``: the aggregator clips every update to ``clip_norm``, counts all alike, and adds noise to their mean.
    ``distributed``: devices clip, and the helpers of secure aggregation add the noise, each a share, so that nobody sees the sum
    without it.
    ``local``: each device clips its update and adds noise to it before it leaves.
    With ``epsilon_budget``, rounds without noise are refused: they have no finite ε.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    mode: Literal["none", "central", "distributed", "local"] = "none"
    clip_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="L2 norm that an update is clipped to")
    noise_multiplier: float = Field(
        default=1.0, ge=0.01, le=1e6, description="Standard deviation of the noise, in units of clip_norm"
    )
    adaptive_clip: AdaptiveClip | None = Field(
        default=None, description="central: begin with clip_norm, and let it follow the updates' norms"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="Should be less than one over the number of devices")
    epsilon_budget: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="No round opens that would exceed it, and a run ends before. 0: no limit",
    )
    figures: Literal["left_out", "exact"] = Field(
        default="left_out",
        description="Counts of examples, metrics and times that devices send beside updates, with noise anywhere: left_out has "
        "them send none; exact sends them as they are, outside every budget (central only)",
    )
    account_from: int = Field(
        default=0,
        ge=0,
        description="First round that counts: rounds without noise before it are left out of the account, which says so. 0: all",
    )
    secret_cohort: bool = Field(
        default=False, description="Assume the cohort is secret, so that sampling amplification lowers the ε spent"
    )

    @model_validator(mode="after")
    def _clip_can_be_afforded(self) -> Privacy:
        if self.adaptive_clip is None:
            return self
        if self.mode != "central":
            raise ValueError(
                f"privacy.adaptive_clip: only with mode central, where the aggregator sees norms; found {self.mode}"
            )
        # Otherwise the count alone would spend the whole round's budget; see `update_noise`.
        if self.adaptive_clip.count_noise <= self.noise_multiplier:
            raise ValueError(
                f"privacy.adaptive_clip.count_noise ({self.adaptive_clip.count_noise}): expected more than noise_multiplier "
                f"({self.noise_multiplier:g}), for the count is paid from the same budget"
            )
        return self

    @property
    def update_noise(self) -> float:
        """Noise on the sum of updates, in units of ``clip_norm``: what leaves the round's ε that of ``noise_multiplier``.

        With a count beside the sum, whose noise is σ for a change of 1, 1/z² = 1/z_Δ² + 1/σ²: the sum gets a little more.
        """
        if self.adaptive_clip is None:
            return self.noise_multiplier
        return 1 / math.sqrt(1 / self.noise_multiplier**2 - 1 / self.adaptive_clip.count_noise**2)

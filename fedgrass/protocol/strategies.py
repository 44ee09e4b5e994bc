"""The aggregation strategies that settings can name, and their options: checked when a round is asked for, not when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgrass.errors import ConfigurationError, first_problem

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Options(BaseModel):
    """Base of all options: a misspelt one must not pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Clipping(Options):
    """Longer updates are scaled down: to the L2 norm ``norm``, or to ``over_median`` times the cohort's median norm."""

    norm: Positive | None = None
    over_median: Positive | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Clipping:
        if (self.norm is None) == (self.over_median is None):
            raise ValueError("expected either 'norm' or 'over_median'")
        return self


class Clipped(Options):
    """What every built-in strategy takes."""

    clip: Clipping | None = None


class FedAvg(Clipped):
    """Weighted mean; also FedProx, whose proximal term is the device's (``fit.proximal_mu``)."""

    weighting: Literal["examples", "equal"] = "examples"


class FedAvgM(FedAvg):
    """Server momentum."""

    learning_rate: Positive = 1.0
    momentum: Decay = 0.9


class FedAdagrad(FedAvg):
    """Adaptive server optimizer with a growing denominator."""

    learning_rate: Positive = 0.1
    beta_1: Decay = 0.0
    tau: Positive = 1e-3


class FedAdam(FedAvg):
    """Adaptive server optimizer; also FedYogi."""

    learning_rate: Positive = 0.1
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Positive = 1e-3


class QFedAvg(Clipped):
    """Devices with a high loss count more; ``learning_rate`` is the device's."""

    q: float = Field(default=1.0, ge=0, le=10)
    learning_rate: Positive = 0.1
    max_loss: Positive = 10.0


class FedBuff(Clipped):
    """An update's weight falls with the age of its base: 1 / (1 + age) ** ``exponent``.

    ``staleness`` is the number of earlier rounds whose late updates are taken too.
    """

    exponent: float = Field(default=0.5, ge=0, le=10)
    staleness: int = Field(default=5, ge=0, le=100)


class Withstanding(Clipped):
    """``attackers`` is the share of the updates that may lie.

    ``mixing`` averages updates with one another before the rule looks at them, for devices with unlike data: each with those
    ``nearest`` to it, or in ``buckets`` of two at random (the rule then withstands as many spoilt buckets).
    """

    attackers: float = Field(default=0.2, ge=0, lt=0.5)
    mixing: Literal["none", "nearest", "buckets"] = "none"

    @model_validator(mode="after")
    def _buckets_outnumber_the_attackers(self) -> Withstanding:
        if self.mixing == "buckets" and self.attackers >= 0.25:
            raise ValueError("mixing buckets: expected attackers below 0.25, because each can spoil a bucket of two")
        return self


class GeometricMedian(Withstanding):
    """Smoothed Weiszfeld steps."""

    iterations: int = Field(default=100, ge=1, le=10_000)


class CenteredClipping(Withstanding):
    """Updates are drawn to their centre, none from farther than ``radius`` times the median distance."""

    radius: Positive = 1.0
    iterations: int = Field(default=5, ge=1, le=100)


class MultiKrum(Withstanding):
    """``chosen`` is the share of the updates that is averaged; all but the attackers if not given."""

    chosen: float | None = Field(default=None, gt=0, le=1)


class Trust(Options):
    """Updates count by how far they point where one trained on the evaluation set does.

    Longer ones are scaled down to ``over_median`` times the cohort's median norm.
    """

    over_median: Positive = 1.0


OPTIONS: Mapping[str, type[Options]] = {
    "fedavg": FedAvg,
    "fedprox": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedAdam,
    "fednova": Clipped,
    "qfedavg": QFedAvg,
    "fedbuff": FedBuff,
    "median": Withstanding,
    "trimmed_mean": Withstanding,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "krum": Withstanding,
    "multi_krum": MultiKrum,
    "bulyan": Withstanding,
    "trust": Trust,
}
"""By name. A name with a colon is a Flower strategy or one's own, ``module:Class``; its options are that class's arguments."""

NEED_ALL_AT_ONCE = frozenset(name for name, kind in OPTIONS.items() if issubclass(kind, (Withstanding, Trust)))
"""Strategies that are no means: several instances have nothing to share there."""

NEED_METRICS = frozenset({"fednova", "qfedavg"})
"""Strategies that weigh by what a device measured."""


def parse_options(name: str, options: Mapping[str, Any]) -> Options:
    """Return the checked options of a built-in strategy.

    Raises
    ------
    ConfigurationError
        If there is none of that name, or an option is unknown or out of range.
    """
    kind = OPTIONS.get(name)
    if kind is None:
        raise ConfigurationError(
            f"strategy {name!r}: expected one of {', '.join(OPTIONS)}, or module:Class of a Flower strategy or of your own"
        )
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        problem = first_problem(error, "options", prefix="option ")
        raise ConfigurationError(
            f"strategy {name!r}: {problem}. Its options are {', '.join(kind.model_fields)}"
        ) from error

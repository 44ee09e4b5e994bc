"""What changes over a run's rounds, and when the run is over: the same in an account's rounds and in simulated ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from fedgrass.protocol.metrics import Metric, is_better
from fedgrass.protocol.names import RoundNumber


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Curve(_Settings):
    """How a number goes on from the value that ``fit`` has; within ``least`` and ``most``, whatever the curve says."""

    kind: Literal["constant", "step", "exponential", "cosine"] = Field(
        default="constant",
        description="step: times factor after every so many rounds; exponential: the same, evenly; cosine: down to factor times "
        "the value in so many rounds, slowly at both ends, and there it stays",
    )
    rounds: int = Field(default=10, ge=1, le=1_000_000, description="So many rounds")
    factor: float = Field(default=0.5, gt=0, le=10, allow_inf_nan=False)
    least: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    most: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="None: no bound")

    @model_validator(mode="after")
    def _has_room(self) -> Curve:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most ({self.most:g}) is less than least ({self.least:g})")
        return self

    def at(self, start: float, done: int) -> float:
        """Return the value after so many rounds.

        Parameters
        ----------
        start
            The value before any.
        done
            Rounds.

        Examples
        --------
        >>> [Curve(kind="step", rounds=2, factor=0.1).at(1.0, done) for done in range(4)]
        [1.0, 1.0, 0.1, 0.1]
        """
        if self.kind == "constant":
            return start
        if self.kind == "step":
            value = start * self.factor ** (done // self.rounds)
        elif self.kind == "exponential":
            value = start * self.factor ** (done / self.rounds)
        else:
            end = start * self.factor
            value = end + (start - end) * (1 + math.cos(math.pi * min(1.0, done / self.rounds))) / 2
        return max(self.least, value if self.most is None else min(self.most, value))


class Schedule(_Settings):
    """Learning rate and epochs over rounds. Each round's announcement has its own values, by which devices judge it."""

    learning_rate: Curve = Field(default_factory=Curve)
    epochs: Curve = Field(default_factory=Curve, description="To the nearest whole number, of at least 1")
    since: int | None = Field(
        default=None,
        ge=1,
        description="Number of the round that has the values of fit; None: the first of each run. Set it where rounds are "
        "started one at a time",
    )

    def values(self, learning_rate: float | None, epochs: int, done: int) -> tuple[float | None, int]:
        """Return a round's learning rate and epochs.

        Parameters
        ----------
        learning_rate, epochs
            As ``fit`` has them.
        done
            Rounds before it.
        """
        # Below what a float's square still holds, or above what a message takes, no device could train.
        rate = learning_rate and min(100.0, max(1e-12, self.learning_rate.at(learning_rate, done)))
        return rate, min(10_000, max(1, math.floor(self.epochs.at(epochs, done) + 0.5)))


class Until(_Settings):
    """When a run is over before its ``rounds`` are; each of them alone is enough."""

    target: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="The model that the next round would start from is this good, by the metric: for losses and errors no more",
    )
    metric: Metric | None = Field(
        default=None, description="Whose target and patience it is; None: gate.metric, else accuracy, else loss"
    )
    patience: int = Field(
        default=0, ge=0, le=1_000_000, description="So many rounds in a row made it no better than the best; 0: never"
    )
    min_gain: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="By how much a model must be better, to count as such"
    )
    hours: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="So long after the first round opened, no other opens; 0: never",
    )

    dollars: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="No round opens that would make the run cost more, by an estimate from list prices (prices); 0: never",
    )

    @property
    def ends(self) -> bool:
        """Whether anything ends a run early."""
        return self.target is not None or self.patience > 0 or self.hours > 0 or self.dollars > 0


class Figures(Protocol):
    """A model's figures: those of a round's record, or of an evaluation."""

    @property
    def loss(self) -> float | None:
        """The loss."""
        ...

    @property
    def accuracy(self) -> float | None:
        """The accuracy."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """The others."""
        ...


def watched(figures: Figures, metric: Metric | None) -> tuple[str, float | None]:
    """Return the name of the figure that a run goes by, and its value; None if the model has none of that name.

    Parameters
    ----------
    figures
        A model's.
    metric
        The name; None: accuracy, or loss of a model without.
    """
    name = metric or ("accuracy" if figures.accuracy is not None else "loss")
    plain = {"accuracy": figures.accuracy, "loss": figures.loss}
    return name, plain[name] if name in plain else figures.metrics.get(name)


def why_over(until: Until, metric: str, values: Sequence[float | None], hours: float) -> str:
    """Say why a run is over before its rounds are; empty if it goes on.

    Parameters
    ----------
    until
        When it is to be over.
    metric
        The figure that it goes by.
    values
        Of it, a value for each round so far; None where the round made no model that the next starts from.
    hours
        Since the run's first round opened.

    Examples
    --------
    >>> why_over(Until(patience=2), "accuracy", [0.5, 0.6, 0.6, 0.5], 1.0)
    'no better accuracy than 0.6 in the last 2 rounds (until.patience)'
    """
    standing = Standing()
    for value in values:
        standing = standing.after(metric, value, until.min_gain)
    return standing.why_over(until, hours)


class Cost(_Settings):
    """What a run's rounds cost by list prices: so far, and one more like the last at most."""

    dollars: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    following: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    unpriced: str = Field(default="", max_length=40, description="A machine of its jobs that has no price")

    def why_over(self, until: Until) -> str:
        """Say why no other round is to open; empty if one may."""
        if until.dollars == 0:
            return ""
        if self.unpriced:
            return f"prices.machines has no price for {self.unpriced}, so nobody knows what rounds cost (until.dollars)"
        if self.dollars + self.following <= until.dollars:
            return ""
        return (
            f"some {self.dollars:.3g} dollars are spent by list prices, and one more round of {self.following:.3g} would pass "
            f"{until.dollars:g} (until.dollars)"
        )


class Standing(_Settings):
    """What a run's rounds so far have come to: all that says whether it is over."""

    done: int = Field(default=0, ge=0, description="Rounds")
    metric: str = Field(default="", description="The figure that it goes by")
    best: float | None = Field(default=None, allow_inf_nan=False)
    last: float | None = Field(
        default=None, allow_inf_nan=False, description="Of the model that the next round starts from"
    )
    since: int = Field(default=0, ge=0, description="Rounds in a row that made it no better than the best")
    cost: Cost = Field(default_factory=Cost)

    def after(self, metric: str, value: float | None, min_gain: float, cost: Cost | None = None) -> Standing:
        """Return what it is with one more round.

        Parameters
        ----------
        metric
            The figure that the run goes by.
        value
            The round's; None if it made no model that the next starts from.
        min_gain
            As `Until` has it.
        cost
            What all rounds cost, with this one; None if that is not counted.
        """
        # Of another figure than before, nothing is known.
        best, last = (self.best, self.last) if metric == self.metric else (None, None)
        gains = value is not None and (best is None or _gains(metric, value, best, min_gain))
        return Standing(
            done=self.done + 1,
            metric=metric,
            best=value if gains else best,
            last=last if value is None else value,
            since=0 if gains else self.since + 1,
            cost=cost or self.cost,
        )

    def why_over(self, until: Until, hours: float) -> str:
        """Say why the run is over before its rounds are, so many hours after its first round opened; empty if it goes on."""
        if until.target is not None and self.last is not None and not is_better(self.metric, until.target, self.last):
            return f"{self.metric} {self.last:.4g} has reached {until.target:g} (until.target)"
        if 0 < until.patience <= self.since:
            best = f"no better {self.metric} than {self.best:.4g}" if self.best is not None else ""
            than = best or f"no model with a figure of {self.metric}"
            return f"{than} in the last {self.since} rounds (until.patience)"
        if 0 < until.hours <= hours:
            return f"{hours:.3g} hours have passed, of {until.hours:g} (until.hours)"
        return self.cost.why_over(until)


class Run(_Settings):
    """A run that a round is part of, as it was before that round; what its next execution begins with.

    A run is told from others by its first round's number and time. Its rounds may be of several executions of the state machine.
    """

    first: RoundNumber = Field(description="Number of its first round")
    started_at: AwareDatetime = Field(description="When that opened")
    standing: Standing = Field(default_factory=Standing)
    previous: str | None = Field(default=None, description="The execution that started this one; None: a person did")


def _gains(metric: str, value: float, best: float, least: float) -> bool:
    return is_better(metric, value, best) and abs(value - best) >= least

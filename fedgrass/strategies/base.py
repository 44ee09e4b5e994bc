"""What a strategy is: checked options, facts that settings are judged by, and arithmetic that is imported when it is built.

Settings are checked where NumPy is not installed, so modules of strategies import it in their methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedgrass.errors import ConfigurationError, first_problem

if TYPE_CHECKING:
    from fedgrass.objectives import Optimizer
    from fedgrass.strategies.arithmetic.interfaces import Clip, Combination, ServerOptimizer, Weighting
    from fedgrass.update.codecs import Floats

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DeviceState = Literal["scaffold", "feddyn"]
"""What a strategy has each device keep from round to round (`fedgrass.control`)."""
PartialWork = Literal["no", "by_share", "by_steps"]
"""How a strategy takes updates of a part of a training: ``by_share`` if each counts by the share of its training that it has,
``by_steps`` if it divides all by their steps itself."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class StrategyOptions(BaseModel):
    """Base of all options: a misspelt one must not pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Clipping(StrategyOptions):
    """Longer updates are scaled down: to the L2 norm ``norm``, or to ``over_median`` times the cohort's median norm."""

    norm: Positive | None = None
    over_median: Positive | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Clipping:
        # Neither would clip nothing, and of both one would be ignored.
        if (self.norm is None) == (self.over_median is None):
            raise ValueError("expected either 'norm' or 'over_median'")
        return self

    def build(self) -> Clip:
        """Return the bound."""
        from fedgrass.strategies.arithmetic.clipping import ClipToMedian, ClipToNorm

        return ClipToNorm(self.norm) if self.norm is not None else ClipToMedian(self.over_median or 1.0)


class ClippedOptions(StrategyOptions):
    """Options of a strategy that can clip updates by itself, in the place of the settings' ``checks.clip_norm_over_median``."""

    clip: Clipping | None = Field(
        default=None,
        description="Longer updates are scaled down: {norm} is an L2 norm, {over_median} a multiple of the cohort's median norm",
    )

    def built_clip(self) -> Clip | None:
        """Return the bound; None if none is set."""
        return None if self.clip is None else self.clip.build()


class RobustOptions(ClippedOptions):
    """Options of a rule that withstands attackers.

    ``mixing`` averages updates with one another before the rule looks at them, for devices with unlike data: each with those
    ``nearest`` to it, or in ``buckets`` of two at random (the rule then withstands as many spoilt buckets).
    """

    attackers: float = Field(default=0.2, ge=0, lt=0.5, description="Share of the updates that may lie")
    mixing: Literal["none", "nearest", "buckets"] = Field(
        default="none",
        description="Average updates before the rule: each with those nearest to it, or in buckets of two at random",
    )

    @model_validator(mode="after")
    def _buckets_outnumber_the_attackers(self) -> RobustOptions:
        # A quarter of liars can spoil half of the buckets of two.
        if self.mixing == "buckets" and self.attackers >= 0.25:
            raise ValueError("mixing buckets: expected attackers below 0.25, because each can spoil a bucket of two")
        return self


@dataclass(frozen=True)
class WeightedMean:
    """A strategy's arithmetic that streams: the sum of weighted updates, scaled, and a server optimizer's step along it.

    Parameters
    ----------
    weighting
        How much each update counts.
    server
        The step; `fedgrass.strategies.arithmetic.server.Step` takes the mean itself.
    clip
        The strategy's own bound on the length of updates; without one the settings' bound holds.
    """

    weighting: Weighting
    server: ServerOptimizer
    clip: Clip | None = None


@dataclass(frozen=True)
class RobustRule:
    """A strategy's arithmetic that sees all updates at once, on one instance, as a matrix on the scratch disk.

    Parameters
    ----------
    combination
        Writes the combined difference, and returns each update's share in it.
    clip
        The strategy's own bound on the length of updates; without one the settings' bound holds.
    """

    combination: Combination
    clip: Clip | None = None


Method = WeightedMean | RobustRule


@dataclass(frozen=True)
class Strategy(ABC):
    """Base of all strategies; subclasses state the facts and `build`.

    Parameters
    ----------
    options
        Checked; of the class ``Options``.
    name
        As settings give it. A server optimizer's state belongs to a strategy's name.
    own_update
        The operator's own update [size], where ``needs_own_update``; None until it is trained.
    takes_parts
        Whether updates of this round may be of a part of a training.
    """

    Options: ClassVar[type[StrategyOptions]] = StrategyOptions
    """What the settings' ``strategy.options`` may hold."""
    needs_all: ClassVar[bool] = False
    """Whether `build` returns a `RobustRule`: several instances have nothing to share then."""
    needs_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of updates that it weighs by, such as ``steps``; local privacy sends none."""
    keeps_state: ClassVar[bool] = False
    """Whether a `RobustRule` goes on from round to round (`fedgrass.strategies.arithmetic.interfaces.Continued`)."""
    needs_own_update: ClassVar[bool] = False
    """Whether it compares updates with one that is trained on the operator's evaluation set."""
    device_state: ClassVar[DeviceState | None] = None
    """What each device keeps for it; such a strategy goes with no privacy, whose noise it would add up."""
    partial_work: ClassVar[PartialWork] = "no"
    """Whether updates of a part of a training (`fedgrass.partial`) are right in it."""

    options: Any
    name: str
    own_update: Floats | None = field(default=None, repr=False, compare=False)
    takes_parts: bool = field(default=False, repr=False)

    @property
    def staleness(self) -> int:
        """Number of earlier rounds whose late updates are taken too."""
        return 0

    @property
    def tree(self) -> int:
        """Number of rounds that share a tree of noise; 0: each round's noise is its own."""
        return 0

    @property
    def device_fit(self) -> Mapping[str, Any]:
        """What it sets of each device's training, by the names of `fedgrass.protocol.messages.FitTask`."""
        return {} if self.device_state is None else {"control": self.device_state}

    @abstractmethod
    def build(self) -> Method:
        """Import the arithmetic, and return what this strategy is of it."""

    @cached_property
    def method(self) -> Method:
        """What `build` returns, made once.

        Raises
        ------
        ConfigurationError
            If it is not what ``needs_all`` says.
        """
        method = self.build()
        # The job has chosen its way of reading by `needs_all` alone.
        if not isinstance(method, RobustRule if self.needs_all else WeightedMean):
            raise ConfigurationError(
                f"strategy {self.name!r}: build() returned {type(method).__name__}; with needs_all = {self.needs_all} it must "
                f"return {'RobustRule' if self.needs_all else 'WeightedMean'}"
            )
        if self.takes_parts and self.partial_work == "by_share" and isinstance(method, WeightedMean):
            from fedgrass.strategies.arithmetic.weighting import WorkWeighting

            return replace(method, weighting=WorkWeighting(method.weighting))
        return method

    def with_partial_work(self) -> Strategy:
        """Return the same for a round in which devices may send a part of their training.

        Raises
        ------
        ConfigurationError
            If it would count for more or less than it is.
        """
        if self.partial_work == "no":
            raise ConfigurationError(
                f"strategy {self.name!r}: has no part of a training count for what it is; set fit.partial_margin_seconds to 0"
            )
        return replace(self, takes_parts=True)

    def for_optimizer(self, optimizer: Optimizer) -> Strategy:  # noqa: ARG002 - for strategies that ask how devices step
        """Return the same for a model that devices train with this optimizer."""
        return self

    def with_own_update(self, update: Floats) -> Strategy:
        """Return the same with the operator's own update."""
        return replace(self, own_update=update)

    @classmethod
    def made(cls, name: str, given: Mapping[str, Any]) -> Strategy:
        """Return the strategy with these options.

        Raises
        ------
        ConfigurationError
            If an option is unknown or out of range.
        """
        try:
            options = cls.Options.model_validate(dict(given))
        except ValidationError as error:
            problem = first_problem(error, "options", prefix="option ")
            raise ConfigurationError(
                f"strategy {name!r}: {problem}. Its options are {', '.join(cls.Options.model_fields)}"
            ) from error
        return cls(options, name)


@dataclass(frozen=True)
class MeanStrategy(Strategy):
    """Base of strategies that are means by examples, or of all alike, and differ in the server optimizer's step."""

    partial_work: ClassVar[PartialWork] = "by_share"

    class Options(ClippedOptions):
        """What they all take."""

        weighting: Literal["examples", "equal"] = Field(
            default="examples", description="Whether updates count by their examples, or all alike"
        )

    def build(self) -> Method:
        """Return the mean with its step."""
        from fedgrass.strategies.arithmetic.weighting import EqualWeighting, ExampleWeighting

        weighting = EqualWeighting() if self.options.weighting == "equal" else ExampleWeighting()
        return WeightedMean(weighting, self.server(), self.options.built_clip())

    def server(self) -> ServerOptimizer:
        """Return the step; here the mean itself."""
        from fedgrass.strategies.arithmetic.server import Step

        return Step()


@dataclass(frozen=True)
class RobustStrategy(Strategy):
    """Base of rules that withstand attackers; subclasses have `rule`."""

    Options = RobustOptions
    needs_all = True

    def build(self) -> Method:
        """Return the rule, behind the mixing that the options ask for."""
        from fedgrass.strategies.arithmetic.mixing import Buckets, Mixed, Nearest

        options = self.options
        match options.mixing:
            case "nearest":
                combination: Combination = Mixed(Nearest(options.attackers), self.rule(options.attackers))
            case "buckets":
                buckets = Buckets()
                # In the worst case each liar is alone in a bucket.
                combination = Mixed(buckets, self.rule(buckets.size * options.attackers))
            case _:
                combination = self.rule(options.attackers)
        return RobustRule(combination, options.built_clip())

    @abstractmethod
    def rule(self, attackers: float) -> Combination:
        """Return the rule; ``attackers`` is the share of its rows that may lie."""

"""The strategy as settings name it, and what rounds have to know of it without its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedgrass import strategies
from fedgrass.errors import ConfigurationError


class Strategy(BaseModel):
    """How updates are combined: a name and its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(default="fedavg", max_length=200)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exists_and_takes_the_options(self) -> Strategy:
        try:
            strategies.checked_strategy(self.name, self.options)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def staleness(self) -> int:
        """Number of earlier rounds whose late updates are taken; 0 where only the aggregator can know."""
        found = self.known()
        # A strategy by `module:Class` may be installed in the aggregator's image alone, and functions do not have it.
        return 0 if found is None else found.staleness

    @property
    def tree(self) -> int:
        """Number of rounds that share a tree of noise; 0 where each round's noise is its own."""
        found = self.known()
        return 0 if found is None else found.tree

    @property
    def uses_one_instance(self) -> bool:
        """Whether more instances than one would have nothing to do."""
        found = self.known()
        # Unknown here, so the safe answer: one instance is always right.
        return found is None or found.needs_all

    @property
    def weighs_by_metrics(self) -> bool:
        """Whether updates count by what devices measured."""
        found = self.known()
        return found is not None and bool(found.needs_metrics)

    @property
    def keeps_device_state(self) -> bool:
        """Whether devices keep something for it from round to round."""
        found = self.known()
        return found is not None and found.device_state is not None

    @property
    def device_fit(self) -> Mapping[str, Any]:
        """What it sets of each device's training; nothing where only the aggregator can know."""
        found = self.known()
        return {} if found is None else found.device_fit

    def made(self) -> strategies.Strategy:
        """Return the strategy itself; raises `ConfigurationError` if it is not installed here, or settings could not know it."""
        found = strategies.strategy_named(self.name, **self.options)
        # Rounds were opened without its tree: their noise would not be what the class counts on.
        if found.tree != self.tree:
            raise ConfigurationError(
                f"strategy {self.name}: its rounds share a tree of noise ({found.tree}), which whoever opens rounds has to know, "
                "and of module:Class nobody does; use dp_ftrl, or register the class under a name, which works in simulation"
            )
        return found

    def known(self) -> strategies.Strategy | None:
        """Return the strategy; None if it is not installed here."""
        return strategies.checked_strategy(self.name, self.options)

"""Strategies that settings name as ``module:Class``: Flower's, and combinations of the user's own. Nothing else can be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgrass.cloud.aggregator.strategies.base import Combination, Combine
from fedgrass.cloud.aggregator.strategies.flower import FlowerStrategy
from fedgrass.errors import ConfigurationError
from fedgrass.references import subclass

FLOWER = "flwr.server.strategy.Strategy"
OWN = f"{Combination.__module__}.{Combination.__qualname__}"


def combination_named(name: str, options: Mapping[str, Any]) -> Combine:
    """Make the strategy that ``module:Class`` names, with these options as its arguments.

    Raises
    ------
    ConfigurationError
        If it is neither a Flower strategy nor a `Combination`, or does not take the options.
    """
    try:
        kind = subclass(name, [FLOWER, OWN])
    except ConfigurationError as error:
        raise ConfigurationError(
            f"strategy {error} A strategy must be installed where it runs: for rounds, in the aggregator's image"
        ) from error
    try:
        made = kind(**options)
    except TypeError as error:
        raise ConfigurationError(f"strategy {name!r}: cannot be made with {dict(options)} ({error})") from error
    return made if isinstance(made, Combination) else FlowerStrategy(name, made)

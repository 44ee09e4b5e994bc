"""How updates are combined: small objects, chosen by name in the round's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloud.aggregator.strategies.base import Aggregate, Strategy, Update
from cloud.aggregator.strategies.fedavg import FedAvg
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.settings import Strategy as StrategySettings

STRATEGIES: Mapping[str, Callable[..., Strategy]] = {"fedavg": FedAvg}

__all__ = ["STRATEGIES", "Aggregate", "FedAvg", "Strategy", "Update", "make_strategy"]


def make_strategy(settings: StrategySettings) -> Strategy:
    """Return the strategy that the settings name.

    Raises
    ------
    ConfigurationError
        If there is none of that name, or it does not take the options.
    """
    factory = STRATEGIES.get(settings.name)
    if factory is None:
        raise ConfigurationError(f"strategy {settings.name!r}: expected one of {', '.join(STRATEGIES)}")
    try:
        return factory(**settings.options)
    except TypeError as error:
        raise ConfigurationError(f"strategy {settings.name!r}: option not accepted ({error})") from error

"""Aggregation strategies: one module each, chosen by name in a round's settings.

Beside the modules here: those that installed packages register as entry points of the group ``fedgrass.strategies``,
``module:Class`` of a subclass of `Strategy`, and ``flower:module:Class`` of one of Flower's. Nothing here imports NumPy until a
strategy is built.
"""

from __future__ import annotations

from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.references import split_reference, subclass
from fedgrass.registry import Registry
from fedgrass.strategies.base import RobustRule, Strategy, WeightedMean
from fedgrass.strategies.flower_names import check_named, is_flowers

__all__ = ["STRATEGIES", "RobustRule", "Strategy", "WeightedMean", "checked_strategy", "strategy_named"]

_OWN = f"{Strategy.__module__}.{Strategy.__qualname__}"
_FLOWER = ("flwr.server.strategy.Strategy", "flwr.serverapp.strategy.Strategy")
_FLOWER_PREFIX = "flower:"

STRATEGIES: Registry[type[Strategy]] = Registry(
    kind="strategy",
    package=__name__,
    group="fedgrass.strategies",
    valid=lambda part: isinstance(part, type) and issubclass(part, Strategy),
    expected=f"subclass of {_OWN}",
    also="module:Class of your own, or flower:module:Class",
)


def checked_strategy(name: str, options: dict[str, Any]) -> Strategy | None:
    """Return the strategy that settings name, its options checked; None for ``module:Class``, which is imported only to be used.

    Raises
    ------
    ConfigurationError
        If there is none of that name, or it does not take the options.
    """
    # Importing the user's class here would run their code wherever settings are read, in functions without NumPy too.
    if ":" in name:
        reference = name.removeprefix(_FLOWER_PREFIX)
        module, _ = split_reference(reference)  # what it takes only it knows
        if reference != name or is_flowers(module):
            check_named(name, reference, options)
        return None
    return STRATEGIES.get(name).made(name, options)


def strategy_named(name: str, **options: Any) -> Strategy:
    """Return a strategy with these options.

    Parameters
    ----------
    name
        A name of `STRATEGIES`, ``module:Class`` of a subclass of `Strategy`, or ``flower:module:Class`` (``module:Class`` works
        for Flower's too).
    options
        As `docs/strategies.md` lists them; those of a Flower strategy are its constructor's arguments.

    Raises
    ------
    ConfigurationError
        If there is none of that name, or it does not take the options.

    Examples
    --------
    >>> strategy_named("trimmed_mean", attackers=0.1).needs_all
    True
    """
    if ":" not in name:
        return STRATEGIES.get(name).made(name, options)
    reference = name.removeprefix(_FLOWER_PREFIX)
    try:
        kind = subclass(reference, _FLOWER if reference != name else [_OWN, *_FLOWER])
    except ConfigurationError as error:
        raise ConfigurationError(
            f"strategy {error} A strategy must be installed where it runs: for rounds, in the aggregator's image"
        ) from error
    if issubclass(kind, Strategy):
        return kind.made(name, options)
    # Only now: it needs NumPy and Flower.
    from fedgrass.strategies.arithmetic.flower import FlowerStrategy

    return FlowerStrategy.wrapping(name, kind, options)

"""How updates are combined: small objects, chosen by name in the round's settings."""

from __future__ import annotations

from typing import Any

from cloud.aggregator.strategies.base import Clip, Combine, Strategy, Weigh
from cloud.aggregator.strategies.clip import ClipToMedian, ClipToNorm
from cloud.aggregator.strategies.robust import Bulyan, GeometricMedian, Krum, Median, TrimmedMean
from cloud.aggregator.strategies.server import Adagrad, Adam, Momentum, Step, Yogi
from cloud.aggregator.strategies.weigh import ByAge, ByExamples, ByLoss, ByStep, Equally
from fedgrass.protocol import strategies as options
from fedgrass.protocol.settings import Strategy as StrategySettings

__all__ = ["Strategy", "make_strategy", "strategy_named"]


def make_strategy(settings: StrategySettings) -> Strategy:
    """Return the strategy that the settings name."""
    return strategy_named(settings.name, **settings.options)


def strategy_named(name: str, **given: Any) -> Strategy:
    """Return a strategy with these options (`fedgrass.protocol.strategies`).

    Raises
    ------
    ConfigurationError
        If there is none of that name, or it does not take the options.
    """
    if ":" in name:
        from cloud.aggregator.strategies.flower import FlowerStrategy

        return Strategy(name, Equally(), Step(), combine=FlowerStrategy.load(name, given))
    found = options.parse_options(name, given)
    clip = _clip(found.clip) if isinstance(found, options.Clipped) else None
    if (combine := _combine(name, found)) is not None:
        return Strategy(name, Equally(), Step(), clip, combine)
    weigh = _weigh(name, found)
    chosen = found.model_dump(exclude={"clip", "weighting"})
    match name:
        case "fedavgm":
            return Strategy(name, weigh, Momentum(**chosen), clip)
        case "fedadagrad":
            return Strategy(name, weigh, Adagrad(**chosen), clip)
        case "fedadam":
            return Strategy(name, weigh, Adam(**chosen), clip)
        case "fedyogi":
            return Strategy(name, weigh, Yogi(**chosen), clip)
        case "fedbuff":
            return Strategy(name, weigh, Step(), clip, staleness=chosen["staleness"])
    return Strategy(name, weigh, Step(), clip)


def _clip(found: options.Clipping | None) -> Clip | None:
    if found is None:
        return None
    return ClipToNorm(found.norm) if found.norm is not None else ClipToMedian(found.over_median or 1.0)


def _weigh(name: str, found: options.Options) -> Weigh:
    match found:
        case options.FedAvg(weighting="equal"):
            return Equally()
        case options.QFedAvg(q=q, learning_rate=rate, max_loss=bound):
            return ByLoss(q, rate, bound)
        case options.FedBuff(exponent=exponent):
            return ByAge(exponent)
    return ByStep() if name == "fednova" else ByExamples()


def _combine(name: str, found: options.Options) -> Combine | None:
    match name, found:
        case "median", _:
            return Median()
        case "trimmed_mean", options.Withstanding(attackers=share):
            return TrimmedMean(share)
        case "geometric_median", options.GeometricMedian(iterations=iterations):
            return GeometricMedian(iterations)
        case "krum", options.Withstanding(attackers=share):
            return Krum(share)
        case "multi_krum", options.MultiKrum(attackers=share, chosen=chosen):
            return Krum(share, 1 - share if chosen is None else chosen)
        case "bulyan", options.Withstanding(attackers=share):
            return Bulyan(share)
    return None

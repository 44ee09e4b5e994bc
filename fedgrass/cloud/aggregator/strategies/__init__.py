"""How updates are combined: small objects, chosen by name in the round's settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedgrass.cloud.aggregator.strategies.base import Clip, Combination, Combine, Strategy
from fedgrass.cloud.aggregator.strategies.clip import ClipToMedian, ClipToNorm
from fedgrass.cloud.aggregator.strategies.mixing import Buckets, Mixed, Nearest
from fedgrass.cloud.aggregator.strategies.robust import (
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Median,
    TrimmedMean,
)
from fedgrass.cloud.aggregator.strategies.server import Adagrad, Adam, Momentum, Step, Yogi
from fedgrass.cloud.aggregator.strategies.trust import Trust
from fedgrass.cloud.aggregator.strategies.weigh import ByAge, ByExamples, ByLoss, ByStep, Equally
from fedgrass.errors import ConfigurationError
from fedgrass.protocol import strategies as options
from fedgrass.protocol.settings import Strategy as StrategySettings

__all__ = ["Combination", "Strategy", "make_strategy", "strategy_named"]


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
        from fedgrass.cloud.aggregator.strategies.own import combination_named

        return Strategy(name, Equally(), Step(), combine=combination_named(name, given))
    found = options.parse_options(name, given)
    make = MAKERS.get(name)
    if make is None:  # named for settings, and forgotten here: never the plain mean in its place
        raise ConfigurationError(
            f"strategy {name!r}: this aggregator does not have it; expected one of {', '.join(MAKERS)}"
        )
    return make(name, found)


Maker = Callable[[str, Any], Strategy]


def _mean(name: str, found: options.FedAvg) -> Strategy:
    return Strategy(name, _weigh(found), Step(), _clip(found))


def _with(server: Callable[..., Any]) -> Maker:
    def make(name: str, found: options.FedAvg) -> Strategy:
        chosen = found.model_dump(exclude={"clip", "weighting"})
        return Strategy(name, _weigh(found), server(**chosen), _clip(found))

    return make


def _fednova(name: str, found: options.Clipped) -> Strategy:
    return Strategy(name, ByStep(), Step(), _clip(found))


def _qfedavg(name: str, found: options.QFedAvg) -> Strategy:
    return Strategy(name, ByLoss(found.q, found.learning_rate, found.max_loss), Step(), _clip(found))


def _fedbuff(name: str, found: options.FedBuff) -> Strategy:
    return Strategy(name, ByAge(found.exponent), Step(), _clip(found), staleness=found.staleness)


def _robust(rule: Callable[[Any, float], Combine]) -> Maker:
    """Return what makes a strategy of a robust rule, which gets its options and the share of attackers among its rows."""

    def make(name: str, found: options.Withstanding) -> Strategy:
        match found.mixing:
            case "none":
                combination = rule(found, found.attackers)
            case "nearest":
                combination = Mixed(Nearest(found.attackers), rule(found, found.attackers))
            case "buckets":
                buckets = Buckets()
                combination = Mixed(buckets, rule(found, buckets.size * found.attackers))
        return Strategy(name, Equally(), Step(), _clip(found), combination)

    return make


def _multi_krum(found: options.MultiKrum, attackers: float) -> Combine:
    return Krum(attackers, 1 - attackers if found.chosen is None else found.chosen)


def _trust(name: str, found: options.Trust) -> Strategy:
    return Strategy(name, Equally(), Step(), combine=Trust(found.over_median))


MAKERS: Mapping[str, Maker] = {
    "fedavg": _mean,
    "fedprox": _mean,
    "fedavgm": _with(Momentum),
    "fedadagrad": _with(Adagrad),
    "fedadam": _with(Adam),
    "fedyogi": _with(Yogi),
    "fednova": _fednova,
    "qfedavg": _qfedavg,
    "fedbuff": _fedbuff,
    "median": _robust(lambda found, attackers: Median()),
    "trimmed_mean": _robust(lambda found, attackers: TrimmedMean(attackers)),
    "geometric_median": _robust(lambda found, attackers: GeometricMedian(found.iterations)),
    "centered_clipping": _robust(lambda found, attackers: CenteredClipping(found.radius, found.iterations)),
    "krum": _robust(lambda found, attackers: Krum(attackers)),
    "multi_krum": _robust(_multi_krum),
    "bulyan": _robust(lambda found, attackers: Bulyan(attackers)),
    "trust": _trust,
}
"""How each strategy is made of its name and its checked options; the names are those of `options.OPTIONS`, as a test holds."""


def _weigh(found: options.FedAvg) -> ByExamples | Equally:
    return Equally() if found.weighting == "equal" else ByExamples()


def _clip(found: options.Clipped) -> Clip | None:
    clip = found.clip
    if clip is None:
        return None
    return ClipToNorm(clip.norm) if clip.norm is not None else ClipToMedian(clip.over_median or 1.0)

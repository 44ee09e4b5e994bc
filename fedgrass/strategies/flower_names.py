"""What is known of Flower's strategies without Flower: which of them, and of their arguments, a fleet's rounds would ignore.

Settings are checked where Flower is not installed, a fleet's functions among them: what these facts refuse opens no round. Of a
class of one's own nothing is known there but that it is Flower's (``flower:module:Class``), so its arguments are looked at, and
its methods by the aggregator alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgrass.errors import ConfigurationError

DRIVE = "`fedgrass flower run APP --fleet FLEET` honours it: the app's own ServerApp drives the fleet's rounds, on your machine"
"""The way out of what settings cannot say."""
_SIMULATED = "On virtual devices `fedgrass flower run APP` has it; on a fleet nothing does"

_SET = "an evaluation set (fedgrass model evaluation-set)"
_MEAN = "the fleet's own mean by examples"
PLACES: Mapping[str, tuple[str, Any]] = {
    "fraction_fit": ("fraction", 1.0),
    "fraction_train": ("fraction", 1.0),
    "min_fit_clients": ("min_updates", 2),
    "min_train_nodes": ("min_updates", 2),
    "min_available_clients": ("min_devices", 2),
    "min_available_nodes": ("min_devices", 2),
    "fraction_evaluate": ("gate.devices_seconds", 1.0),
    "min_evaluate_clients": ("gate.devices_seconds", 2),
    "min_evaluate_nodes": ("gate.devices_seconds", 2),
    "on_fit_config_fn": ("fit.config", None),
    "on_evaluate_config_fn": ("fit.config", None),
    "evaluate_fn": (_SET, None),
    "evaluate_function": (_SET, None),
    "evaluate_metrics_aggregation_fn": (_MEAN, None),
    "evaluate_metrics_aggr_fn": (_MEAN, None),
    "min_completion_rate_evaluate": (_MEAN, 0.5),
    "fit_metrics_aggregation_fn": (_MEAN, None),
    "train_metrics_aggr_fn": (_MEAN, None),
}
"""Arguments that say what a fleet's settings say: which do, and the value that Flower has if they are left out."""

_TREES = "its model is a file of trees, not arrays of fixed shape"
_BOUNDS = (
    "it tells each client a bound in each round; use privacy.mode, or a strategy of Flower's that clips on the server"
)
WITHOUT_PLACE: Mapping[str, str] = {
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "FedXgbNnAvg": _TREES,
    "FedAvgAndroid": "its clients' bytes are those of Flower's Android SDK",
    "DPFedAvgFixed": _BOUNDS,
    "DPFedAvgAdaptive": _BOUNDS,
    "DifferentialPrivacyClientSideFixedClipping": _BOUNDS,
    "DifferentialPrivacyClientSideAdaptiveClipping": _BOUNDS,
}
"""Flower's own that settings cannot have, and why."""

_LEGACY_QFEDAVG = (
    "weighs by what its evaluate_fn says; use flwr.serverapp.strategy:QFedAvg, which takes the devices' own losses "
    "(train_loss_key: loss), or qfedavg"
)


def check_kind(name: str, kind: str, *, legacy: bool) -> None:
    """Refuse a class of Flower's own that a fleet's rounds cannot have.

    Parameters
    ----------
    name
        In settings, for the message.
    kind
        The class's name.
    legacy
        Whether it is of ``flwr.server.strategy``.

    Raises
    ------
    ConfigurationError
        Saying why.
    """
    if kind in WITHOUT_PLACE:
        raise ConfigurationError(f"strategy {name!r}: {WITHOUT_PLACE[kind]}. {_SIMULATED}")
    if kind == "QFedAvg" and legacy:
        raise ConfigurationError(f"strategy {name!r}: {_LEGACY_QFEDAVG}. {_SIMULATED}")


def check_arguments(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an argument that says what a fleet's settings say.

    Raises
    ------
    ConfigurationError
        Naming it, and what takes its place.
    """
    for argument, value in options.items():
        # A value that is the default says nothing, so copied examples still work.
        if argument in PLACES and value != PLACES[argument][1]:
            raise ConfigurationError(
                f"strategy {name!r}: {argument} has no part in a fleet's rounds; use {PLACES[argument][0]}. {DRIVE}"
            )


def check_named(name: str, reference: str, options: Mapping[str, Any]) -> None:
    """Refuse what can be refused of a strategy that is known to be Flower's, and those that it wraps, by the names alone.

    Parameters
    ----------
    name
        In settings, for the message.
    reference
        ``module:Class``.
    options
        Arguments of its constructor.

    Raises
    ------
    ConfigurationError
        Naming what a fleet's rounds would ignore.

    Examples
    --------
    >>> check_named("s", "flwr.server.strategy:FedAvg", {"evaluate_fn": "mine:f"})
    Traceback (most recent call last):
    fedgrass.errors.ConfigurationError: strategy 's': evaluate_fn has no part in a fleet's rounds; ...
    """
    # The newer tree is flwr.serverapp.strategy; everything else of Flower's is the older one.
    module, _, kind = reference.partition(":")
    if is_flowers(module):
        check_kind(name, kind, legacy=not module.startswith("flwr.serverapp"))
    check_arguments(name, options)
    # A wrapper's strategy: by name alone, or as settings have one.
    inner = options.get("strategy")
    if isinstance(inner, str):
        check_named(name, inner.removeprefix("flower:"), {})
    elif isinstance(inner, dict) and isinstance(inner.get("name"), str):
        below = inner.get("options")
        check_named(name, inner["name"].removeprefix("flower:"), below if isinstance(below, dict) else {})


def is_flowers(module: str) -> bool:
    """Say whether a module is Flower's own."""
    return module.partition(".")[0] == "flwr"

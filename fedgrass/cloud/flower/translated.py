"""A strategy's object as a fleet's settings: its class, and what its constructor was given.

What says who trains, with what configuration, and how models are evaluated stays here and is asked of the object in each round.
What updates become is the aggregator's: by a strategy of ours where one gives the same result to 1e-6 (docs/strategies.md has
the table), else by the class itself, which then has to be in the aggregator's image.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.strategies.arithmetic import flower_options
from fedgrass.strategies.flower_names import PLACES

_STEP = {"eta": "learning_rate", "tau": "tau"}
_EQUAL: dict[str, tuple[str, Mapping[str, str]]] = {
    "FedAvg": ("fedavg", {}),
    "FedProx": ("fedavg", {}),
    "FedAvgM": ("fedavgm", {"server_learning_rate": "learning_rate", "server_momentum": "momentum"}),
    "FedAdagrad": ("fedadagrad", _STEP),
    "FedYogi": ("fedyogi", {**_STEP, "beta_1": "beta_1", "beta_2": "beta_2"}),
    "FedMedian": ("median", {}),
}
"""Flower's own that have an equal here, and their options'. FedProx's term is the client's; its configuration brings it."""

_KEYS = {"weighted_by_key": "num-examples", "arrayrecord_key": "arrays", "configrecord_key": "config"}
_NOT_OF_THE_AGGREGATION = frozenset({*PLACES, *_KEYS, "initial_parameters", "proximal_mu", "inplace"})
_GIVEN = "_fedgrass_given"
"""Attribute of a strategy: the arguments of each of Flower's constructors that made it, by class."""

_TREES = ("flwr.server.strategy", "flwr.serverapp.strategy")
_AGGREGATES = ("aggregate_fit", "aggregate_train")


@dataclass(frozen=True)
class Translated:
    """The settings' ``strategy``, and what the aggregator's image must have for it, if anything."""

    name: str
    options: Mapping[str, Any]
    needs: str = ""

    @property
    def setting(self) -> dict[str, Any]:
        """Return the override of a round."""
        return {"name": self.name, "options": dict(self.options)}


def translated(strategy: Any) -> Translated:
    """Return what aggregates as a strategy does.

    Raises
    ------
    ConfigurationError
        If it has no counterpart, naming what has none.
    """
    kind = _aggregating(type(strategy))
    name = flower_options.reference(kind)
    _check_keys(name, strategy)
    given = _arguments(name, kind, strategy)
    flower_options.check(name, kind, given)
    short = kind.__name__
    # With accept_failures off, one failure voids a round of Flower's; ours has no such rule.
    if flower_options.is_flowers(kind) and short in _EQUAL and given.get("accept_failures", True):
        ours, names = _EQUAL[short]
        return Translated(ours, {names[key]: value for key, value in given.items() if key in names})
    needs = "Flower" if flower_options.is_flowers(kind) else f"Flower, and the app's own {kind.__module__}"
    return Translated(f"flower:{name}", given, needs)


def _aggregating(kind: type[Any]) -> type[Any]:
    """Return the class whose aggregation a strategy's is: Flower's own, unless one below it has its own."""
    # From the class upwards: what comes first, Flower's own class or a method that replaces its aggregation.
    for above in kind.__mro__:
        if flower_options.is_flowers(above):
            return above
        if any(method in vars(above) for method in _AGGREGATES):
            return kind
    return kind


def _check_keys(name: str, strategy: Any) -> None:
    for one in flower_options.with_wrapped(strategy):
        for key, expected in _KEYS.items():
            found = getattr(one, key, expected)
            if found != expected:
                raise ConfigurationError(f"strategy {name}: {key} is {found!r}; a fleet's devices have {expected!r}")


def _arguments(name: str, kind: type[Any], strategy: Any) -> dict[str, Any]:
    known: Mapping[str, Any] | None = vars(strategy).get(_GIVEN, {}).get(kind)
    given: dict[str, Any] = {}
    # First what the constructor passed on by **kwargs, which its own signature does not name.
    taken = {**dict.fromkeys(known or (), inspect.Parameter.empty), **flower_options.arguments(kind)}
    for argument, default in taken.items():
        if argument in {"self", *_NOT_OF_THE_AGGREGATION}:
            continue
        if known is None and not hasattr(strategy, argument):
            raise ConfigurationError(
                f"strategy {name}: keeps no attribute {argument!r}, by which a fleet's settings would have its argument"
            )
        value = getattr(strategy, argument) if known is None else known.get(argument, default)
        # A strategy that wraps another, such as those of differential privacy.
        if argument == "strategy":
            given[argument] = _wrapped(value)
        elif value is not None and (default is inspect.Parameter.empty or value != default):
            given[argument] = _plain(name, argument, value)
    return given


@contextmanager
def remembered() -> Iterator[None]:
    """Have strategies that are made meanwhile remember what Flower's constructors were given.

    Their attributes do not say it: some are changed by the constructor, and others by the rounds.
    """
    kinds = {kind for tree in _TREES for kind in vars(importlib.import_module(tree)).values() if isinstance(kind, type)}
    own = {
        kind: vars(kind)["__init__"]
        for kind in kinds
        if flower_options.is_flowers(kind)
        and "__init__" in vars(kind)
        and any(hasattr(kind, one) for one in _AGGREGATES)
    }
    for kind, init in own.items():
        kind.__init__ = _remembering(kind, init)  # type: ignore[misc]
    try:
        yield
    finally:
        for kind, init in own.items():
            kind.__init__ = init  # type: ignore[misc]


def _remembering(kind: type[Any], init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @wraps(init)
    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        more = next((one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD), "")
        found = {name: value for name, value in bound.items() if name not in {"self", more}}
        vars(self).setdefault(_GIVEN, {})[kind] = {**found, **bound.get(more, {})}
        init(self, *args, **kwargs)

    return remember


def _wrapped(strategy: Any) -> dict[str, Any]:
    """Return a wrapped strategy as options name it: always Flower's own class, never ours."""
    kind = _aggregating(type(strategy))
    name = flower_options.reference(kind)
    return {"name": name, "options": _arguments(name, kind, strategy)}


def _plain(name: str, argument: str, value: Any) -> Any:
    # The aggregator imports it by this name.
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"strategy {name}: its {argument} is a {type(value).__name__}, which a fleet's settings cannot hold"
        ) from error
    return value

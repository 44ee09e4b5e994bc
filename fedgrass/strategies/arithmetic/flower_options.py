"""A strategy of Flower's from a fleet's settings: made with what its constructor needs, or refused by name.

A fleet's own settings say who trains, with what configuration, and how models are evaluated. What a strategy would say of that is
refused before a round opens, with the setting that takes its place, for it would be ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.references import function, subclass
from fedgrass.strategies.flower_names import DRIVE, check_arguments, check_kind

LEGACY = "flwr.server.strategy.Strategy"
MESSAGES = "flwr.serverapp.strategy.Strategy"
BASES = (LEGACY, MESSAGES)

_METHODS = {
    "configure_fit": "fraction and fit.config",
    "configure_train": "fraction and fit.config",
    "configure_evaluate": "fit.config",
    "evaluate": "an evaluation set (fedgrass model evaluation-set)",
    "aggregate_evaluate": "the fleet's own mean by examples",
    "initialize_parameters": "fedgrass model publish",
    "start": "rounds",
}
"""Methods that a fleet's rounds do not call as Flower does, and what takes their place."""

_FUNCTIONS = ("first_aggregation_rule", "selection_rule")


def check(name: str, kind: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse a strategy, a method or an argument that a fleet's rounds would ignore.

    Parameters
    ----------
    name
        The strategy's in settings, for messages.
    kind
        Its class.
    options
        Arguments of its constructor.

    Raises
    ------
    ConfigurationError
        Naming it, and what takes its place.
    """
    for above in kind.__mro__:
        if is_flowers(above):
            check_kind(name, above.__name__, legacy=_is_legacy(above))
        else:
            _check_methods(name, above, kind)
    check_arguments(name, options)


def made(name: str, kind: type[Any], options: Mapping[str, Any], initial: Any) -> Any:
    """Make the strategy.

    Parameters
    ----------
    name
        In settings, for messages.
    kind
        Its class.
    options
        Arguments of its constructor. Another strategy, which it wraps, is ``{"name": "module:Class", "options": {…}}``, or the
        name alone; without one it is Flower's FedAvg. A function is ``module:function``.
    initial
        The model that the round starts from, where the constructor takes ``initial_parameters``.

    Raises
    ------
    ConfigurationError
        If the class does not take the options.
    """
    taken = arguments(kind)
    given = dict(options)
    if "initial_parameters" in taken and initial is not None:
        given["initial_parameters"] = initial
    if "strategy" in taken:
        given["strategy"] = _wrapped(name, kind, given.get("strategy"), initial)
    for argument in _FUNCTIONS:
        if isinstance(given.get(argument), str):
            given[argument] = function(given[argument])
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"strategy {name!r}: cannot be made with {dict(options)} ({error})") from error


def _wrapped(name: str, kind: type[Any], asked: Any, initial: Any) -> Any:
    tree = "flwr.server.strategy" if _is_legacy(kind) else "flwr.serverapp.strategy"
    inner = {"name": asked} if isinstance(asked, str) else dict(asked or {})
    reference, options = str(inner.get("name", f"{tree}:FedAvg")), inner.get("options", {})
    if inner.keys() - {"name", "options"} or not isinstance(options, dict):
        raise ConfigurationError(f"strategy {name!r}: expected strategy as {{name, options}}, found {asked!r}")
    below = subclass(reference.removeprefix("flower:"), [LEGACY if _is_legacy(kind) else MESSAGES])
    check(reference, below, options)
    return made(reference, below, options, initial)


def _check_methods(name: str, above: type[Any], kind: type[Any]) -> None:
    for method, place in _METHODS.items():
        below = kind.__mro__[kind.__mro__.index(above) + 1 :]
        inherited = next((getattr(one, method) for one in below if method in vars(one)), None)
        # What Flower's base leaves to every strategy says nothing; what replaces a method that works does.
        if method in vars(above) and inherited is not None and not getattr(inherited, "__isabstractmethod__", False):
            raise ConfigurationError(
                f"strategy {name!r}: its own {method}() has no part in a fleet's rounds; use {place}. {DRIVE}"
            )


def arguments(kind: type[Any]) -> dict[str, Any]:
    """Return the constructor's arguments with their defaults, those of the classes below among them where it hands them on."""
    found: dict[str, Any] = {}
    for above in kind.__mro__:
        if "__init__" not in vars(above):
            continue
        # A subclass's default stands before those of the classes below it.
        parameters = inspect.signature(vars(above)["__init__"]).parameters.values()
        found = {one.name: one.default for one in parameters if one.kind is not one.VAR_KEYWORD} | found
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return found


def reference(kind: type[Any]) -> str:
    """Return a strategy's class as ``module:Class``; Flower's own by the module that Flower documents."""
    if not is_flowers(kind):
        return f"{kind.__module__}:{kind.__qualname__}"
    return f"flwr.{'server' if _is_legacy(kind) else 'serverapp'}.strategy:{kind.__name__}"


def with_wrapped(strategy: Any) -> list[Any]:
    """Return a strategy and those that it wraps, from the outermost on."""
    inner = getattr(strategy, "strategy", None)
    return [strategy] if inner is None else [strategy, *with_wrapped(inner)]


def _is_legacy(kind: type[Any]) -> bool:
    # The method that only the older tree has.
    return hasattr(kind, "aggregate_fit")


def is_flowers(kind: type[Any]) -> bool:
    """Say whether a class is Flower's own, and not somebody's below it."""
    # object ends each class's order, and is nobody's own.
    return kind.__module__.partition(".")[0] == "flwr" or kind is object

"""Engines by name, as configuration gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedgrass.bundle import Bundle
from fedgrass.engines.base import Engine
from fedgrass.engines.builders import named
from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.own_code import own_code
from fedgrass.parts import ENGINES


def open_engine(name: str, bundle: Bundle, *, threads: int = 1, builder: str | Callable[..., Any] = "") -> Engine:
    """Make an engine that holds the bundle's model and parameters.

    Parameters
    ----------
    name
        A name of `ENGINES`, or ``module:Class`` of something that is made with ``(bundle, threads=…)`` and keeps `Engine`.
    builder
        ``module:function`` that builds the model, or the function itself, for those that say ``takes_builder``.

    Raises
    ------
    EngineError
        If there is no such engine, its package is not installed, or it cannot run the model.
    BundleError
        If the bundle is damaged.
    """
    if ":" in name:
        with own_code(f"engine {name!r}"):
            # An engine of the user's own knows its model: it is given no builder.
            engine: Engine = named(name, setting="engine")(bundle, threads=threads)
        return engine
    try:
        kind = ENGINES.get(name)
    except ConfigurationError as error:
        raise EngineError(str(error)) from error
    built = {"builder": builder} if getattr(kind, "takes_builder", False) else {}
    with own_code(f"builder {builder!r}" if built else f"engine {name!r}"):
        found: Engine = kind(bundle, threads=threads, **built)
    return found

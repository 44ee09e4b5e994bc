"""Engines by name, as configuration gives them."""

from __future__ import annotations

import importlib
from typing import Any

from fedgrass.bundle import Bundle
from fedgrass.engines.base import Engine
from fedgrass.errors import EngineError


def open_engine(name: str, bundle: Bundle, *, threads: int = 1) -> Engine:
    """Make an engine that holds the bundle's model and parameters.

    Parameters
    ----------
    name
        ``litert``, or ``module:Class`` of something that is made with ``(bundle, threads=…)`` and keeps `Engine`.

    Raises
    ------
    EngineError
        If there is no such engine, or it cannot run the model.
    BundleError
        If the bundle is damaged.
    """
    if name == "litert":
        from fedgrass.engines.litert import LiteRTEngine

        return LiteRTEngine(bundle, threads=threads)
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise EngineError(f"engine {name!r}: expected litert, or module:Class")
    try:
        factory: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {name!r}: cannot be imported ({error})") from error
    engine: Engine = factory(bundle, threads=threads)
    return engine

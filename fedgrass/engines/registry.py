"""Engines by name, as configuration gives them."""

from __future__ import annotations

import importlib
from typing import Any

from fedgrass.bundle import GRAPH, Bundle
from fedgrass.engines.base import Engine
from fedgrass.engines.builders import named
from fedgrass.errors import EngineError

_BUILT = {"keras": "KerasEngine", "torch": "TorchEngine", "sklearn": "SklearnEngine", "flower": "FlowerEngine"}
"""Engines whose model is built by a function of the user's own; each is imported only when it is named."""


def open_engine(name: str, bundle: Bundle, *, threads: int = 1, builder: str = "") -> Engine:
    """Make an engine that holds the bundle's model and parameters.

    Parameters
    ----------
    name
        ``litert``, ``keras``, ``torch``, ``sklearn``, ``flower``, or ``module:Class`` of something that is made with
        ``(bundle, threads=…)`` and keeps `Engine`.
    builder
        ``module:function`` that builds the model, for the four in the middle.

    Raises
    ------
    EngineError
        If there is no such engine, its package is not installed, or it cannot run the model.
    BundleError
        If the bundle is damaged.
    """
    if name == "litert":
        if bundle.manifest.graph_file != GRAPH:
            raise EngineError(
                f"engine litert: model {bundle.manifest.name!r} has no LiteRT graph; set 'engine' and 'builder' in the "
                "configuration of com.fedgrass.Runtime to those it was made for"
            )
        from fedgrass.engines.litert import LiteRTEngine

        return LiteRTEngine(bundle, threads=threads)
    if name in _BUILT:
        kind: Any = getattr(importlib.import_module(f"fedgrass.engines.{name}"), _BUILT[name])
        built: Engine = kind(bundle, threads=threads, builder=builder)
        return built
    if ":" not in name:
        raise EngineError(f"engine {name!r}: expected litert, {', '.join(_BUILT)}, or module:Class")
    engine: Engine = named(name, setting="engine")(bundle, threads=threads)
    return engine

"""Parts that settings may name where their packages are not installed: listed everywhere, imported only where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedgrass.registry import Registry

ENGINES: Registry[Callable[..., Any]] = Registry(
    kind="engine",
    package="fedgrass.engines",
    group="fedgrass.engines",
    valid=callable,
    expected="class of an engine",
    also="module:Class",
)
"""See `fedgrass.engines.registry.open_engine`."""

ATTACKS: Registry[Any] = Registry(
    kind="attack",
    package="fedgrass.simulation.attacks",
    group="fedgrass.attacks",
    valid=lambda part: all(hasattr(part, name) for name in ("craft", "factor", "omniscient")),
    expected="fedgrass.simulation.attacks.Kind",
    also="module:function",
)
"""See `fedgrass.simulation.attacks.attack_named`."""

CODECS: Registry[Any] = Registry(
    kind="codec",
    package="fedgrass.update.codecs",
    group="fedgrass.codecs",
    valid=lambda part: all(hasattr(part, name) for name in ("lossless", "layout", "encode", "decoder", "whole")),
    expected="codec as fedgrass.update.codecs.Codec says",
)
"""How scalars are stored; see `fedgrass.update.registry.codec_named`, which puts top-k and Zstandard around them."""

LOADERS: Registry[Callable[..., Any]] = Registry(
    kind="loader",
    package="fedgrass.data.loaders",
    group="fedgrass.loaders",
    valid=callable,
    expected="function",
    also="module:function",
)
"""See `fedgrass.data.loaders.open_source`."""

GRADIENTS: Registry[Any] = Registry(
    kind="gradient",
    package="fedgrass.authoring",
    group="fedgrass.gradients",
    valid=lambda part: isinstance(getattr(part, "operator", None), str) and callable(getattr(part, "function", None)),
    expected="fedgrass.authoring.gradients.OperatorGradient",
)
"""Gradients of operators for models that are exported; see `fedgrass.authoring.gradients.overridden`."""

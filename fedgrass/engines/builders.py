"""The user's own models and clients, named as ``module:object``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedgrass.bundle import Manifest
from fedgrass.errors import BundleError, EngineError
from fedgrass.own_code import own_code

T = TypeVar("T")


def named(reference: str, *, setting: str) -> Any:
    """Import an object.

    Raises
    ------
    EngineError
        If there is no such object; the message names the ``setting`` it came from.
    """
    module_name, colon, object_name = reference.partition(":")
    if not colon:
        raise EngineError(f"{setting} {reference!r}: expected module:object")
    # Importing runs the user's module, which may raise anything.
    with own_code(f"{setting} {reference!r}"):
        try:
            return getattr(importlib.import_module(module_name), object_name)
        except (ImportError, AttributeError) as error:
            raise EngineError(f"{setting} {reference!r}: cannot be imported ({error})") from error


def require_builder(engine: str, builder: object) -> None:
    """Raise `EngineError` if no builder is named."""
    if builder == "":
        raise EngineError(
            f"engine {engine}: 'builder' is not set; name the function that builds the model as module:function "
            "in the configuration of com.fedgrass.Runtime"
        )


def builder_of(engine: str, builder: str | Callable[[], Any]) -> Callable[[], Any]:
    """Return the function that builds an engine's model; raises `EngineError` if none is named, or it is not a function."""
    require_builder(engine, builder)
    function = named(builder, setting="builder") if isinstance(builder, str) else builder
    if not callable(function):
        raise EngineError(f"builder {builder!r}: is not a function")
    return function


def the_manifests(known: Mapping[str, T], manifest: Manifest, builder: object) -> dict[str, T]:
    """Pick those of a built model's variables that the manifest names, in its order.

    Parameters
    ----------
    known
        The built model's variables by name.
    manifest
        Of the bundle.
    builder
        What built the model, for the error.

    Returns
    -------
    dict
        Variables by name.

    Raises
    ------
    BundleError
        If one is missing.
    """
    missing = [p.name for p in manifest.parameters if p.name not in known]
    if missing:
        raise BundleError(
            f"builder {builder!r}: its model has no {missing[0]!r}, as model {manifest.name!r} has; "
            f"it has {', '.join(sorted(known)[:6])}"
        )
    return {p.name: known[p.name] for p in manifest.parameters}

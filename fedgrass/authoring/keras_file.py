"""A ``.keras`` file as a model, with what of its compilation can be loaded where some part cannot."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from fedgrass.errors import ConfigurationError


def load(path: Path, tell: Callable[[str], None]) -> keras.Model:
    """Load a model.

    A loss, an optimizer or a metric of the user's own cannot be loaded without its code: then the model is compiled with the
    others, so that devices do not train by another optimizer or loss than its own in silence.

    Parameters
    ----------
    path
        The file.
    tell
        Called with a line for each part that is not taken.

    Raises
    ------
    ConfigurationError
        If Keras cannot load its layers.
    """
    with contextlib.suppress(Exception):  # what it was compiled with may be beyond us; its layers may not
        return keras.saving.load_model(path)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise ConfigurationError(
            f"{path}: Keras cannot load it ({said}); a model with custom layers goes into a .py file"
        ) from error
    parts = {name: _part(name, given, tell) for name, given in _compiled(path).items()}
    if parts:
        model.compile(**{"optimizer": "sgd"} | {name: part for name, part in parts.items() if part is not None})
    return model


def _compiled(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("config.json")).get("compile_config") or {}
    except (OSError, KeyError, ValueError, AttributeError, zipfile.BadZipFile):
        return {}
    return {key: found[key] for key in ("optimizer", "loss", "loss_weights") if found.get(key) is not None}


def _part(name: str, given: Any, tell: Callable[[str], None]) -> Any:
    try:
        if name == "optimizer":
            return keras.optimizers.get(given)
        return keras.saving.deserialize_keras_object(given) if isinstance(given, dict) else given
    except Exception:  # noqa: BLE001 - code that is not there fails in many ways
        own = given
        if isinstance(given, dict):
            own = given["config"] if isinstance(given.get("config"), str) else given.get("class_name", name)
        tell(f"{name} {own!r}, which the model was compiled with, cannot be loaded and is not taken")
        return None

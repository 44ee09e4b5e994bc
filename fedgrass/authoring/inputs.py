"""Any Keras model as a functional one with a fixed input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from fedgrass.authoring.errors import UnsupportedModelError, first_line


def functional(model: Any, given: Any = None) -> Any:
    """Return a model that has ``inputs`` and ``outputs``: itself, or the model traced by its call.

    Parameters
    ----------
    given
        Shape of one example, or a mapping with ``shape`` and ``dtype``, for a model that does not say.

    Raises
    ------
    UnsupportedModelError
        If it is no Keras model, its input is not known, or its call cannot be traced.
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            "the model", f"a {type(model).__name__}", "give a keras.Model: Sequential, functional or subclassed"
        )
    if not _symbolic(model):
        model = _traced(model, given)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedModelError(
            model.name,
            f"a model of {len(model.inputs)} inputs and {len(model.outputs)} outputs",
            "give a model with one of each, with several joined by Concatenate",
        )
    return model


def _symbolic(model: Any) -> bool:
    try:
        return bool(model.built and model.inputs and model.outputs)
    except (AttributeError, ValueError):
        return False


def _traced(model: Any, given: Any) -> Any:
    shape, dtype = _spec(model, given)
    x = keras.Input(shape, dtype=dtype, name="x")
    try:
        return keras.Model(x, model(x), name=model.name)
    except Exception as error:
        raise UnsupportedModelError(
            model.name,
            f"a call that cannot be traced for input {list(shape)} of {dtype} ({first_line(error)})",
            'let call(x) return one tensor, made with Keras layers and keras.ops, and give EXPORT["input"] if it is another',
        ) from error


def _spec(model: Any, given: Any) -> tuple[tuple[int, ...], str]:
    if isinstance(given, Mapping) and "shape" in given:
        return tuple(given["shape"]), str(given.get("dtype", "float32"))
    if isinstance(given, (tuple, list)) and all(isinstance(size, int) for size in given):
        return tuple(given), "float32"
    if given is not None:
        raise UnsupportedModelError(
            model.name, f"input {given!r}", 'give a shape such as (28, 28, 1), or {"shape": (20,), "dtype": "int32"}'
        )
    built = getattr(model, "_build_shapes_dict", None) or {}
    shapes = [shape for shape in built.values() if isinstance(shape, (tuple, list))]
    if len(shapes) == 1 and len(shapes[0]) >= 1 and all(isinstance(size, int) for size in shapes[0][1:]):
        whole = any(isinstance(layer, keras.layers.Embedding) for layer in model._flatten_layers())
        return tuple(shapes[0][1:]), "int32" if whole else "float32"
    raise UnsupportedModelError(
        model.name,
        "a model that is not built, whose input is not known,",
        'begin it with keras.Input, or give EXPORT["input"], the shape of one example',
    )

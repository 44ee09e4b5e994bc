"""Any Keras model as a functional one with a fixed input."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from fedgrass.authoring.checks import check_training
from fedgrass.authoring.errors import UnsupportedModelError, first_line


def functional(model: object, given: object = None) -> keras.Model:
    """Return a model that has ``inputs`` and ``outputs``: itself, or the model traced by its call.

    Parameters
    ----------
    given
        Shape of one example, or a mapping with ``shape`` and ``dtype``, for a model that does not say; of several inputs these
        by name, and the model's call takes a dictionary of them.

    Raises
    ------
    UnsupportedModelError
        If it is no Keras model, its input is not known, or its call cannot be traced.
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            "the model", f"a {type(model).__name__}", "give a keras.Model: Sequential, functional or subclassed"
        )
    check_training(model)
    found: keras.Model = model if _symbolic(model) else _traced(model, given)
    # Two names for one tensor would be one output in the graph.
    if len({id(tensor) for tensor in found.outputs}) < len(found.outputs):
        raise UnsupportedModelError(found.name, "one tensor as two outputs", "give it once")
    return found


def names(model: keras.Model) -> tuple[list[str], list[str]]:
    """Return the names of a functional model's inputs and outputs, in the order of ``model.inputs`` and ``model.outputs``.

    They are the keys where the model takes or gives a dictionary, else those of the layers, as in Keras.
    """
    both = (model.inputs, "_inputs_struct"), (model.outputs, "_outputs_struct")
    inputs, outputs = (
        _names(getattr(model, struct, None), [tensor._keras_history.operation.name for tensor in tensors])
        for tensors, struct in both
    )
    return inputs, outputs


def _names(struct: object, layers: list[str]) -> list[str]:
    if isinstance(struct, Mapping) and len(struct) == len(layers):
        # Keras flattens a dictionary in the order of its sorted keys.
        return sorted(map(str, struct))
    # One layer may give several outputs.
    return [name if layers.count(name) == 1 else f"{name}_{at}" for at, name in enumerate(layers)]


def _symbolic(model: keras.Model) -> bool:
    try:
        return bool(model.built and model.inputs and model.outputs)
    except (AttributeError, ValueError):
        return False


def _by_input(given: object) -> Mapping[object, object] | None:
    """Return what is given for each of several inputs; None if it is of one."""
    return given if isinstance(given, Mapping) and "shape" not in given else None


def _traced(model: keras.Model, given: object) -> keras.Model:
    specs = {"x": _spec(model, given)} if (several := _by_input(given)) is None else {}
    specs |= {str(name): _spec(model, spec) for name, spec in (several or {}).items()}
    x = {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in specs.items()}
    shape, dtype = next(iter(specs.values()))
    try:
        taken = x["x"] if several is None else x
        return keras.Model(taken, model(taken), name=model.name)
    except Exception as error:
        raise UnsupportedModelError(
            model.name,
            f"a call that cannot be traced for input {list(shape)} of {dtype} ({first_line(error)})",
            'let call(x) return tensors, made with Keras layers and keras.ops, and give EXPORT["input"] if it is another',
        ) from error


def _spec(model: keras.Model, given: object) -> tuple[tuple[int, ...], str]:
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
        # An Embedding looks up whole numbers; Keras keeps no dtype of what a model was built with.
        whole = any(isinstance(layer, keras.layers.Embedding) for layer in model._flatten_layers())
        return tuple(shapes[0][1:]), "int32" if whole else "float32"
    raise UnsupportedModelError(
        model.name,
        "a model that is not built, whose input is not known,",
        'begin it with keras.Input, or give EXPORT["input"], the shape of one example',
    )

"""What of a Keras model is known, before it is traced, not to train on a device."""

from __future__ import annotations

import keras

from fedgrass.authoring.errors import UnsupportedModelError

_LOOKUPS = (
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def check_training(model: keras.Model) -> None:
    """Refuse a model that trains in a way of its own: devices take its layers, and its loss and optimizer as they are named.

    Parameters
    ----------
    model
        As it was given: another one that is traced from it has Keras' own way.

    Raises
    ------
    UnsupportedModelError
        With the method's name.
    """
    for method in ("train_step", "compute_loss", "make_train_function"):
        if getattr(type(model), method, None) is not getattr(keras.Model, method) or method in vars(model):
            raise UnsupportedModelError(
                f"model {model.name!r} ({type(model).__name__})",
                f"a {method} of its own",
                "build a keras.Model of its layers without it, put what it adds to the loss into add_loss of a layer, and give a "
                "loss of docs/models.md",
            )


def check(model: keras.Model) -> None:
    """Refuse a model by the layer, input or output that no device can train.

    Parameters
    ----------
    model
        Built.

    Raises
    ------
    UnsupportedModelError
        With the place, and what to do instead.
    """
    for tensor in model.inputs:
        if tensor.dtype == "string":
            raise UnsupportedModelError(
                f"input {tensor.name!r}",
                "text",
                'take numbers of words, keras.Input((length,), dtype="int32"), and have the data hold them',
            )
    for layer in model._flatten_layers():
        _check_layer(layer)
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise UnsupportedModelError(
                model.name, f"input shape {tensor.shape}", "fix every axis but the first in keras.Input"
            )
    for tensor in model.outputs:
        if None in tensor.shape[1:]:
            raise UnsupportedModelError(
                model.name, f"output shape {tensor.shape}", "give an output whose axes but the first are fixed"
            )
    if not model.trainable_variables:
        raise UnsupportedModelError(model.name, "a model without trainable variables", "unfreeze a layer")


def _check_layer(layer: keras.Layer) -> None:
    place = f"layer {layer.name!r} ({type(layer).__name__})"
    if getattr(layer, "quantization_mode", None) is not None:
        raise UnsupportedModelError(
            place, f"weights quantized as {layer.quantization_mode}", "export it before it is quantized"
        )
    if isinstance(layer, _LOOKUPS):
        raise UnsupportedModelError(
            place,
            "looking numbers or text up",
            "let the data hold the numbers that it gives, and begin the model with the layer after it",
        )
    # LiteRT trains in float32.
    if layer.compute_dtype in ("float16", "bfloat16", "float64") or layer.variable_dtype != "float32":
        raise UnsupportedModelError(
            place,
            f"dtype policy {layer.dtype_policy.name}",
            'call keras.config.set_dtype_policy("float32") before the model is built, and load its weights',
        )
    if isinstance(layer, keras.layers.RandomCrop):
        raise UnsupportedModelError(
            place,
            "cropping in training alone, which leaves whole images to inference,",
            "use RandomTranslation and then CenterCrop, or crop in the data loader",
        )
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        raise UnsupportedModelError(place, "a state kept from batch to batch", "build it with stateful=False")

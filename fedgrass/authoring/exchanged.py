"""Functions of Keras' backend exchanged, while a model is traced, for ones that train on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import image as backend_image
from keras.src.backend.tensorflow import nn as backend_nn
from keras.src.backend.tensorflow import numpy as backend_numpy
from keras.src.utils import tf_utils

from fedgrass.authoring import activations, categories, convolution, spatial
from fedgrass.authoring.einsum import einsum
from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.patching import patched
from fedgrass.authoring.rolling import roll
from fedgrass.authoring.windows import Pair

Tensor: TypeAlias = tf.Tensor
Sizes: TypeAlias = "int | Sequence[int]"

# Taken when this module is imported, before anything is pointed elsewhere: the way back to Keras' own.
_backend: dict[str, Callable[..., Tensor]] = {
    name: getattr(backend_nn, name) for name in ("conv", "depthwise_conv", "separable_conv", "conv_transpose")
}
_tf_resize = tf.image.resize


_ANYWHERE: tuple[tuple[ModuleType, str, Callable[..., Tensor]], ...] = (
    (tf, "einsum", einsum),
    (tf, "roll", roll),
    (backend_numpy, "digitize", categories.digitize),
    (tf_utils, "tf_encode_categorical_inputs", categories.not_counted),
)
"""What LiteRT lacks, trained or not."""


@contextmanager
def for_training() -> Iterator[None]:
    """Trace a model inside this to get operators that train."""
    with _pointed(
        (backend_nn, "conv", _conv),
        (backend_nn, "depthwise_conv", _depthwise_conv),
        (backend_nn, "separable_conv", _separable_conv),
        (backend_nn, "conv_transpose", _conv_transpose),
        (tf.image, "resize", _resize),
        (backend_image, "affine_transform", spatial.affine_transform),
    ):
        yield


@contextmanager
def for_inference() -> Iterator[None]:
    """Trace a model inside this to get operators that LiteRT has, for weights that do not change."""
    with _pointed((backend_nn, "conv", _without_xla), (tf.image, "resize", _resize_of_inference)):
        yield


@contextmanager
def _pointed(*pointers: tuple[ModuleType, str, Callable[..., Tensor]]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(activations.exchanged())
        for owner, name, function in (*_ANYWHERE, *pointers):
            stack.enter_context(patched(owner, name, function))
        yield


def _conv(
    inputs: Tensor,
    kernel: Tensor,
    strides: Sizes = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Sizes = 1,
) -> Tensor:
    rank = inputs.shape.rank - 2
    # Keras does not say how many groups there are: it follows from the channels of both.
    grouped = inputs.shape[-1] != kernel.shape[-2]
    if data_format == "channels_first" or rank > 2 or (not grouped and _ones(dilation_rate)):
        return _backend["conv"](inputs, kernel, strides, padding, data_format, dilation_rate)
    kernel = tf.convert_to_tensor(kernel)
    if grouped:
        return spatial.grouped_convolution(
            inputs,
            kernel,
            lambda x, part: _conv(x, part, strides, padding, data_format, dilation_rate),
        )
    if not _ones(strides):
        # TensorFlow itself refuses both at once.
        raise UnsupportedModelError("the model", "a convolution with strides and dilation", "use one of them only")
    x, kernel = _images(inputs, kernel)
    # Without a bound: LiteRT's own dilated convolution has no gradient.
    y = convolution.convolution(x, kernel, (1, 1), padding.upper(), _pair(dilation_rate, rank), bounded=False)
    return _as(inputs, y)


def _without_xla(
    inputs: Tensor,
    kernel: Tensor,
    strides: Sizes = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Sizes = 1,
) -> Tensor:
    # Without groups Keras' own path is right; with them it calls XLA, which LiteRT cannot run.
    if data_format == "channels_first" or inputs.shape[-1] == kernel.shape[-2]:
        return _backend["conv"](inputs, kernel, strides, padding, data_format, dilation_rate)
    kernel = tf.convert_to_tensor(kernel)
    return spatial.grouped_convolution(
        inputs, kernel, lambda x, part: tf.nn.convolution(x, part, strides, padding.upper(), dilations=dilation_rate)
    )


def _depthwise_conv(
    inputs: Tensor,
    kernel: Tensor,
    strides: Sizes = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Sizes = 1,
) -> Tensor:
    if data_format == "channels_first" or _ones(dilation_rate):
        return _backend["depthwise_conv"](inputs, kernel, strides, padding, data_format, dilation_rate)
    if not _ones(strides):
        raise UnsupportedModelError("the model", "a convolution with strides and dilation", "use one of them only")
    # One-dimensional convolutions are two-dimensional ones with a single row: one path is enough to keep right.
    x, kernel = _images(inputs, tf.convert_to_tensor(kernel))
    dilations = _pair(dilation_rate, inputs.shape.rank - 2)
    return _as(inputs, spatial.dilated_depthwise_convolution(x, kernel, dilations, padding.upper()))


def _separable_conv(
    inputs: Tensor,
    depthwise_kernel: Tensor,
    pointwise_kernel: Tensor,
    strides: Sizes = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Sizes = 1,
) -> Tensor:
    if data_format == "channels_first" or _ones(dilation_rate):
        return _backend["separable_conv"](
            inputs, depthwise_kernel, pointwise_kernel, strides, padding, data_format, dilation_rate
        )
    y = _depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return _backend["conv"](y, pointwise_kernel, 1, "valid", data_format, 1)


def _conv_transpose(
    inputs: Tensor,
    kernel: Tensor,
    strides: Sizes = 1,
    padding: str = "valid",
    output_padding: Sizes | None = None,
    data_format: str | None = None,
    dilation_rate: Sizes = 1,
) -> Tensor:
    rank = inputs.shape.rank - 2
    if data_format == "channels_first" or rank > 2 or not _ones(dilation_rate):
        raise UnsupportedModelError(
            "the model",
            "a transposed convolution with dilation, channels first or in three dimensions",
            "use Conv1DTranspose or Conv2DTranspose with dilation_rate=1 and channels last",
        )
    kernel = tf.convert_to_tensor(kernel)
    shape = backend_nn.compute_conv_transpose_output_shape(
        list(inputs.shape),
        kernel.shape[:-2],
        kernel.shape[-2],
        strides,
        padding,
        output_padding,
        "channels_last",
        dilation_rate,
    )
    x, kernel = _images(inputs, kernel)
    output = (1, *shape[1:-1])[-2:]
    found = spatial.transposed_convolution(
        x,
        kernel,
        [int(size) for size in output],
        _pair(strides, rank),
        padding.upper(),
        lambda x, k: tf.nn.convolution(x, k, [1, 1], "VALID", data_format="NHWC", dilations=[1, 1]),
    )
    return _as(inputs, found)


def _resize(images: Tensor, size: Sequence[int | Tensor], method: str = "bilinear", **options: bool) -> Tensor:
    # The matrices need the sizes now; where one is open, TensorFlow's operator has to do.
    if images.shape.rank != 4 or None in images.shape or options.get("preserve_aspect_ratio"):
        return _tf_resize(images, size, method=method, **options)
    # Keras gives the size as tensors; where it follows from the batch, only TensorFlow itself can resize.
    known = [tf.get_static_value(value) for value in size]
    if None in known:
        return _tf_resize(images, size, method=method, **options)
    resized = spatial.resize(_tf_resize, images, known, method=method, antialias=options.get("antialias", False))
    return tf.cast(resized, images.dtype) if method == "nearest" else resized


def _resize_of_inference(
    images: Tensor, size: Sequence[int | Tensor], method: str = "bilinear", **options: bool
) -> Tensor:
    # LiteRT has these two as operators.
    known = method in ("bilinear", "nearest") and not options.get("antialias")
    return (_tf_resize if known else _resize)(images, size, method=method, **options)


def _images(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Give what has one dimension two."""
    return (tf.expand_dims(x, 1), tf.expand_dims(kernel, 0)) if x.shape.rank == 3 else (x, kernel)


def _as(inputs: Tensor, found: Tensor) -> Tensor:
    return tf.squeeze(found, [1]) if inputs.shape.rank == 3 else found


def _pair(values: Sizes, rank: int) -> Pair:
    first, second = (1, *(int(value) for value in np.broadcast_to(values, rank)))[-2:]
    return first, second


def _ones(values: Sizes | None) -> bool:
    sizes: Sequence[int] = np.atleast_1d(1 if values is None else values).tolist()
    return set(sizes) == {1}

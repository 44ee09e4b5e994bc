"""What random layers draw, as a function of the step, the layer and the place, so that a resumed training draws the same.

Keras' layers (Dropout, noise, augmentation) all draw through a few functions of its backend, which are pointed here while
a model is traced; called without a trace, with the same step, they give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import random as backend_random

from fedgrass.authoring.errors import UnsupportedModelError
from fedgrass.authoring.patching import patched

Tensor: TypeAlias = tf.Tensor
Shape: TypeAlias = "Sequence[int | Tensor | None] | Tensor"

_MULTIPLIERS = (0x2C1B3C6D, 0x297A2D39, 0x7FEB352D)


def is_random(layer: Any) -> bool:
    """Whether a layer draws in training: not one of Keras' own that only could, such as an LSTM's cell without dropout."""
    if type(layer).__module__.startswith("keras.") and (
        rates := [r for r in map(vars(layer).get, _RATES) if r is not None]
    ):
        return any(rates)
    # Attention without dropout holds such a layer with a rate of 0.
    if isinstance(layer, keras.layers.Dropout):
        return bool(layer.rate > 0)
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())


_RATES = ("dropout", "recurrent_dropout", "_dropout")
"""Attributes of recurrent layers, their cells and attention: what share they drop, 0 for none."""


@contextmanager
def drawn(step: Tensor | None) -> Iterator[Draws]:
    """Let Keras' layers draw from this step, int32; none: outside training, where the few that draw all the same get one draw."""
    draws = Draws(tf.constant(0) if step is None else step)
    with ExitStack() as stack:
        for name in ("dropout", "uniform", "normal", "randint"):
            stack.enter_context(patched(backend_random, name, getattr(draws, name)))
        # Others would draw from a state of Keras', which no device has.
        for name in ("categorical", "truncated_normal", "shuffle", "gamma", "binomial", "beta"):
            stack.enter_context(patched(backend_random, name, _refused(name)))
        yield draws


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnsupportedModelError(
            "the model", f"drawing random numbers by {name}", "draw by uniform, normal or randint"
        )

    return refuse


class Draws:
    """Random numbers of one step.

    A hash in 32-bit integers: a multiplication spreads the low bits up, a shift and xor the high bits down, three times.
    """

    def __init__(self, step: Tensor) -> None:
        # With an axis, as loops take it along.
        self._step = tf.reshape(step, [1])
        self._turn: Tensor | None = None
        self.count = 0

    def turns(self) -> Callable[[Tensor], AbstractContextManager[None]]:
        """Draw alike whenever a chunk of a recurrence is traced, and otherwise in each chunk (number [1]) that runs."""
        first = self.count

        @contextmanager
        def turn(number: Tensor) -> Iterator[None]:
            # Counted from the same number again: the backward loop runs a chunk a second time, and must draw what it
            # drew.
            self.count, self._turn = first, number
            try:
                yield
            finally:
                self._turn = None

        return turn

    def dropout(self, x: Tensor, rate: float, noise_shape: Shape | None = None, seed: object = None) -> Tensor:  # noqa: ARG002 - Keras gives it
        """Set a share of x to zero and scale the rest up.

        Parameters
        ----------
        x
            [B, …].
        rate
            Share that is set to zero, 0 to 1.
        noise_shape
            Shape of what is drawn, with None or 1 where one draw counts for a whole axis.
        seed
            Not used: the step's number is the seed.
        """
        if rate == 0.0:
            return x
        if rate == 1.0:
            return tf.zeros_like(x)
        # Scaled up by what is kept, so that the expected value stays (inverted dropout).
        kept = tf.cast(self._unit(_dropped_shape(x, noise_shape), shaped=False) >= rate, tf.float32) / (1.0 - rate)
        return x * tf.reshape(kept, _dropped_shape(x, noise_shape))

    def uniform(
        self,
        shape: Shape,
        minval: float | Tensor = 0.0,
        maxval: float | Tensor = 1.0,
        dtype: tf.DType | str | None = None,
        seed: object = None,  # noqa: ARG002 - Keras gives it
    ) -> Tensor:
        """Draw from minval up to maxval.

        Parameters
        ----------
        shape
            Of the result; known in the graph.
        minval, maxval
            Bounds; the upper one comes out by rounding only.
        dtype
            Of the result.
        seed
            Not used.
        """
        return tf.cast(minval + (maxval - minval) * self._unit(_static(shape)), dtype or tf.float32)

    def normal(
        self,
        shape: Shape,
        mean: float | Tensor = 0.0,
        stddev: float | Tensor = 1.0,
        dtype: tf.DType | str | None = None,
        seed: object = None,  # noqa: ARG002 - Keras gives it
    ) -> Tensor:
        """Draw from a normal distribution (Box and Muller 1958).

        Parameters
        ----------
        shape
            Of the result; known in the graph.
        mean, stddev
            Of the distribution.
        dtype
            Of the result.
        seed
            Not used.
        """
        size = _static(shape)
        # The logarithm of 0 is no number; 1e-9 is beyond what 32 bits draw of the tail anyway.
        radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(1.0 - self._unit(size), 1e-9)))
        return tf.cast(mean + stddev * radius * tf.cos(2.0 * math.pi * self._unit(size)), dtype or tf.float32)

    def randint(
        self,
        shape: Shape,
        minval: float | Tensor,
        maxval: float | Tensor,
        dtype: tf.DType | str = "int32",
        seed: object = None,  # noqa: ARG002 - Keras gives it
    ) -> Tensor:
        """Draw whole numbers from minval up to and without maxval.

        Parameters
        ----------
        shape
            Of the result; known in the graph.
        minval, maxval
            Bounds; the upper one is never reached.
        dtype
            Of the result.
        seed
            Not used.
        """
        span = tf.cast(maxval - minval, tf.float32)
        return tf.cast(tf.minimum(tf.floor(self._unit(_static(shape)) * span), span - 1.0), dtype) + minval

    def _unit(self, shape: Sequence[int], *, shaped: bool = True) -> Tensor:
        self.count += 1
        count = math.prod(shape)
        # Each draw of a step gets a number of its own, or two layers would drop the same places.
        salt = np.uint32(self.count * 0x9E3779B1 & 0x7FFFFFFF).astype(np.int32)
        # By place, not by a state that moves on: a training that resumes in the middle draws what it would have drawn.
        hashed = tf.range(count, dtype=tf.int32) + self._step * 0x3C6EF372 + salt
        if self._turn is not None:
            hashed += self._turn * 0x2545F491
        for multiplier in _MULTIPLIERS:
            hashed = tf.bitwise.bitwise_xor(hashed, tf.bitwise.right_shift(hashed, 15)) * multiplier
        # float32 rounds the 64 largest integers up, so 1.0 comes out once in some 67 million draws.
        uniform = tf.cast(hashed, tf.float32) * 2.0**-32 + 0.5
        return tf.reshape(uniform, shape) if shaped else uniform


def _dropped_shape(x: Tensor, noise_shape: Shape) -> list[int]:
    if noise_shape is not None and not isinstance(noise_shape, (list, tuple)):
        return _static(noise_shape)
    found = []
    for size, wanted in zip(x.shape, noise_shape or x.shape, strict=True):
        known = size if wanted is None else tf.get_static_value(wanted)
        found.append(size if known is None else int(known))
    return found


def _static(shape: Shape) -> list[int]:
    """Return a shape as numbers: in the graph every one is known."""
    found = [tf.get_static_value(size) for size in shape] if isinstance(shape, (list, tuple)) else shape
    known = tf.get_static_value(found) if isinstance(found, tf.Tensor) else found
    sizes = [] if known is None else [size for size in known if size is not None]
    if known is None or len(sizes) < len(known):
        raise UnsupportedModelError(
            "the model", f"drawing random numbers of the shape {shape}", "take the shape from keras.ops.shape(x)"
        )
    return [int(size) for size in sizes]

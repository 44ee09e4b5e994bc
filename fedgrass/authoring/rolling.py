"""A tensor rolled along its axes, as slices that change places: LiteRT lacks ROLL."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import tensorflow as tf

Tensor: TypeAlias = tf.Tensor


def roll(input: Tensor, shift: int | list[int], axis: int | list[int], name: str | None = None) -> Tensor:  # noqa: A002, ARG001 - TensorFlow's
    """Stand for ``tf.roll``; a shift may be larger than its axis, or negative."""
    for step, along in zip(np.atleast_1d(shift), np.atleast_1d(axis), strict=True):
        place = int(along) % input.shape.rank
        split = int(-step) % input.shape[place]
        if split:
            head, tail = tf.split(input, [split, input.shape[place] - split], place)
            input = tf.concat([tail, head], place)  # noqa: A001
    return input

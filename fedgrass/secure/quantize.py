"""From floats to integers modulo two to the 16 or 32, and from their sum back to the mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.errors import AggregationError, DivergedError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.masks import PIECE, Masked, dtype_of, pieces, span
from fedgrass.update.codecs import Floats

Blocks = Callable[[], Iterator[Floats]]
"""The values in order, in pieces of any length; may be asked for more than once."""

_Signed = NDArray[np.signedinteger[Any]]

# Values from which on a sum of them is told from a mask.
_LEAST_TO_TELL = 512
# Roundings at random that may exceed the norm before one that cannot.
_TRIES = 4


def quantized(
    blocks: Blocks, size: int, examples: int, task: SecureTask, *, seed: int, clip_norm: float = 0.0
) -> Masked:
    """Return a difference's values, and the example count behind them, as integers modulo two to ``task.bits``.

    A value is cut off at ``task.value_range``, weighed by the examples, and rounded to one of the two integers next to it
    at random, so that the sum of many is right in the mean (stochastic rounding).

    Parameters
    ----------
    blocks
        The float32 values.
    size
        How many they are.
    examples
        The device's number of examples; what exceeds ``task.max_examples`` does not count.
    seed
        Of the rounding: the same one gives the same integers. It need not be secret.
    clip_norm
        If positive, the bound on the L2 norm of what the integers stand for, rounding included.

    Returns
    -------
    Masked
        Unsigned integers [size + count coordinates].

    Raises
    ------
    DivergedError
        If a value is not finite.
    """
    found = np.empty(size + task.count_coordinates, dtype_of(task.bits))
    # Where all count alike, an exact number would tell of the data for nothing.
    counted = 1 if task.equal else min(examples, task.max_examples)
    unit = task.levels / task.value_range
    # All of it in one factor: steps per unit, the clipping, and the device's share of examples.
    scale = unit * _norm_factor(blocks, clip_norm) * (1.0 if task.equal else counted / task.max_examples)
    # Rounding may lengthen an update, and privacy is counted by what the integers stand for.
    most = (clip_norm * unit) ** 2 if clip_norm > 0 else math.inf
    for attempt in range(_TRIES + 1):
        # The last rounds towards zero, which lengthens nothing.
        rounding = np.random.default_rng([seed, attempt]) if attempt < _TRIES else None
        if _fill(found, blocks(), scale, task, rounding) <= most:
            break
    for index in range(task.count_coordinates):
        found[size + index] = (counted >> (index * task.count_bits)) & ((1 << task.count_bits) - 1)
    return found


def _fill(
    found: Masked, blocks: Iterator[Floats], scale: float, task: SecureTask, rounding: np.random.Generator | None
) -> int:
    """Write the integers of all values; returns the sum of their squares."""
    position, squares = 0, 0
    limit = task.value_range
    for block in blocks:
        for start in range(0, len(block), PIECE):
            part = block[start : start + PIECE].astype(np.float64)
            if not np.isfinite(part).all():
                raise DivergedError("the trained parameters are not finite. Lower the learning rate")
            np.clip(part, -limit, limit, out=part)
            part *= scale
            if rounding is None:
                np.trunc(part, out=part)
            else:
                # floor(x + u) is the integer above with the probability of x's fraction, so the mean is x.
                part += rounding.random(len(part))
                np.floor(part, out=part)
            # Rounding upwards could pass the largest level by one, and wrap the sum around.
            whole = np.clip(part, -task.levels, task.levels).astype(np.int64)
            squares += _squares(whole)
            # Negative integers become their two's complement, which adds up right modulo 2^bits.
            found[position : position + len(whole)] = whole.astype(found.dtype)
            position += len(whole)
    return squares


def _squares(whole: NDArray[np.int64]) -> int:
    # Of 32 bits the squares fill 62 bits already.
    high, low = whole >> 16, whole & 0xFFFF
    return (int((high * high).sum()) << 32) + (int((high * low).sum()) << 17) + int((low * low).sum())


def _norm_factor(blocks: Blocks, clip_norm: float) -> float:
    if clip_norm <= 0:
        return 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.sqrt(sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks()))
    if not math.isfinite(norm):
        raise DivergedError("the trained parameters are not finite. Lower the learning rate")
    return clip_norm / norm if norm > clip_norm else 1.0


def examples_in(total: Masked, task: SecureTask) -> int:
    """Return the number of examples in a sum of vectors without masks."""
    parts = total[len(total) - task.count_coordinates :]
    return sum(int(part) << (index * task.count_bits) for index, part in enumerate(parts))


def doubt(total: Masked, devices: int, task: SecureTask) -> str:
    """Say why the number of examples in a sum is not to be believed; empty if nothing speaks against it.

    Parameters
    ----------
    total, devices, task
        As of `mean_of`.
    """
    examples = examples_in(total, task)
    most = devices if task.equal else devices * task.max_examples
    # Each device counts at least once, and at most `max_examples` times.
    if not devices <= examples <= most:
        return f"the sum of {devices} updates claims {examples} examples, expected {devices} to {most}"
    if not _is_possible(_signed(total, task), devices, _weight(examples, devices, task), task):
        return (
            f"the sum of {devices} updates has a mean beyond value_range {task.value_range:g}, by the examples that it claims "
            f"({examples})"
        )
    return ""


def mean_of(total: Masked, devices: int, task: SecureTask) -> Floats:
    """Return the mean difference that a sum of vectors stands for, weighed as the task says.

    One device can make the number of examples anything. So where it cannot be right, the sum is divided by the most that so many
    devices can count: the step is shorter than it should be and never longer, which is no more than the device could do by a
    number that might be right. Not so for one of several groups, which can be left out; nor where the values look like what a
    mask leaves that was not taken off, since the number is what tells that otherwise.

    Parameters
    ----------
    total
        The sum, without masks: the values, and behind them the coordinates of the example count.
    devices
        How many vectors it is the sum of.
    task
        How values became integers.

    Returns
    -------
    Floats
        The mean, float32 [n], without the coordinates that count examples.

    Raises
    ------
    AggregationError
        If so many devices that keep to the task cannot have such a sum.
    """
    signed, why = _signed(total, task), doubt(total, devices, task)
    weight = float(devices) if why else _weight(examples_in(total, task), devices, task)
    if why and (
        task.groups > 1 or not _is_no_mask(signed, len(total)) or not _is_possible(signed, devices, weight, task)
    ):
        raise AggregationError(
            f"{why}: a device's update or a helper's sum is not what it should be; nothing was made of it"
        )
    mean = np.empty(len(signed), np.float32)
    for start in range(0, len(signed), PIECE):
        mean[start : start + PIECE] = signed[start : start + PIECE] * (task.value_range / task.levels / weight)
    return mean


def _weight(examples: int, devices: int, task: SecureTask) -> float:
    return float(devices) if task.equal else examples / task.max_examples


def _signed(total: Masked, task: SecureTask) -> _Signed:
    # The upper half of the modulus stands for negative sums.
    return total[: len(total) - task.count_coordinates].view(f"<i{total.dtype.itemsize}")


def _is_possible(signed: _Signed, devices: int, weight: float, task: SecureTask) -> bool:
    """Whether a sum's values are within what devices send that count so much together."""
    # Rounding adds less than a step for each device. Noise of the helpers may add anything.
    most = math.floor(task.levels * weight) + devices
    return task.noise != 0 or not len(signed) or -most <= int(signed.min()) <= int(signed.max()) <= most


def _is_no_mask(signed: _Signed, length: int) -> bool:
    """Whether no piece of a sum of so many coordinates, counts included, can be a mask that was not taken off.

    Such values are uniform, and half of them lie in the outer halves of the range, give or take.
    """
    outer = 1 << (8 * signed.dtype.itemsize - 2)

    def tells(part: _Signed) -> bool:
        # By Hoeffding, a quarter or less of 512 do with a probability below exp(-64).
        return len(part) >= _LEAST_TO_TELL and 4 * np.count_nonzero((part < -outer) | (part >= outer)) <= len(part)

    # Helpers sum piece by piece; the last one has the counts, and few values beside them would tell nothing of it.
    return all(tells(signed[span(index, length)]) for index in pieces(length))

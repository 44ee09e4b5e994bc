"""Discrete Gaussian noise that nobody can guess and that its owner can repeat, drawn with integers alone.

The algorithms are those of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
https://arxiv.org/abs/2004.00010, for many scalars at a time. No floating-point number decides anything: each draw compares
uniform integers, so the probabilities are the formula's, and the attacks on the last bits of floating-point noise (Mironov, CCS
2012) have nothing to read. docs/decisions/0053 says why no library draws it.

`discrete_gaussian` is for whoever works in integers, as the masks of secure aggregation are. `Grid` is for floats: it says how
far apart the numbers lie that a noised value can have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgrass.errors import ConfigurationError

SEED_BYTES = 32

MOST_DEVIATION = 1 << 26
"""Largest standard deviation, in steps: squares of what is drawn then fit into 64 bits."""

BLOCK = 1 << 16
"""Integers in a block of noise."""

_PIECE = 1 << 20
"""Values that are in double precision at once."""

_FAR = 31
"""Multiples of the deviation from which on nothing is proposed: one in 2**640 draws would be accepted there."""

Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]


def discrete_gaussian(seed: bytes, size: int, deviation: int) -> Iterator[Integers]:
    """Yield ``size`` integers in blocks, x with probability proportional to exp(-x² / 2·deviation²).

    The same seed gives the same integers, on every processor: the bits are SHAKE-256 of the seed and the block's number (FIPS
    202), so whoever sees some of the noise cannot work out the rest. One such draw on an integer that one participant changes
    by s steps at most is (s/deviation)²/2-zCDP, as continuous noise is (theorem 4 of the paper, and 14 for vectors). A sum of
    such draws is no discrete Gaussian, but from a deviation of 4 on none can be told from it (Kairouz et al., ICML 2021,
    https://arxiv.org/abs/2102.06387).

    Parameters
    ----------
    seed
        `SEED_BYTES` from ``secrets.token_bytes``, which asks the operating system; never the same for two vectors.
    size
        How many integers.
    deviation
        The parameter σ, from 1 to `MOST_DEVIATION`. From 2 on it is the standard deviation to 16 digits.

    Raises
    ------
    ConfigurationError
        If the deviation is out of range.

    Examples
    --------
    >>> import secrets
    >>> values = np.zeros(1000, np.int64)
    >>> blocks = discrete_gaussian(secrets.token_bytes(SEED_BYTES), len(values), 4096)
    >>> values += np.concatenate(list(blocks))
    >>> bool(np.abs(values).max() < 8 * 4096)
    True
    """
    if not 1 <= deviation <= MOST_DEVIATION:
        raise ConfigurationError(
            f"noise: a deviation of {deviation} steps; from 1 to {MOST_DEVIATION} can be drawn. Choose a coarser or finer step"
        )
    for index, start in enumerate(range(0, size, BLOCK)):
        yield noise_block(seed, index, min(BLOCK, size - start), deviation)


def noise_block(seed: bytes, index: int, count: int, deviation: int) -> Integers:
    """Return the beginning of one of the blocks of `discrete_gaussian`, whatever came before it.

    Parameters
    ----------
    seed
        What the whole noise follows from.
    index
        Number of the block, from 0.
    count
        Integers to return: `BLOCK`, but in the last block.
    deviation
        Of the noise, a whole number.

    Returns
    -------
    Integers
        The noise, int64.
    """
    # One stream for each block, so that a block can be made by itself, whatever came before.
    bits, found, drawn = _Bits(seed + index.to_bytes(8, "big")), [], 0
    while drawn < count:
        # A little less than half of what is proposed is accepted.
        some = _accepted(bits, (count - drawn) * 9 // 4 + 64, deviation)
        found.append(some)
        drawn += len(some)
    return np.concatenate(found)[:count]


def add_noise(values: NDArray[np.uint16] | NDArray[np.uint32], seed: bytes, deviation: int) -> None:
    """Add noise to integers modulo two to their width, in place, as of `discrete_gaussian`.

    Parameters
    ----------
    values
        Integers of 16 or 32 bits, changed in place.
    seed
        What the noise follows from: the same seed gives the same noise.
    deviation
        Of the noise, a whole number.
    """
    start = 0
    for noise in discrete_gaussian(seed, len(values), deviation):
        part = values[start : start + len(noise)]
        np.add(part, noise.astype(values.dtype), out=part)
        start += len(noise)


@dataclass(frozen=True)
class Grid:
    """The numbers that a value with noise can have: multiples of ``step``, which is a power of two.

    ``deviation`` is the noise's, in steps; as it is rounded up, there is never less noise than was asked for.

    Multiples of it below 2**53 steps are added without rounding in float64, so a sum changes with one summand by that summand
    and nothing else. What is read off afterwards may be rounded as one likes.
    """

    step: float
    deviation: int

    @classmethod
    def of(cls, deviation: float) -> Grid:
        """Return the grid for noise of this standard deviation: 2**24 to 2**25 steps fine.

        Parameters
        ----------
        deviation
            In the values' own unit, above 0.
        """
        # deviation = m · 2^exponent with 0.5 ≤ m < 1, so that deviation / step lies between 2^24 and 2^25.
        _, exponent = math.frexp(deviation)
        step = math.ldexp(1.0, exponent - 25)
        return cls(step, math.ceil(deviation / step))

    def quantized(self, values: NDArray[np.floating], factor: float = 1.0) -> NDArray[np.float64]:
        """Return ``values * factor`` in whole steps, rounded towards zero, so that no norm grows by it.

        Parameters
        ----------
        values
            Floats of any shape.
        factor
            At most 1; to clip, give `shrunk_to`.
        """
        steps: NDArray[np.float64] = values * np.float64(factor / self.step)
        return np.trunc(steps, out=steps)

    def clip_and_noise(self, values: NDArray[np.float32], factor: float, seed: Callable[[], bytes]) -> None:
        """Scale, quantize and add noise to a flat vector in place, a block at a time.

        Parameters
        ----------
        values
            float32 [n].
        factor
            As of `quantized`.
        seed
            Gives the seed of each block.
        """
        for start in range(0, len(values), _PIECE):
            block = values[start : start + _PIECE]
            steps = self.quantized(block, factor)
            self.add_noise(steps, seed())
            np.multiply(steps, self.step, out=block, casting="same_kind")

    def add_noise(self, steps: NDArray[np.float64], seed: bytes, times: int = 1) -> None:
        """Add noise to a flat vector of whole steps, in place, without rounding.

        Parameters
        ----------
        steps
            float64 [n], whole numbers.
        seed
            As of `discrete_gaussian`: whoever knows it can take the noise off again.
        times
            1 adds it, -1 takes it off.
        """
        start = 0
        for noise in discrete_gaussian(seed, len(steps), self.deviation):
            steps[start : start + len(noise)] += times * noise
            start += len(noise)


def shrunk_to(bound: float, norm: float) -> float:
    """Return the factor that brings a vector of this L2 norm to ``bound`` at most, with room for the norm's own last bits.

    Parameters
    ----------
    bound
        The norm that must not be passed.
    norm
        The vector's, added in float64: known to some 12 digits.
    """
    room = 1 - 2.0**-30
    return min(1.0, bound / norm) * room if norm > 0 else 1.0


class _Bits:
    """Uniform 64-bit words: one stream of SHAKE-256 for each request."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._requests = 0

    def words(self, count: int) -> _Words:
        """Return the next ``count`` words."""
        name = self._name + self._requests.to_bytes(8, "big")
        self._requests += 1
        found: _Words = np.frombuffer(hashlib.shake_256(name).digest(8 * count), "<u8").astype(np.uint64)
        return found

    def below(self, bound: int, count: int) -> _Words:
        """Return uniform integers below ``bound``: as many bits as it has, drawn again where they are too large."""
        if bound == 1:
            return np.zeros(count, np.uint64)
        # The upper bits of each word. Taking words modulo the bound would favour small numbers.
        shift = np.uint64(64 - (bound - 1).bit_length())
        found: _Words = self.words(count) >> shift
        while len(again := np.flatnonzero(found >= bound)):
            found[again] = self.words(len(again)) >> shift
        return found


def _accepted(bits: _Bits, proposals: int, deviation: int) -> Integers:
    """Draw discrete Laplace numbers of scale ``deviation``, and keep those that a discrete Gaussian would have (algorithm 3)."""
    sign, size = _laplace(bits, proposals, deviation)
    distance = size.astype(np.int64) - deviation
    squares = np.square(distance).astype(np.uint64)
    # Accept x with probability exp(-(|x| - σ)² / 2σ²): the quotient of the two distributions, up to a constant.
    keep = _bernoulli_exp(bits, squares, 2 * deviation * deviation)
    found = size[keep].astype(np.int64)
    return np.where(sign[keep], -found, found)


def _laplace(bits: _Bits, proposals: int, scale: int) -> tuple[NDArray[np.bool_], _Words]:
    """Return signs and sizes of discrete Laplace numbers, fewer than were proposed (algorithm 2)."""
    # |x| = rest + scale · whole, with whole geometric: exp(-|x| / scale) falls apart into the two.
    rest = bits.below(scale, proposals)
    rest = rest[_bernoulli_exp(bits, rest, scale)]
    whole = np.zeros(len(rest), np.uint64)
    on = np.arange(len(rest))
    while len(on):
        on = on[_bernoulli_exp(bits, np.ones(len(on), np.uint64), 1)]
        whole[on] += np.uint64(1)
        on = on[whole[on] < _FAR]
    size = rest + np.uint64(scale) * whole
    sign = bits.below(2, len(size)) == 1
    keep = ~(sign & (size == 0)) & (whole < _FAR)  # else zero would come up twice as often as it should
    return sign[keep], size[keep]


def _bernoulli_exp(bits: _Bits, numerators: _Words, denominator: int) -> NDArray[np.bool_]:
    """Return True with probability exp(-numerator / denominator) for each (algorithm 1)."""
    whole, rest = np.divmod(numerators, np.uint64(denominator))
    result = np.zeros(len(numerators), np.bool_)
    on = np.arange(len(numerators))
    for done in range(int(whole.max(initial=0))):  # exp(-1) for each whole part
        more = whole[on] > done
        waiting, tried = on[~more], on[more]
        if not len(tried):
            break
        on = np.concatenate([waiting, tried[_below_one(bits, np.ones(len(tried), np.uint64), 1)]])
    result[on] = _below_one(bits, rest[on], denominator)
    return result


def _below_one(bits: _Bits, numerators: _Words, denominator: int) -> NDArray[np.bool_]:
    """Return the same for fractions of 1 at most: whether an even number of draws of probability x/k succeed, k = 1, 2, ..."""
    even = np.ones(len(numerators), np.bool_)
    on = np.arange(len(numerators))
    k = 1
    while len(on):
        # A success with probability x exactly: integers are compared, nothing is divided.
        go = bits.below(denominator, len(on)) < numerators[on]
        if k > 1:
            go &= bits.below(k, len(on)) == 0
        on = on[go]
        even[on] = ~even[on]
        k += 1
    return even

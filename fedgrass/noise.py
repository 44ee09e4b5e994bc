"""Gaussian noise that nobody can guess and that its owner can repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SEED_BYTES = 32
_BLOCK = 1 << 16


def gaussian(seed: bytes, size: int) -> Iterator[NDArray[np.float64]]:
    """Yield ``size`` standard normal numbers in blocks; the same seed gives the same numbers.

    The uniform numbers beneath are SHAKE-256 of the seed and the block's number (FIPS 202), not those of NumPy's generators:
    whoever sees some of the noise must not be able to work out the rest. Box and Muller, Annals of Mathematical Statistics, 1958.
    The numbers are doubles: the attacks on the last bits of such noise (Mironov, CCS 2012) are not countered.

    Parameters
    ----------
    seed
        `SEED_BYTES` from the system's source of randomness.
    """
    for index, start in enumerate(range(0, size, _BLOCK)):
        count = min(_BLOCK, size - start)
        pairs = (count + 1) // 2
        digest = hashlib.shake_256(seed + index.to_bytes(8, "big")).digest(16 * pairs)
        uniform = (np.frombuffer(digest, "<u8") >> 11).astype(np.float64) / 2**53
        radius = np.sqrt(-2 * np.log1p(-uniform[:pairs]))  # of 1 - u, which is never 0
        angle = 2 * np.pi * uniform[pairs:]
        yield np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_gaussian(values: NDArray[np.float32], deviation: float, seed: bytes) -> None:
    """Add Gaussian noise to a flat vector, in place.

    Parameters
    ----------
    values
        float32 [n].
    deviation
        Standard deviation of each scalar's noise.
    seed
        32 bytes from a secure source: whoever knows them can take the noise off again.
    """
    start = 0
    for noise in gaussian(seed, len(values)):
        block = values[start : start + len(noise)]
        noise *= deviation
        np.add(block, noise, out=block, casting="same_kind")
        start += len(noise)

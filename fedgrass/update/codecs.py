"""How the difference of one parameter is stored in an update file.

A codec sees one parameter at a time, as a flat float32 array, and decodes as much of it at once as the reader asks for, so that
the reader's memory does not depend on the model. It may store a parameter as several tensors (codes and scales, say):
``layout`` names them in the order of their bytes, and ``decoder`` reads them in that order. Their sizes follow from the
model alone, so a reader knows what an update decodes to before it reads a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array

Floats = NDArray[np.float32]
ReadInto = Callable[[Array], None]
"""Fills an array with the next bytes of the update, or raises."""
Fill = Callable[[Floats], None]
"""Fills arrays with the scalars of a parameter, one after the other. Each but the last takes a whole number of `GRAIN`."""

GRAIN = 1024  # scalars: scales and bytes of masks never straddle two arrays


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that a parameter becomes in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Codec(Protocol):
    """One way to store a difference."""

    @property
    def lossless(self) -> bool:
        """Whether decoding gives the difference itself."""
        ...

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return what the parameter must be in the file."""
        ...

    def encode(self, parameter: TensorDescription, delta: Floats, rng: np.random.Generator, /) -> tuple[Array, ...]:
        """Return the tensors of ``layout`` for a finite, flat difference; ``rng`` is for what is rounded by chance."""
        ...

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what decodes the parameter, when its bytes are the next to come."""
        ...


class Float32:
    """Four bytes per scalar: exact."""

    lossless = True

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return one tensor of the parameter's shape."""
        return (StoredTensor(parameter.name, np.dtype("<f4"), parameter.shape),)

    def encode(self, parameter: TensorDescription, delta: Floats, _rng: np.random.Generator) -> tuple[Array, ...]:
        """Return the difference itself."""
        return (delta.astype("<f4", copy=False).reshape(parameter.shape),)

    def decoder(self, _parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what reads straight into the arrays."""
        return read


class Float16:
    """Two bytes per scalar: 11 bits of precision; what would overflow is held at the largest half, 65,504."""

    lossless = False

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return one tensor of the parameter's shape."""
        return (StoredTensor(parameter.name, np.dtype("<f2"), parameter.shape),)

    def encode(self, parameter: TensorDescription, delta: Floats, _rng: np.random.Generator) -> tuple[Array, ...]:
        """Round to the nearest half."""
        limit = np.float32(np.finfo(np.float16).max)
        return (np.clip(delta, -limit, limit).astype("<f2").reshape(parameter.shape),)

    def decoder(self, _parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what widens."""

        def fill(values: Floats) -> None:
            halves = np.empty(len(values), "<f2")
            read(halves)
            values[...] = halves

        return fill

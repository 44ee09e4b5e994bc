"""How the difference of one parameter is stored in an update file.

A codec sees one parameter at a time, as a flat float32 array, and never more than one block of it when decoding, so that
the reader's memory does not depend on the model. It may store a parameter as several tensors (codes and scales, say):
``layout`` names them in the order of their bytes, and ``decode`` reads them in that order. Their sizes follow from the
model alone, so a reader knows what an update decodes to before it reads a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.tensors import Array

Floats = NDArray[np.float32]
ReadInto = Callable[[Array], None]
"""Fills an array with the next bytes of the update, or raises."""

GRAIN = 1024  # scalars: scales and bytes of masks never straddle two blocks
BLOCK = 1 << 18  # scalars; 1 MiB of float32 stays in a core's cache between decoding, checking and adding


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that a parameter becomes in the file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Buffers:
    """The memory that decoding uses, taken once and reused for every update. Blocks are views of it.

    ``block`` is a whole number of `GRAIN`.
    """

    block: int = BLOCK
    floats: Floats = field(init=False)
    raw: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        if self.block < 1 or self.block % GRAIN:
            raise ValueError(f"block {self.block}: expected a whole number of {GRAIN} scalars")
        object.__setattr__(self, "floats", np.empty(self.block, np.float32))
        object.__setattr__(self, "raw", np.empty(self.block * 4, np.uint8))

    def beside(self) -> Buffers:
        """Return buffers for an update that is read side by side with others, block by block in turns.

        A codec keeps nothing in ``floats`` and ``raw`` from one block to the next, so all can share them; ``inner`` is its own.
        """
        buffers = copy(self)
        buffers.__dict__.pop("inner", None)
        return buffers

    @cached_property
    def inner(self) -> Buffers:
        """More of the same, for a codec that decodes by way of another."""
        return Buffers(self.block)


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

    def decode(self, parameter: TensorDescription, read: ReadInto, buffers: Buffers) -> Iterator[Floats]:
        """Yield the difference in blocks of at most ``buffers.block`` scalars; each is overwritten by the next."""
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

    def decode(self, parameter: TensorDescription, read: ReadInto, buffers: Buffers) -> Iterator[Floats]:
        """Read straight into the float buffer."""
        for count in block_sizes(parameter.size, buffers.block):
            values = buffers.floats[:count]
            read(values)
            yield values


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

    def decode(self, parameter: TensorDescription, read: ReadInto, buffers: Buffers) -> Iterator[Floats]:
        """Widen block by block."""
        halves = buffers.raw.view("<f2")
        for count in block_sizes(parameter.size, buffers.block):
            read(halves[:count])
            values = buffers.floats[:count]
            values[...] = halves[:count]
            yield values


def block_sizes(size: int, block: int) -> Iterator[int]:
    """Yield the sizes of the blocks that ``size`` scalars make: all of ``block``, but for the last."""
    for start in range(0, size, block):
        yield min(block, size - start)

"""How the difference of one parameter is stored in an update file.

A codec encodes one parameter at a time, as a flat float32 array. It decodes as much of one at once as the reader asks for, so
that the reader's memory does not depend on the model; or all parameters of a small model together, in a few calls. It may store
a parameter as several tensors (codes and scales, say): ``layout`` names them in the order of their bytes, and ``decoder`` reads
them in that order. Their sizes follow from the model alone, so a reader knows what an update decodes to before it reads a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import local
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


class Whole(Protocol):
    """Decodes all parameters of a model at once; made once for many updates, and used by several threads."""

    @property
    def nbytes(self) -> int:
        """Return the size of what is decoded."""
        ...

    def decode(self, stored: NDArray[np.uint8], values: Floats) -> None:
        """Fill ``values`` with all parameters' scalars, from all tensors' bytes; run it under ``np.errstate(all="ignore")``.

        Raises
        ------
        UpdateError
            Coded ``corrupt_data`` if the bytes are not what the codec makes.
        """
        ...


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
        """Encode a parameter's difference.

        Parameters
        ----------
        parameter
            Name, shape and dtype.
        delta
            Finite float32 [n], flat; not kept, and not changed.
        rng
            For what is rounded by chance; seeded by the update's header.

        Returns
        -------
        tuple
            The tensors of ``layout``, in its order.
        """
        ...

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what decodes the parameter, when its bytes are the next to come."""
        ...

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what decodes parameters of so many scalars, one after the other."""
        ...


def scratch(use: str, count: int, dtype: np.dtype[Any]) -> Array:
    """Return room for a decoder, which its thread's next call for the same use overwrites.

    Decoding is so fast that memory from the system, which comes page by page, would take longer.

    Parameters
    ----------
    use
        Names the use: two that are needed at once have two names.
    count
        Scalars.
    dtype
        Of the scalars.

    Returns
    -------
    Array
        ``dtype`` [count], with whatever was there.
    """
    # One for each thread, since several decode at once.
    room: Array | None = getattr(_rooms, use, None)
    if room is None or len(room) < count * dtype.itemsize:
        room = np.empty(count * dtype.itemsize, np.uint8)
        setattr(_rooms, use, room)
    return room[: count * dtype.itemsize].view(dtype)


_rooms = local()


def joined(stored: NDArray[np.uint8], parts: Sequence[slice]) -> NDArray[np.uint8]:
    """Return parts of the bytes as one vector."""
    view = stored.data
    return np.frombuffer(b"".join([view[part] for part in parts]), np.uint8)


@dataclass(frozen=True)
class WholeFloats:
    """Decodes all parameters of a codec that stores one number per scalar, and nothing besides."""

    nbytes: int
    decode: Callable[[NDArray[np.uint8], Floats], None]

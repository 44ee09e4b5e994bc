"""A model's parameters as one flat float32 vector: what updates are added in."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Manifest, Parameters, TensorDescription
from fedgrass.errors import BundleError
from fedgrass.tensors import Array
from fedgrass.update.codecs import Floats


def aligned(count: int, dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised vector on whole cache lines: vector instructions are then up to twice as fast on it."""
    size = count * dtype.itemsize
    # One cache line more than needed, so that an aligned start is always within.
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype)


# Bytes: a cache line on x86-64 and on 64-bit Arm.
_LINE = 64


class Layout:
    """Where each parameter lies in the vector: one after the other, in the manifest's order.

    Parameters
    ----------
    parameters
        The model's.
    apart
        Names of those that are in no update, local or fixed, and so not in the vector.
    """

    def __init__(self, parameters: Sequence[TensorDescription], *, apart: Collection[str] = ()) -> None:
        self._stored = tuple(parameters)
        parameters = [parameter for parameter in parameters if parameter.name not in apart]
        for parameter in parameters:
            if np.dtype(parameter.dtype).kind != "f":
                raise BundleError(
                    f"parameter {parameter.name!r} is {parameter.dtype}: only floats can be averaged. "
                    "List it under 'frozen' in the manifest"
                )
        self.parameters = tuple(parameters)
        self.starts: dict[str, int] = {}
        self.size = 0
        for parameter in parameters:
            self.starts[parameter.name] = self.size
            self.size += parameter.size

    @classmethod
    def of(cls, manifest: Manifest) -> Layout:
        """Return the layout of a model's updates."""
        return cls(manifest.parameters, apart=frozenset((*(manifest.local or ()), *manifest.fixed)))

    def tiles(self, block: int) -> Iterator[slice]:
        """Yield the vector piece by piece, at most ``block`` scalars each: part of one parameter, or several of them.

        A piece begins with a parameter or whole blocks after its start, and ends so too: what `UpdateReader.fill` takes.
        """
        start = end = 0
        for parameter in self.parameters:
            if end - start + parameter.size > block and end > start:
                yield slice(start, end)
                start = end
            end += parameter.size
            while end - start > block:
                yield slice(start, start + block)
                start += block
        if end > start:
            yield slice(start, end)

    def base_tiles(self, path: Path, block: int) -> Iterator[tuple[slice, Array]]:
        """Yield a parameter file of this model tile by tile, in the parameters' own dtype; each is overwritten by the next.

        Raises
        ------
        TensorFileError
            If the file is malformed.
        BundleError
            If it holds other tensors.
        """
        with path.open("rb") as stream:
            header = tensors.read_header(stream, file_bytes=path.stat().st_size, name=str(path))
            found = [(tensor.name, tensor.dtype.name, tensor.shape) for tensor in header.tensors]
            # Names, dtypes, shapes and order: tiles are read in one pass, by the manifest's positions.
            if found != [(p.name, p.dtype, p.shape) for p in self._stored]:
                raise BundleError(f"{path}: holds other parameters than the manifest names, or in another order")
            for parameter in self._stored:
                if parameter.name not in self.starts:
                    stream.seek(parameter.nbytes, os.SEEK_CUR)
                    continue
                # One buffer for a parameter's tiles; callers are done with a tile when they ask for the next.
                raw = np.empty(min(block, parameter.size), parameter.dtype)
                for span in Layout([parameter]).tiles(block):
                    piece = raw[: span.stop - span.start]
                    tensors.read_into(stream, piece, name=str(path))
                    start = self.starts[parameter.name] + span.start
                    yield slice(start, start + len(piece)), piece

    def unflatten(self, vector: Floats) -> Parameters:
        """Return the parameters in their own shapes and dtypes; float32 ones are views of the vector."""
        return {
            p.name: vector[self.starts[p.name] : self.starts[p.name] + p.size]
            .astype(p.dtype, copy=False)
            .reshape(p.shape)
            for p in self.parameters
        }

"""An update that never was a file: a simulation's, where device and aggregator are one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.update.codecs import Floats
from fedgrass.update.codecs.float32 import codec
from fedgrass.update.header import UpdateHeader


@dataclass
class DecodedUpdate:
    """A difference in memory, read as `fedgrass.update.reader.UpdateReader` reads the file of codec float32 that it stands for.

    Parameters
    ----------
    header
        What the update says of itself.
    values
        float32 [n], finite: all scalars of the difference, in the manifest's order.
    parameters
        The model's parameters.
    """

    header: UpdateHeader
    values: Floats
    parameters: Sequence[TensorDescription]

    def __post_init__(self) -> None:
        self._read = 0

    def __enter__(self) -> DecodedUpdate:
        self._read = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def fill(self, values: Floats) -> None:
        """Fill an array with the next scalars."""
        values[...] = self.values[self._read : self._read + len(values)]
        self._read += len(values)

    def read_whole(self, values: Floats) -> None:
        """Fill an array with all scalars."""
        values[...] = self.values

    def require_end(self) -> None:
        """Do nothing: there is nothing behind the last scalar."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._head) + self.values.nbytes

    def to_bytes(self) -> bytes:
        """Return what the file would hold: what `fedgrass.update.writer.encode_update` makes."""
        return self._head + self.values.astype("<f4", copy=False).tobytes()

    @cached_property
    def _head(self) -> bytes:
        stored = [tensor for parameter in self.parameters for tensor in codec.layout(parameter)]
        return tensors.encode_header(
            [(tensor.name, tensor.dtype, tensor.shape) for tensor in stored], self.header.to_metadata()
        )

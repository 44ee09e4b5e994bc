"""An update that never was a file: a simulation's, where device and aggregator are one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from fedgrass import tensors
from fedgrass.bundle import TensorDescription
from fedgrass.update.codecs import Floats
from fedgrass.update.codecs.float32 import codec
from fedgrass.update.header import UpdateHeader


class DecodedForm:
    """What the update files of a model in codec float32 look like, found once for many of them."""

    def __init__(self, parameters: Sequence[TensorDescription]) -> None:
        stored = [tensor for parameter in parameters for tensor in codec.layout(parameter)]
        self._tensors = [(tensor.name, tensor.dtype, tensor.shape) for tensor in stored]
        self._fixed = -1

    def head(self, header: UpdateHeader) -> bytes:
        """Return what a file begins with."""
        return tensors.encode_header(self._tensors, header.to_metadata())

    def head_bytes(self, header: UpdateHeader) -> int:
        """Return the size of what a file begins with; the same form must be asked of one round's updates alone.

        They differ in thing, number of examples and metrics, of plain characters: a file is not written to be measured.
        """
        own = sum(
            map(len, (header.thing, str(header.num_examples), *header.metrics, *map(repr, header.metrics.values())))
        )
        if self._fixed < 0:
            self._fixed = len(self.head(header).rstrip(b" ")) - 8 - own
        return 8 + -(-(self._fixed + own) // 8) * 8


@dataclass
class DecodedUpdate:
    """A difference in memory, read as `fedgrass.update.reader.UpdateReader` reads the file of codec float32 that it stands for.

    Parameters
    ----------
    header
        What the update says of itself.
    values
        float32 [n], finite: all scalars of the difference, in the manifest's order.
    form
        What the round's files look like.
    """

    header: UpdateHeader
    values: Floats
    form: DecodedForm

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
        return self.form.head_bytes(self.header) + self.values.nbytes

    def to_bytes(self) -> bytes:
        """Return what the file would hold: what `fedgrass.update.writer.encode_update` makes."""
        return self.form.head(self.header) + self.values.astype("<f4", copy=False).tobytes()

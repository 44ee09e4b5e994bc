"""Top-k sparsification: of each parameter only the largest scalars are sent, and the rest is zero.

What is left out is not lost: error feedback adds it to the device's next update (Stich et al., "Sparsified SGD with Memory",
NeurIPS 2018, https://arxiv.org/abs/1809.07599). Which scalars were chosen is a mask of one bit each, not a list of indices: its
size is known beforehand, it cannot point outside, and entropy coding brings it close to the shorter of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import TensorDescription
from fedgrass.errors import UpdateError
from fedgrass.tensors import Array
from fedgrass.update.codecs import GRAIN, Codec, Fill, Floats, ReadInto, StoredTensor, Whole, joined

# Scalars that are decoded at a time: bounded memory, whatever the parameter's size.
_PORTION = 16 * GRAIN


class TopK:
    """The largest ``fraction`` of each parameter's scalars, at least one, stored by another codec.

    Decoding holds one parameter's mask: a 32nd of its size in float32.
    """

    lossless = False

    def __init__(self, fraction: float, values: Codec) -> None:
        self._fraction = fraction
        self._values = values

    def layout(self, parameter: TensorDescription) -> tuple[StoredTensor, ...]:
        """Return the mask, then what the other codec makes of the chosen scalars."""
        mask = StoredTensor(f"{parameter.name}#mask", np.dtype("<u1"), ((parameter.size + 7) // 8,))
        return (mask, *self._values.layout(self._chosen(parameter)))

    def encode(self, parameter: TensorDescription, delta: Floats, rng: np.random.Generator) -> tuple[Array, ...]:
        """Encode the scalars of largest magnitude, and drop the others.

        Parameters
        ----------
        parameter
            Name, shape and dtype.
        delta
            Finite float32 [n].
        rng
            For the codec of the chosen scalars.

        Returns
        -------
        tuple
            A bit mask of the places, lowest bit first, and the encoded chosen scalars in the order of their places.
        """
        chosen = self._chosen(parameter)
        mask = np.zeros(parameter.size, np.bool_)
        if chosen.size:
            # A partition takes linear time, and the order among the chosen means nothing.
            mask[np.argpartition(np.abs(delta), -chosen.size)[-chosen.size :]] = True
        return (np.packbits(mask, bitorder="little"), *self._values.encode(chosen, delta[mask], rng))

    def decoder(self, parameter: TensorDescription, read: ReadInto) -> Fill:
        """Return what puts the chosen scalars into their places.

        Raises
        ------
        UpdateError
            Coded ``corrupt_data`` if the mask marks another number of scalars than are sent.
        """
        mask = np.empty((parameter.size + 7) // 8, np.uint8)
        read(mask)
        chosen = self._chosen(parameter)
        if parameter.size % 8:
            mask[-1] &= (1 << parameter.size % 8) - 1  # the other bits mean nothing
        # Checked before anything is placed: a mask with more marks than scalars would read beyond them.
        marked = int(np.count_nonzero(_bits(mask)))
        if marked != chosen.size:
            raise UpdateError(
                "corrupt_data", f"{parameter.name!r}: the mask marks {marked} scalars, {chosen.size} are sent"
            )
        sent = _Sent(self._values.decoder(chosen, read), chosen.size)
        left = mask

        def fill(values: Floats) -> None:
            nonlocal left
            places = _places(left[: (len(values) + 7) // 8])
            # Arrays end at whole bytes of the mask but for the last: `GRAIN` is a multiple of 8.
            left = left[len(values) // 8 :]
            values.fill(0)
            sent.scatter(values, places)

        return fill

    def whole(self, sizes: Sequence[int]) -> Whole:
        """Return what puts the chosen scalars of all parameters into their places."""
        chosen = [self._count(size) for size in sizes]
        return _WholeChosen(
            sizes, chosen, self._values.whole(chosen), [self._values.whole([one]).nbytes for one in chosen]
        )

    def _chosen(self, parameter: TensorDescription) -> TensorDescription:
        return TensorDescription(name=parameter.name, shape=(self._count(parameter.size),), dtype="float32")

    def _count(self, size: int) -> int:
        return min(size, max(1, math.ceil(self._fraction * size)))


def _bits(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the bits as truths, which are found and counted ten times as fast as numbers."""
    return np.unpackbits(mask, bitorder="little").view(np.bool_)


def _places(mask: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return which bits are set, by way of the bytes that have any: far fewer than bits."""
    some = np.flatnonzero(mask != 0)
    marks = np.flatnonzero(_bits(mask[some]))
    places: NDArray[np.intp] = some[marks >> 3] * 8 + (marks & 7)
    return places


class _WholeChosen:
    """Decodes the masks of all parameters as one, and the scalars that they mark.

    Parameters
    ----------
    sizes, chosen
        Scalars of each parameter, and those that are sent.
    values, value_bytes
        What decodes all that are sent, and the bytes of each parameter's.
    """

    def __init__(self, sizes: Sequence[int], chosen: Sequence[int], values: Whole, value_bytes: Sequence[int]) -> None:
        self._upto = np.cumsum(chosen)
        self._values = values
        self._masks: list[slice] = []
        self._stored: list[slice] = []
        at = 0
        for size, count in zip(sizes, value_bytes, strict=True):
            self._masks.append(slice(at, at + (size + 7) // 8))
            at = self._masks[-1].stop
            self._stored.append(slice(at, at + count))
            at = self._stored[-1].stop
        self.nbytes = at
        lengths = np.array([(size + 7) // 8 * 8 for size in sizes], np.intp)
        self._ends = np.cumsum(lengths)  # of each parameter's bits: a mask ends with a whole byte
        unused = self._ends - lengths - np.cumsum([0, *sizes[:-1]])  # bits before it that mean nothing
        self._unused = np.repeat(unused, chosen) if unused.any() else None  # before each that is sent
        self._meant = np.concatenate([np.packbits(np.ones(size, np.bool_), bitorder="little") for size in sizes])

    def decode(self, stored: NDArray[np.uint8], values: Floats) -> None:
        """Find the places, and fill them."""
        values.fill(0)
        if not len(values):
            return
        mask = joined(stored, self._masks) & self._meant
        places = _places(mask)
        upto = np.searchsorted(places, self._ends)
        if (upto != self._upto).any():
            odd = int((upto != self._upto).argmax())
            marked, sent = (int(np.diff(counts, prepend=0)[odd]) for counts in (upto, self._upto))
            raise UpdateError("corrupt_data", f"parameter {odd}: the mask marks {marked} scalars, {sent} are sent")
        found = np.empty(len(places), np.float32)
        self._values.decode(joined(stored, self._stored), found)
        values[places if self._unused is None else places - self._unused] = found


class _Sent:
    """The scalars that were sent, taken in other portions than they are decoded in."""

    def __init__(self, fill: Fill, count: int) -> None:
        self._fill = fill
        self._count = count  # that are still to be decoded
        self._buffer: Floats = np.empty(min(_PORTION, count), np.float32)
        self._rest = self._buffer[:0]

    def scatter(self, values: Floats, places: NDArray[np.intp]) -> None:
        """Put the next scalars into ``places`` of ``values``."""
        while len(places):
            if not len(self._rest):
                # At most what is left of the parameter: its last portion may be short.
                self._rest = self._buffer[: self._count]
                self._fill(self._rest)
                self._count -= len(self._rest)
            count = min(len(places), len(self._rest))
            values[places[:count]] = self._rest[:count]
            places, self._rest = places[count:], self._rest[count:]

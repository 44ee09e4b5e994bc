"""One rule for labels, from the bundle alone: the same text or number is the same class on every device.

With ``class_names`` a label is one of them, whatever its case. If all of them are numbers, so is the label, and is compared as
one (``2.0`` is the class ``"2"``). Else a whole number is the class's index. Without class names a label is a number.
"""

from __future__ import annotations

import math
import unicodedata

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Manifest
from fedgrass.errors import DataError
from fedgrass.tensors import Array

Doubles = NDArray[np.float64]

_TRUTHS = {"true": 1.0, "false": 0.0}
_REGRESSIONS = ("mean_squared_error", "mean_absolute_error", "huber")


class LabelError(DataError):
    """A label is not a class. That is never left out as one bad row: the others would be numbered wrongly too."""

    def at_place(self, place: str) -> LabelError:
        """Return the error with the place of the label."""
        return LabelError(f"{place}: {self}")


class UnnamedLabelError(LabelError):
    """A label is text, and the bundle has no class names: no device could number it as the others do."""


class Labels:
    """How a device's labels become y of one model."""

    def __init__(self, manifest: Manifest) -> None:
        self._y = manifest.y
        self._model = manifest.name
        loss = getattr(manifest, "loss", "")
        self._measures = loss in _REGRESSIONS
        self._classifies = bool(loss) and not self._measures
        self.names: tuple[str, ...] = () if self._measures else manifest.class_names
        self._exact = {_plain(name): index for index, name in enumerate(self.names)}
        self._folded: dict[str, int] = {}
        for name, index in self._exact.items():
            folded = name.casefold()
            # Two classes that differ in case alone: then case counts.
            self._folded[folded] = -1 if folded in self._folded else index
        numbers = [_finite(name) for name in self.names]
        self._numbers = {number: index for index, number in enumerate(numbers) if number is not None}
        self.are_numbers = bool(self.names) and len(self._numbers) == len(self.names)
        self.count = _classes(manifest, loss, len(self.names))

    @property
    def are_texts(self) -> bool:
        """Whether labels are class names that are not numbers."""
        return bool(self.names) and not self.are_numbers

    @property
    def is_whole(self) -> bool:
        """Whether y holds classes by number."""
        return np.dtype(self._y.dtype).kind in "iu"

    @property
    def fits_one(self) -> bool:
        """Whether one label an example is enough: y is one value, or one of several marks the class."""
        return self._y.size == 1 or (len(self._y.shape) == 1 and self._y.size == self.count)

    def maps(self, columns: int) -> bool:
        """Whether cells of so many label columns name classes; else they are y's values as they stand."""
        if self._measures:
            return False
        return self.is_whole or (columns == 1 and (bool(self.names) or self._y.size > 1))

    def of_column(self, column: int) -> Labels:  # noqa: ARG002 - several outputs' look at it
        """Return the labels of one of y's columns: these, where all columns are read alike."""
        return self

    def refuse_text(self, text: str) -> None:
        """Raise `UnnamedLabelError` for a label that is text, if the model has classes and no names for them."""
        if not self.names and (self.is_whole or self._classifies):
            raise UnnamedLabelError(
                f"label {text[:40]!r} is text, and model {self._model!r} has no class names to number it by, alike on "
                "every device; export the model with class_names (--classes)"
            )

    def refuse_truth(self, cell: object) -> None:
        """Raise `ValueError` for true and false of more classes than two: they are no numbers of classes."""
        is_truth = isinstance(cell, bool) or (isinstance(cell, str) and truth(cell.strip()) is not None)
        if is_truth and self.is_whole and self.count not in (None, 2):
            raise ValueError(f"{str(cell)[:40]!r} is not the number of one of {self.count} classes")

    def has(self, text: str) -> bool:
        """Whether a text is a class's name as it stands."""
        return _plain(text) in self._exact

    def of_text(self, text: str) -> int:
        """Return a label's class.

        Raises
        ------
        UnnamedLabelError
            If it is text, and the bundle has no class names.
        ValueError
            If it is none of the classes.
        """
        plain = _plain(text)
        if plain in self._exact:
            return self._exact[plain]
        number = _finite(plain)
        # Where only some names are numbers, a number that is not a name is not an index: "10" beside "9" and "other" is
        # a mistake.
        if number is not None and (not self.names or self.are_numbers or not self._numbers):
            return self.of_number(number)
        if (index := self._folded.get(plain.casefold(), -1)) >= 0:
            return index
        if not self.names:
            # `true` is a label of two classes, not the second of ten.
            if plain.lower() in _TRUTHS and self.count in (None, 2):
                return int(_TRUTHS[plain.lower()])
            self.refuse_text(plain)
        raise ValueError(f"{text[:40]!r} is not a number or one of {_some(self.names)}")

    def of_number(self, number: float) -> int:
        """Return the class of a numeric label; raises `DataError` as `of_numbers` does."""
        if not self.are_numbers and self.count is None and number == int(number) and number >= 0:
            return int(number)
        return int(self.of_numbers(np.array([number]))[0])

    def of_numbers(self, numbers: Doubles) -> Doubles:
        """Return the classes of numeric labels, NaN where they are NaN.

        Raises
        ------
        DataError
            If one is no class.
        """
        found = ~np.isnan(numbers)
        if self.are_numbers:
            known = np.array(list(self._numbers))
            place = np.argsort(known)
            # The nearest candidate of each, then whether it is the same.
            at = np.clip(np.searchsorted(known, numbers[found], sorter=place), 0, len(known) - 1)
            hit = known[place[at]] == numbers[found]
            result = np.full(numbers.shape, np.nan)
            result[found] = np.array(list(self._numbers.values()), np.float64)[place[at]]
            wrong, expected = ~hit, f"one of the classes {_some(self.names)}"
        else:
            most = math.inf if self.count is None else self.count - 1
            inside = numbers[found]
            wrong, result = (inside != np.rint(inside)) | (inside < 0) | (inside > most), numbers
            expected = "a class's number, which are whole from 0" + (f" to {most}" if most < math.inf else "")
        if wrong.any():
            first = int(np.flatnonzero(found)[np.argmax(wrong)])
            raise WrongLabelError(float(numbers.flat[first]), expected, first)
        return result

    def of_columns(self, values: Doubles) -> Doubles:
        """Return what stands in a table's label columns [n, columns] as classes or values; raises as `of_numbers`."""
        if self.maps(values.shape[1]):
            return values if self.are_texts else self.of_numbers(values)  # names are classes already
        wrong = (values < 0) | (values > 1) if self._classifies else np.zeros(0, bool)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise WrongLabelError(float(values.flat[at]), "from 0 to 1", at)
        return values

    def y(self, labels: Array) -> Array:
        """Return y [n, *shape] from the labels [n, columns]: values as they are, or 1 at the class's place."""
        if labels.shape[1] == self._y.size:
            return labels.reshape(-1, *self._y.shape).astype(self._y.dtype)
        marked = np.zeros((len(labels), self._y.size), self._y.dtype)
        marked[np.arange(len(labels)), labels[:, 0].astype(np.intp)] = 1
        return marked.reshape(-1, *self._y.shape)

    def of_array(self, y: Array) -> Array:
        """Return y of a file of arrays as the model takes it: text and numbers as in tables, anything else as it is.

        Raises
        ------
        DataError
            If a label is none of the classes.
        """
        try:
            numbers = self._numbers_of(y)
        except WrongLabelError as error:
            raise DataError(f"y of example {error.at // max(1, math.prod(y.shape[1:]))}: {error}") from error
        except (LabelError, ValueError) as error:
            raise DataError(f"y: {error}") from error
        if numbers is not None:
            return self._shaped(numbers)
        if self._y.size == 1 and y.shape[1:] in ((), (1,)):
            y = y.reshape(-1, *self._y.shape)
        return y.astype(self._y.dtype) if y.dtype.kind in "iub" and np.dtype(self._y.dtype).kind == "f" else y

    def _numbers_of(self, y: Array) -> Doubles | None:
        """Return an array's labels as classes; None if they are y as it stands."""
        # Each distinct text is looked up once, however many examples have it.
        if y.dtype.kind in "US":
            texts, which = np.unique(y.astype(str), return_inverse=True)
            return np.array([self.of_text(str(text)) for text in texts], np.float64)[which].reshape(y.shape)
        # One-hot rows, or values of a regression: y as it stands.
        marks = self._y.size > 1 and y.shape[1:] == self._y.shape and not self.is_whole
        if marks or y.dtype.kind not in "iufb":
            return None
        if self.are_numbers and [*self._numbers] != list(range(len(self.names))):
            return self.of_numbers(y.astype(np.float64))
        if y.ndim == 1 and self._y.size > 1 and self.fits_one:
            return self.of_numbers(y.astype(np.float64))
        # A class by its place, as other libraries have it.
        if self._is_one_hot(y):
            return np.asarray(y.argmax(axis=1), np.float64)
        # Labels that went through a float on their way, as pandas makes of a column with gaps.
        if self.is_whole and y.dtype.kind in "fb" and bool(np.all((y == np.rint(y)) & (np.abs(y) < 2**31))):
            return y.astype(np.float64)
        return None

    def _is_one_hot(self, y: Array) -> bool:
        """Whether an array marks each example's class, and y is its number."""
        fits = self.is_whole and self._y.size == 1 and y.ndim == 2 and y.shape[1] == self.count and y.shape[1] > 1
        return fits and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))

    def _shaped(self, numbers: Doubles) -> Array:
        columns = math.prod(numbers.shape[1:])
        if columns not in (1, self._y.size):
            return numbers
        return self.y(numbers.reshape(len(numbers), columns))


class WrongLabelError(LabelError):
    """A number is not a class; ``at`` is its place among those asked about."""

    def __init__(self, label: float, expected: str, at: int) -> None:
        self.at = at
        super().__init__(
            f"label {label:.10g} is not {expected}. If the labels are numbered otherwise, from 1 say, export the model with "
            "class_names that are those numbers"
        )


def takes_x_alone(manifest: Manifest) -> bool:
    """Whether y may be x itself, as for an autoencoder: it has its shape, and is not a class."""
    return (
        not manifest.inputs
        and not manifest.outputs
        and manifest.x.shape == manifest.y.shape
        and manifest.x.shape != ()
        and not manifest.class_names
    )


def truth(text: str) -> float | None:
    """Return 1 for ``true`` and 0 for ``false``, whatever their case."""
    return _TRUTHS.get(text.lower())


def _classes(manifest: Manifest, loss: str, named: int) -> int | None:
    if loss == "sparse_categorical_crossentropy":
        return manifest.output.shape[-1]
    if named:
        return named
    if loss == "binary_crossentropy" and manifest.y.size == 1:
        return 2
    return manifest.y.shape[-1] if loss == "categorical_crossentropy" and manifest.y.shape else None


def _plain(text: str) -> str:
    # macOS writes file names decomposed, and folders are class names.
    return unicodedata.normalize("NFC", text.strip())


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    # Python reads "1_0" as 10, nobody else does.
    return number if math.isfinite(number) and "_" not in text else None


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")

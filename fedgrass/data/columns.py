"""Which of a table's columns make up x and y: by name where they have names, else by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from fedgrass.bundle import Manifest
from fedgrass.data.labels import Labels, takes_x_alone
from fedgrass.data_settings import SAMPLE_WEIGHT, DataSettings
from fedgrass.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Columns by their numbers; without labels y is x. ``weight`` is that of the examples' weights, if there is one."""

    names: tuple[str, ...]
    features: tuple[int, ...]
    labels: tuple[int, ...]
    time: int | None
    weight: int | None = None

    @property
    def needed(self) -> tuple[int, ...]:
        """What is read, in this order."""
        return self.features + self.labels + (() if self.weight is None else (self.weight,))


class Wanted:
    """The columns that a model is to be fed from.

    Parameters
    ----------
    what
        Begins each message: ``data /var/lib/mill.csv``.
    is_text
        Whether x is a text in one column.
    """

    def __init__(
        self, what: str, manifest: Manifest, settings: DataSettings, labels: Labels, *, is_text: bool = False
    ) -> None:
        self.is_text = is_text
        self._what = what
        self._model = manifest.name
        self._x, self._y = manifest.x.size, manifest.y.size
        self._takes_x_alone = takes_x_alone(manifest)
        self._labels = labels
        self._time = settings.time if settings.window_hours else ""
        self.x = settings.columns or manifest.data.columns
        self.label = settings.label
        self._weight = settings.weight
        self._bundle_y = () if settings.label else manifest.data.labels
        if len(self.x) not in (0, self._x):
            raise DataError(
                f"{what}: columns names {len(self.x)}; model {self._model!r} takes {self._x} values for x, one for each"
            )

    def y(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names of y's columns, as far as they are known."""
        if not self.label:
            return self._bundle_y
        # A column's own name may hold a comma: as a whole it comes first.
        if self.label in names or self._y == 1:
            return (self.label,)
        return tuple(part.strip() for part in self.label.split(","))

    def are_all_in(self, row: Sequence[str]) -> bool:
        """Whether a row has every name that is known to be a column's, and so is a header."""
        names = [name.strip() for name in row]
        known = (*self.x, *self.y(names), *([self._time] if self._time else []))
        return bool(known) and all(name in names for name in known)

    def numbers_of_columns(self) -> tuple[int, ...]:
        """Return how many columns a table without names may have."""
        several = (self._x + self._y, self._x + 1 if self._labels.fits_one else self._x + self._y)
        return (self._x, *several) if self._takes_x_alone else several

    def lay_out(self, row: Sequence[str], *, named: bool) -> Layout:
        """Find the columns.

        Parameters
        ----------
        row
            The header, or the first row of a table without one.

        Raises
        ------
        DataError
            If a column is missing, is there twice, or there are others than the model takes and no names to choose by.
        """
        # Without a header columns are called "1", "2", …, by which the settings can choose.
        names = tuple(name.strip() for name in row) if named else tuple(f"{i + 1}" for i in range(len(row)))
        # Names are known but the file has no header: then its columns are those, in that order.
        if not named and self.x and not set(self.x) <= set(names):
            self._require_exactly(names)
            return self._by_place(names)
        labels = self.y(names)
        if labels and len(labels) != self._y and not (len(labels) == 1 and self._labels.fits_one):
            raise DataError(
                f"{self._what}: label names {len(labels)} columns, y of model {self._model!r} has {self._y} values"
            )
        if self._time:
            self._find(self._time, names, "time column")
        # Under its usual name it may be there or not.
        weighs = self._weight not in (*self.x, *labels) and (self._weight != SAMPLE_WEIGHT or self._weight in names)
        weight = self._find(self._weight, names, "weight column") if named and weighs else None
        found = self._by_name(names, labels, weight) if self.x else self._by_rest(names, labels, weight)
        return replace(found, weight=weight)

    def _by_name(self, names: tuple[str, ...], labels: tuple[str, ...], weight: int | None) -> Layout:
        missing = [name for name in (*self.x, *labels) if name not in names]
        if missing:
            raise DataError(f"{self._what}: lacks {_listed('column', missing)}{_near(missing[0], names)}")
        features = tuple(self._find(name, names, "column") for name in self.x)
        if not labels and not self._takes_x_alone:
            other = (*features, weight)
            # An index column that pandas writes has an empty name.
            rest = [i for i in range(len(names)) if i not in other and names[i] not in ("", self._time)]
            if len(rest) != self._y and not (len(rest) == 1 and self._labels.fits_one):
                raise DataError(
                    f"{self._what}: {len(rest)} columns besides those of x, y of model {self._model!r} has {self._y} values; "
                    "name the label column (label in the device's configuration, or in the bundle)"
                )
            return Layout(names, features, tuple(rest), self._time_column(names))
        return Layout(
            names, features, tuple(self._find(name, names, "label column") for name in labels), self._time_column(names)
        )

    def _by_rest(self, names: tuple[str, ...], labels: tuple[str, ...], weight: int | None) -> Layout:
        missing = [name for name in labels if name not in names]
        if missing:
            raise DataError(
                f"{self._what}: no single label column {missing[0]!r} among {', '.join(names[:20])}{_near(missing[0], names)}"
            )
        time = self._time_column(names)
        own = tuple(i for i in range(len(names)) if i not in (time, weight))
        chosen = tuple(self._find(name, names, "label column") for name in labels)
        if not labels:
            self._require_exactly(tuple(names[i] for i in own))
            chosen = own[self._x :]
        features = tuple(i for i in own if i not in chosen)
        if len(features) != self._x:
            raise DataError(self._count(len(own)))
        return Layout(names, features, chosen, time)

    def _by_place(self, names: tuple[str, ...]) -> Layout:
        places = tuple(range(len(names)))
        return Layout(names, places[: self._x], places[self._x :], None)

    def _require_exactly(self, names: tuple[str, ...]) -> None:
        if self._time and self._time not in names and not set(self.x) <= set(names) and self.x:
            raise DataError(f"{self._what}: has no header, so no time column {self._time!r}")
        if len(names) not in self.numbers_of_columns():
            raise DataError(self._count(len(names)))

    def _count(self, found: int) -> str:
        return (
            f"{self._what}: {found} columns; model {self._model!r} takes {self._x} for x and {self._y} for y. Where there are "
            "others, give the file a header and name those of x (columns in the device's configuration, or in the bundle)"
        )

    def _find(self, name: str, names: tuple[str, ...], kind: str) -> int:
        if name not in names:
            raise DataError(f"{self._what}: no {kind} {name!r} among {', '.join(names[:20])}{_near(name, names)}")
        if names.count(name) > 1:
            raise DataError(
                f"{self._what}: {kind} {name!r} is there {names.count(name)} times; name each column differently"
            )
        return names.index(name)

    def _time_column(self, names: tuple[str, ...]) -> int | None:
        return names.index(self._time) if self._time in names and self._time else None


def _listed(what: str, names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10]) + (", …" if len(names) > 10 else "")
    return f"{what}{'s' if len(names) > 1 else ''} {shown}"


def _near(name: str, names: tuple[str, ...]) -> str:
    # Most often the case or a letter differs; 0.75 lets about one letter in four differ.
    near = get_close_matches(name.lower(), [other.lower() for other in names], n=1, cutoff=0.75)
    found = next((other for other in names if near and other.lower() == near[0]), "")
    shown = ", ".join(names[:20]) or "none"
    return f"; did you mean {found!r}?" if found else f"; it has {shown}"

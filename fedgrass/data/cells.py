"""One cell of a table as a number, by the marks that the table uses."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedgrass.data.labels import truth
from fedgrass.data_settings import DataSettings

THOUSANDS = (",", ".", " ", "\u00a0", "\u202f", "'", "\u2019")
"""What stands between groups of three digits somewhere in the world."""

_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class NumberFormat:
    """How numbers are written, and what stands for none."""

    decimal: str = "."
    thousands: str = ""
    missing: Collection[str] = frozenset({"", "nan"})

    @property
    def is_plain(self) -> bool:
        """Whether numbers are written as in Python."""
        return self.decimal == "." and not self.thousands

    @cached_property
    def _grouped(self) -> re.Pattern[str]:
        mark = re.escape(self.thousands)
        return re.compile(rf"[+-]?\d{{1,3}}(?:{mark}\d{{3}})+(?:{re.escape(self.decimal)}\d*)?", re.ASCII)

    def is_missing(self, text: str) -> bool:
        """Whether the cell stands for no value."""
        return text.strip().lower() in self.missing

    def number(self, text: str) -> float:
        """Return a cell's value; NaN if it is missing, 1 or 0 for ``true`` and ``false``.

        Raises
        ------
        ValueError
            If it is not a number; ``1e999`` is not one, and neither is ``inf``.
        """
        if self.is_missing(text):
            return math.nan
        plain = text.strip()
        # Only whole groups of three: `1,2` with a comma for thousands is a typing error, not 12.
        if self.thousands and self._grouped.fullmatch(plain):
            plain = plain.replace(self.thousands, "")
        if self.decimal != ".":
            # Swapped, not replaced: a point in a number with a decimal comma must not pass for one.
            plain = plain.translate({ord("."): self.decimal, ord(self.decimal): "."})
        if _PLAIN.fullmatch(plain):
            if math.isfinite(value := float(plain)):
                return value
            raise ValueError(f"{text[:40]!r} is not finite")
        if (value_of_truth := truth(plain)) is not None:
            return value_of_truth
        # float() would take these, and a single infinity ends a training.
        if plain.lower().lstrip("+-") in ("inf", "infinity", "nan"):
            raise ValueError(f"{text[:40]!r} is not finite")
        raise ValueError(f"{text[:40]!r} is not a number")


def number_format(settings: DataSettings) -> NumberFormat:
    """Return how numbers are written in text cells, as far as the settings say it."""
    return NumberFormat(settings.decimal or ".", settings.thousands, markers(settings))


def markers(settings: DataSettings) -> frozenset[str]:
    """Return what stands for a missing value, in lower case."""
    return frozenset(text.strip().lower() for text in settings.missing_values)

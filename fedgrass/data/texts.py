"""Texts of files and of tables' columns as a model's x, by `fedgrass.data.words`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgrass.bundle import Manifest, TensorDescription
from fedgrass.data.account import Account
from fedgrass.data.cells import NumberFormat
from fedgrass.data.columns import Layout
from fedgrass.data.labels import Labels
from fedgrass.data.rows import Block
from fedgrass.data.text import open_text, told_as_data
from fedgrass.data.values import Values
from fedgrass.data.words import Words
from fedgrass.data_settings import DataSettings
from fedgrass.errors import DataError
from fedgrass.tensors import Array

SUFFIXES = (".txt", ".text", ".md")
UNREAD = (".doc", ".docx", ".epub", ".htm", ".html", ".odt", ".pdf", ".rtf")
"""Texts that are not read; they are counted as bad, and not overlooked."""

# Characters of one file: far more than a model takes words of.
_MOST_CHARACTERS = 1 << 20


class TextFiles:
    """Reads a file as one text.

    Raises
    ------
    DataError
        As `Words` does.
    """

    unit = "texts"
    suffixes = SUFFIXES
    unread = UNREAD

    def __init__(self, manifest: Manifest, settings: DataSettings, what: str) -> None:
        self._words = Words(manifest, what)
        self._settings = settings

    def read(self, file: Path) -> Array:
        """Return x [words]; raises `DataError` if the file is no text, or has nothing but blanks in it."""
        if file.suffix.lower() in UNREAD:
            raise DataError(f"data {file}: {file.suffix[1:].upper()} is not read; save it as plain text")
        with told_as_data(f"data {file}"):
            stream, _ = open_text(file, self._settings.encoding, max_bytes=self._settings.max_bytes)
            with stream:
                text = stream.read(_MOST_CHARACTERS)
        if not text.strip() or "\0" in text:
            raise DataError(f"data {file}: {'is no text' if text.strip() else 'has no words in it'}")
        return self._words.numbers(text)


def one_column(manifest: Manifest) -> Manifest:
    """Return a manifest by which a table's columns are found where one of them holds the text."""
    x = TensorDescription(name=manifest.x.name, shape=(1,), dtype=manifest.x.dtype)
    return manifest.model_copy(update={"x": x})


def laid_out(layout: Layout, length: int) -> Layout:
    """Return the layout of the numbers that a text column becomes."""
    return replace(layout, features=layout.features * length)


class TextValues:
    """Rows of a table as `Values` makes them, of which the first needed column is a text.

    Parameters
    ----------
    layout
        Of the file: one feature.
    skips_blank
        Whether rows without a word are left out as missing values are, and not as bad ones.
    """

    def __init__(
        self,
        words: Words,
        what: str,
        numbers: NumberFormat,
        layout: Layout,
        labels: Labels,
        account: Account,
        *,
        since: float,
        skips_blank: bool,
    ) -> None:
        self._words = words
        self._place = f"{what}: row {{}}, column {layout.names[layout.features[0]]!r}"
        self._account = account
        self._skips_blank = skips_blank
        self._rest = Values(what, numbers, replace(layout, features=()), labels, account, since=since)

    def block(self, columns: Sequence[Sequence[Any]], times: Sequence[Any] | None, rows: NDArray[np.int64]) -> Block:
        """Return the rows with words, and labels that can be read; see `Values.block`."""
        rest = self._rest.block(columns[1:], times, rows)
        texts = [columns[0][at] for at in np.flatnonzero(np.isin(rows, rest.rows)).tolist()]
        blank = np.array([text is None or not str(text).strip() for text in texts], bool)
        for row in rest.rows[blank] if not self._skips_blank else ():
            self._account.leaves_out(f"{self._place.format(row)}: has no words in it")
        if not self._skips_blank:
            rest, texts = rest.only(~blank), [text for text, empty in zip(texts, blank, strict=True) if not empty]
        length = self._words.length
        values = np.full((len(texts), length + rest.values.shape[1]), np.nan)
        values[:, length:] = rest.values
        for row, text in enumerate(texts):
            if text is not None and str(text).strip():
                values[row, :length] = self._words.numbers(str(text))
        return Block(
            values,
            rest.rows,
            lambda row, column: str(texts[row] or "") if column < length else rest.text(row, column - length),
        )

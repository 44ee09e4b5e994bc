"""Texts as numbers of words, by a bundle's vocabulary: as Keras' ``TextVectorization`` makes them with its defaults.

A text is put into small letters, its punctuation is taken out, and it is divided at blanks. A word's number is its line in the
vocabulary, from 0. What is beyond the model's length is left out, and a shorter text is filled up.
"""

from __future__ import annotations

import re

import numpy as np

from fedgrass.bundle import Manifest
from fedgrass.errors import DataError
from fedgrass.tensors import Array

# Keras' own; other scripts' marks stay.
_PUNCTUATION = re.compile(r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']""")
_PADDING = ("", "[pad]", "<pad>", "<padding>", "_pad_", "pad")
_UNKNOWN = ("[unk]", "<unk>", "<unknown>", "<oov>", "[oov]", "_unk_", "unk")


class Words:
    """Makes x of texts for one model.

    Raises
    ------
    DataError
        If the bundle has no vocabulary, or it lacks the words that stand for others; or x is no row of whole numbers.
    """

    def __init__(self, manifest: Manifest, what: str) -> None:
        words, x = manifest.data.vocabulary, manifest.x
        if not words:
            raise DataError(
                f"{what}: model {manifest.name!r} has no vocabulary to number words by, alike on every device; export it with "
                'EXPORT["data"] = {"vocabulary": [...]}, or create it with --vocabulary'
            )
        if len(x.shape) != 1:
            raise DataError(f"{what}: model {manifest.name!r} takes x {list(x.shape)}; texts need x [words]")
        self.length = x.shape[0]
        self._dtype = np.dtype(x.dtype)
        self._numbers = {word: number for number, word in reversed([*enumerate(words)])}
        self._padding = self._special(_PADDING, "padding", "an empty line, or [PAD]", what)
        self._unknown = self._special(_UNKNOWN, "unknown words", "[UNK]", what)
        # Where words were told apart by case when they were numbered, they have to be here.
        special = {words[self._padding], words[self._unknown]}
        self._keeps_case = any(word != word.lower() for word in words if word not in special)

    def numbers(self, text: str) -> Array:
        """Return a text's words as x [length]."""
        plain = _PUNCTUATION.sub("", text if self._keeps_case else text.lower())
        found = [self._numbers.get(word, self._unknown) for word in plain.split(maxsplit=self.length)[: self.length]]
        return np.array(found + [self._padding] * (self.length - len(found)), self._dtype)

    def _special(self, names: tuple[str, ...], what: str, example: str, place: str) -> int:
        found = [number for word, number in self._numbers.items() if word.lower() in names]
        if not found:
            raise DataError(
                f"{place}: the model's vocabulary has no line for {what}, such as {example}; export it with one, at its number"
            )
        return min(found)

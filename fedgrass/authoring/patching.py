"""An attribute of a library's that has another value for a time, as long as a model is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def patched(owner: object, name: str, elsewhere: object) -> Iterator[None]:
    """Let an attribute have another value for a time.

    Parameters
    ----------
    owner
        Module, class or object.
    name
        The attribute.
    elsewhere
        Its value for that time.
    """
    before = getattr(owner, name)
    setattr(owner, name, elsewhere)
    try:
        yield
    finally:
        setattr(owner, name, before)

"""Patch attributes of libraries while a model is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def patched(owner: object, name: str, elsewhere: object) -> Iterator[None]:
    """Patch an attribute within the context.

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

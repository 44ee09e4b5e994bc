"""Giving freed memory back to the device."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Have the C library return what the process has freed; it keeps it otherwise, and a little more with each round.

    See malloc_trim(3). Where there is none (musl), nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""What the next page says of what was just done: good news, or why it was refused."""

from __future__ import annotations

from collections.abc import Callable

from flask import session

from fedgrass.errors import FedgrassError

_LONGEST = 600  # characters: they travel in a cookie


def tell(message: str, *, good: bool = True) -> None:
    """Say something on the next page that is shown."""
    # Reassigned, not appended to: Flask sees a change of the session by assignment.
    session["notices"] = [*session.get("notices", []), ["good" if good else "bad", message[:_LONGEST]]]


def attempt(action: Callable[[], str]) -> bool:
    """Do something and tell its result, or why it was refused; returns whether it was done."""
    try:
        tell(action())
    except FedgrassError as error:
        tell(str(error), good=False)
        return False
    return True

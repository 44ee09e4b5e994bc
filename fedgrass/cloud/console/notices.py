"""Notices on the next page: what was just done, or why it was refused."""

from __future__ import annotations

from collections.abc import Callable

from flask import session

from fedgrass.errors import FedgrassError

_LONGEST = 600  # characters: they travel in a cookie


def tell(message: str, *, good: bool = True) -> None:
    """Show a message on the next page."""
    # Reassigned, not appended to: Flask sees a change of the session by assignment.
    session["notices"] = [*session.get("notices", []), ["good" if good else "bad", message[:_LONGEST]]]


def attempt(action: Callable[[], str]) -> bool:
    """Run an action and show its result, or why it was refused; return whether it was done."""
    try:
        tell(action())
    except FedgrassError as error:
        tell(str(error), good=False)
        return False
    return True

"""A start that a form asks for, which counts once however often the form is sent."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError
from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from fedgrass.account import Account
from fedgrass.cloud.console.notices import tell
from fedgrass.rounds_api import Started, execution_named, status_of

_ONCE = re.compile(r"^[0-9a-f]{32}$")


def once() -> str:
    """Return what tells a form from the same form of another time."""
    return secrets.token_hex(16)


def start_once(account: Account, start: Callable[[str | None], Started], endpoint: str, **values: int) -> Response:
    """Start an execution under a name of the form's own, and go to the page that follows it.

    Parameters
    ----------
    account
        The fleet's account.
    start
        Called with the name; what it raises passes.
    endpoint, values
        The page.
    """
    given = request.form.get("once", "")
    name = f"console-{given}" if _ONCE.match(given) else None
    if name is None or not status_of(account, execution_named(account, name)):
        try:
            started = start(name)
        except ClientError as error:
            # The form's other copy was faster, and saw other settings or another state.
            if error.response["Error"]["Code"] != "ExecutionAlreadyExists":
                raise
        else:
            tell(f"Round {started.round} is starting.")
            return _follow(started.execution.rsplit(":", 1)[-1], endpoint, values)
    tell("This form was sent before, and started what it says. To start another, load its page again.")
    return _follow(str(name), endpoint, values)


def _follow(execution: str, endpoint: str, values: dict[str, Any]) -> Response:
    # 303: the browser asks with GET, so loading again starts nothing.
    return redirect(url_for(endpoint, execution=execution, **values), 303)

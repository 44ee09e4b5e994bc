"""A start that a form asks for, which counts once however often the form is sent."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from botocore.exceptions import ClientError
from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from fedgrass.account import Account
from fedgrass.cloud.console import forms
from fedgrass.cloud.console.notices import tell
from fedgrass.cloud.console.preview import PREVIEW, draw
from fedgrass.errors import FedgrassError
from fedgrass.protocol import tables
from fedgrass.protocol.settings import FleetSettings
from fedgrass.rounds_api import Started, execution_named, start_rounds, status_of

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


def start_by_form(
    account: Account,
    template: str,
    settings: FleetSettings,
    start: Callable[[dict[str, Any], str | None], Started],
    endpoint: str,
    *,
    only: Collection[str] = (),
    **values: int,
) -> str | Response | tuple[str, int]:
    """Show a form of settings, and start what was sent with it; what is wrong with that stands in the form.

    Parameters
    ----------
    account
        The fleet's account.
    template
        The form's page; it has the ``form``.
    settings
        What holds if nothing is changed.
    start
        Called with what was changed, and with the execution's name.
    endpoint, values
        The page that follows, as of `start_once`; the form's page has the values too.
    only
        As of `forms.form_of`.
    """
    if request.method == "GET":
        form = forms.form_of(settings, only)
        draw(form, settings)
        return render_template(template, form=form, **values)
    form, wanted = forms.read(request.form, settings if only else None, only)
    if wanted is None:
        return render_template(template, form=form, **values), 422
    draw(form, wanted)
    if PREVIEW in request.form:
        return render_template(template, form=form, **values)
    changed = forms.differences(settings, wanted)
    try:
        return start_once(account, lambda name: start(changed, name), endpoint, **values)
    except FedgrassError as error:
        form.error = str(error)
        return render_template(template, form=form, **values), 409


def add_start(blueprint: Blueprint, account: Account, template: str, *, only: Collection[str] = ()) -> None:
    """Add the form that starts rounds with other settings than the fleet's, at ``new``.

    Parameters
    ----------
    blueprint
        The pages that it is added to.
    account
        The fleet's account.
    template
        The form's page.
    only
        As of `forms.form_of`.
    """

    @blueprint.route("/new", methods=["GET", "POST"])
    def new() -> str | Response | tuple[str, int]:
        settings = tables.load_settings(account.rounds_table, account.fleet)
        return start_by_form(account, template, settings, partial(start_rounds, account), "rounds.rounds", only=only)


def _follow(execution: str, endpoint: str, values: dict[str, Any]) -> Response:
    # 303: the browser asks with GET, so loading again starts nothing.
    return redirect(url_for(endpoint, execution=execution, **values), 303)

"""The Flask application: its pages, the templates' filters, and the error pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

from botocore.exceptions import BotoCoreError, ClientError
from flask import Flask, render_template, session
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException

from fedgrass.account import Account
from fedgrass.cli import render
from fedgrass.cloud.console import fleet_page, model_page, rounds_page, run_page, settings_page, streams
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.security import Access, protect
from fedgrass.cloud.console.starting import once
from fedgrass.errors import FedgrassError, RecordError, RoundRefusedError
from fedgrass.protocol.metrics import label

_NOTHING = "–"


def create_app(account: Account, access: Access, *, clock: Callable[[], float] = time.time) -> Flask:
    """Return the console of one fleet as a WSGI application.

    Parameters
    ----------
    access
        Who may use it.
    clock
        Epoch seconds.
    """
    app = Flask(__name__)
    # A misspelt name in a template is an error, not an empty place on the page.
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters |= {
        "percent": render.percent,
        "size": render.size,
        "when": _when,
        "ago": lambda moment_ms: _ago(clock() - float(moment_ms) / 1000),
        "span": _span,
        "number": lambda value: _NOTHING if value is None else f"{value:,}",
        "metric": label,
        "of_earlier": streams.of_earlier,
        "late_word": streams.late_word,
        "figure": lambda value: _NOTHING if value is None else f"{value:.4g}",
    }
    app.context_processor(lambda: {"fleet": account.fleet, "notices": session.pop("notices", []), "once": once})
    protect(app, access)
    app.extensions["context"] = context = Context(account, clock)
    for page in (fleet_page, rounds_page, run_page, model_page, settings_page):
        app.register_blueprint(page.pages(context))
    app.register_error_handler(FedgrassError, _refused)
    app.register_error_handler(ClientError, _denied)
    # From the narrow to the wide: each kind of failure gets its own status and advice.
    app.register_error_handler(BotoCoreError, _unreachable)
    app.register_error_handler(HTTPException, _not_served)
    return app


def prepare(app: Flask) -> None:
    """Make what is made once, so that no page waits for it; raises what AWS has against the console."""
    context: Context = app.extensions["context"]
    context.prepare()
    # Compiled now: the first visitor would else wait for every template of the page.
    for name in app.jinja_env.list_templates():
        app.jinja_env.get_template(name)


def _refused(error: FedgrassError) -> tuple[str, int]:
    status = 409 if isinstance(error, RoundRefusedError) else 404 if isinstance(error, RecordError) else 500
    return _error_page(status, "That did not work", str(error), error.code)


def _denied(error: ClientError) -> tuple[str, int]:
    what = error.response["Error"]
    message = f"{error.operation_name}: {what.get('Message') or 'no reason given'}"
    advice = "The console acts with the credentials it was started with; docs/console.md lists what they must allow."
    return _error_page(502, "AWS refused this", f"{message}. {advice}", what["Code"])


def _unreachable(error: BotoCoreError) -> tuple[str, int]:
    advice = "Check the credentials, the region and the endpoint with which the console was started, then load this page again."
    return _error_page(503, "AWS could not be asked", f"{error}. {advice}", type(error).__name__)


def _not_served(error: HTTPException) -> tuple[str, int]:
    return _error_page(error.code or 500, error.name, error.description or "", "")


def _error_page(status: int, title: str, message: str, code: str) -> tuple[str, int]:
    return render_template("error.html", title=title, message=message, code=code), status


def _when(moment: datetime | float | None) -> str:
    """Return a moment, given as such or in epoch milliseconds."""
    if moment is None:
        return _NOTHING
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(float(moment) / 1000, timezone.utc)
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        # From two of a unit on: "90 min" says more than "2 h".
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _ago(seconds: float) -> str:
    return "now" if seconds < 1 else f"{_span(seconds)} ago"

"""Who may use the console, and what other web pages may not do with it.

A browser that has the console open also has other pages open, and each of them can send requests here. So the name by which
the console is addressed must be one of its own (DNS rebinding), and whatever changes something must come from one of its own
pages, twice over: by the browser's word (``Origin``) and by a token that other pages cannot read.
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as AnyResponse

from fedgrass.errors import ConfigurationError

SHORTEST_TOKEN = 16
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_HOST = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?$")
_OPEN_TO_ALL = {"login", "static"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not no-referrer: browsers would then send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Access:
    """By which names the console is addressed, and the token that it asks for, if any."""

    hosts: tuple[str, ...] = LOOPBACK
    token: str | None = None

    @classmethod
    def of(cls, host: str, names: Collection[str] = (), token: str | None = None) -> Access:
        """Decide by the listening address who may use the console.

        Parameters
        ----------
        host
            Address that it listens on.
        names
            Further names by which browsers reach it.
        token
            What browsers must know; required beyond this machine.

        Returns
        -------
        Access
            The names that requests may use, and the token.

        Raises
        ------
        ConfigurationError
            If others than this machine can reach the address and there is no token, or nothing says how it is called.
        """
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"the console's token has {len(token)} characters; at least {SHORTEST_TOKEN} are needed"
            )
        if is_loopback(host):
            return cls((*LOOPBACK, *(name.lower() for name in names)), token)
        if token is None:
            raise ConfigurationError(
                f"--host {host}: others can reach this address, so a token is needed: set FEDGRASS_CONSOLE_TOKEN"
            )
        # 0.0.0.0 is where it listens, not what a browser can call it.
        if not _is_any_address(host):
            names = (*names, f"[{host}]" if ":" in host else host)
        if not names:
            raise ConfigurationError(f"--host {host}: say by which name browsers reach it, with --name")
        return cls(tuple(name.lower() for name in names), token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def protect(app: Flask, access: Access) -> None:
    """Have every request checked, and every answer carry the headers that bind browsers."""
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),  # created again at each start: nobody stays logged in, and nothing is kept
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        MAX_CONTENT_LENGTH=1 << 20,
    )
    _check_requests(app, access)
    _add_login(app, access)


def _check_requests(app: Flask, access: Access) -> None:
    @app.before_request
    def _check() -> AnyResponse | None:
        # First: with DNS rebinding a foreign page reaches this address under its own name, and would pass for the same
        # origin.
        name = _HOST.match(request.headers.get("Host", ""))
        if name is None or name[1].lower() not in access.hosts:
            abort(400, f"This console is called {', '.join(access.hosts)}; for another name start it with --name.")
        if access.token is not None and not session.get("known") and request.endpoint not in _OPEN_TO_ALL:
            return redirect(url_for("login"), 303)
        if request.method not in {"GET", "HEAD"}:
            _require_own_page()
        return None

    @app.after_request
    def _bind_browser(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.context_processor
    def _for_templates() -> dict[str, object]:
        return {"csrf_token": csrf_token, "may_log_out": access.token is not None and session.get("known", False)}


def _add_login(app: Flask, access: Access) -> None:
    @app.route("/login", methods=["GET", "POST"])
    def login() -> str | AnyResponse | tuple[str, int]:
        if access.token is None:
            return redirect("/", 303)
        if request.method == "GET":
            return render_template("login.html", refused=False)
        # Constant time: the answer's delay must not tell how much of the token was right.
        if not hmac.compare_digest(request.form.get("token", "").encode(), access.token.encode()):
            return render_template("login.html", refused=True), 403
        # What the browser carried before it was known is dropped with the log-in.
        session.clear()
        session["known"] = True
        return redirect("/", 303)

    @app.post("/logout")
    def logout() -> AnyResponse:
        session.clear()
        return redirect(url_for("login"), 303)


def csrf_token() -> str:
    """Return the token that this browser's forms carry."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(32)
    return str(session["csrf"])


def _require_own_page() -> None:
    # Browsers set Origin on every form that is posted; only a program leaves it out.
    origin = request.headers.get("Origin")
    if origin is None or urlsplit(origin).netloc != request.host:
        abort(403, f"This request comes from {origin or 'a page that does not say which it is'}, not from the console.")
    given = request.form.get("csrf", "")
    # An empty token equals an empty session: hence the last condition.
    if not hmac.compare_digest(given.encode(), str(session.get("csrf", "")).encode()) or not given:
        abort(403, "This form is from before the console was started again. Go back, load the page again, and repeat.")

"""Other accounts: stand-ins that share a folder find each other there, and a role assumed in one account acts in that account.

On AWS every account has the same endpoints, and the credentials say whose a request is. Here each account has an endpoint of its
own: a request whose credentials are another account's is passed on to that.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from werkzeug import Response

from fedgrass.local.aws.account import ACCOUNT, Keys
from fedgrass.local.aws.api import signing_name
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_KEY = re.compile(r"<AccessKeyId>([A-Z0-9]+)</AccessKeyId>")
_SIGNED_WITH = re.compile(r"Credential=[^/,]+/")
# Headers of one connection, not of the message (RFC 9110, 7.6.1), and those that the next client writes itself.
_NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}
_TIMEOUT_S = 60.0


class Peers:
    """The other accounts, by what their stand-ins wrote into the folder.

    Parameters
    ----------
    folder
        Where each account's stand-in leaves ``<account>.json``; None if there are no others.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._of_keys: dict[str, str] = {}
        self._lock = threading.Lock()

    def join(self, ready: Mapping[str, object]) -> Path | None:
        """Let the others find this account; returns the file that says so."""
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{ACCOUNT}.json"
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        # Before there is a secret in it, and under another name: a reader must find all of it or nothing.
        partial.touch(0o600)
        partial.write_text(json.dumps(ready))
        partial.replace(path)
        return path

    def knows(self, access_key: str) -> bool:
        """Whether a key is one that another account gave out, by way of this endpoint."""
        with self._lock:
            return access_key in self._of_keys

    def pass_on(self, access_key: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send a request with another account's key to that account's process.

        Parameters
        ----------
        access_key
            The key that signed the request.
        environ
            The request, as of WSGI.
        start_response
            As of WSGI.

        Returns
        -------
        Iterable
            The answer's body.
        """
        with self._lock:
            account = self._of_keys[access_key]
        return self._send(account, environ, _body(environ))(environ, start_response)

    def assume(self, environ: WSGIEnvironment) -> Response | None:
        """Have another account's STS answer, if a request is to assume a role there; None for all other requests."""
        if self._folder is None or signing_name(environ.get("HTTP_AUTHORIZATION")) != "sts":
            return None
        body = _body(environ)
        asked = parse_qs(body.decode(errors="replace"))
        # arn:aws:iam::ACCOUNT:role/NAME
        account = asked.get("RoleArn", [""])[0].split(":")[4:5]
        if asked.get("Action") != ["AssumeRole"] or account in ([], [ACCOUNT]) or self._ready(account[0]) is None:
            return None
        # Under the other account's own key, for it would refuse ours; on AWS its trust policy would decide.
        answer = self._send(account[0], environ, body, own_key=True)
        # Requests with this key will come to us, as the client knows no other endpoint.
        for key in _KEY.findall(answer.get_data(as_text=True)):
            with self._lock:
                self._of_keys[key] = account[0]
        return answer

    def _ready(self, account: str) -> dict[str, object] | None:
        # The number comes from a request: anything but digits might name a file elsewhere.
        path = self._folder / f"{account}.json" if self._folder is not None and account.isdecimal() else None
        if path is None or not path.is_file():
            return None
        found: dict[str, object] = json.loads(path.read_text())
        return found

    def _send(self, account: str, environ: WSGIEnvironment, body: bytes, *, own_key: bool = False) -> Response:
        ready = self._ready(account)
        if ready is None:
            return Response(f"Account {account} is not running here.", status=503)
        headers = {
            name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")
        }
        headers = {name: value for name, value in headers.items() if name not in _NOT_PASSED_ON}
        if environ.get("CONTENT_TYPE"):
            headers["content-type"] = environ["CONTENT_TYPE"]
        if own_key:
            keys = Keys(str(ready["access_key"]), str(ready["secret_key"]))
            headers["authorization"] = _SIGNED_WITH.sub(f"Credential={keys.access_key}/", headers["authorization"])
        address = urlsplit(str(ready["endpoint_url"]))
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
        try:
            connection.request(environ["REQUEST_METHOD"], environ.get("RAW_URI") or environ["PATH_INFO"], body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError as error:
            log_event("account_unreachable", account=account, error=str(error))
            return Response(f"Account {account} does not answer.", status=503)
        finally:
            connection.close()
        passed = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NOT_PASSED_ON]
        response = Response(content, status=answer.status, headers=passed)
        # Answers to HEAD have no body to count: the length of the object is what the other account says it is.
        if environ["REQUEST_METHOD"] == "HEAD":
            response.headers["Content-Length"] = answer.getheader("Content-Length") or "0"
        return response


def _body(environ: WSGIEnvironment) -> bytes:
    """Read a request's body and leave it to be read again."""
    # Set for a chunked body, which has no length and ends by itself.
    if environ.get("wsgi.input_terminated"):
        body: bytes = environ["wsgi.input"].read()
    else:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    # It is whole and has a length now.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    return body

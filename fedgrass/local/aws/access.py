"""Who gets in: those with a key that this start gave out, and no web page.

A page in a developer's browser can send requests to loopback, whichever site it is of; here one of them would run a command
(a Processing job's entry point). Browsers say where a request comes from (``Origin``) and what its address was called
(``Host``, another site's name after DNS rebinding). What has neither, as an image's address, lacks the key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from werkzeug import Response

from fedgrass.local.aws.account import REGION, Keys
from fedgrass.local.aws.api import ApiError, signing_name
from fedgrass.local.aws.peers import Peers
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_NAMES = {"127.0.0.1", "localhost"}
"""What the endpoint is called; the port is not compared, as a client may go through a proxy of its own."""


class Guard:
    """WSGI application that refuses a request, or hands it on.

    Parameters
    ----------
    keys
        The account's own.
    is_session_key
        Whether an access key is one that STS gave out.
    peers
        Other accounts, to which goes what is theirs.
    """

    def __init__(
        self,
        application: WSGIApplication,
        keys: Keys,
        is_session_key: Callable[[str], bool],
        peers: Peers,
    ) -> None:
        self._application = application
        self._keys = keys
        self._is_session_key = is_session_key
        self._peers = peers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        refusal = self._refusal(environ)
        if refusal is None:
            key = access_key(environ) or ""
            # Another account's key makes it a request to that account, whatever it asks for.
            if self._peers.knows(key):
                return self._peers.pass_on(key, environ, start_response)
            # With our own key, one kind of request still belongs elsewhere: AssumeRole of another account's role.
            elsewhere = self._peers.assume(environ)
            return (elsewhere or self._application)(environ, start_response)
        log_event("aws_request_refused", path=environ.get("PATH_INFO"), reason=str(refusal))
        return _answer(refusal, environ)(environ, start_response)

    def _refusal(self, environ: WSGIEnvironment) -> ApiError | None:
        if "HTTP_ORIGIN" in environ:
            return _denied(f"Origin {environ['HTTP_ORIGIN']!r}: no web page may use this endpoint.")
        host = environ.get("HTTP_HOST", "")
        if _name_of(host) not in _NAMES:
            return _denied(f"Host {host!r}: expected 127.0.0.1 or localhost.")
        key = access_key(environ)
        if key is None:
            return _denied("The request is not signed.", "MissingAuthenticationToken")
        region = _region(environ)
        if region not in (None, REGION):
            return _denied(
                f"The request is for region {region}: this account has {REGION} alone.", "InvalidClientTokenId"
            )
        # In constant time: nothing here verifies signatures, so the access key is itself the secret.
        own = hmac.compare_digest(key.encode(), self._keys.access_key.encode())
        if not (own or self._is_session_key(key) or self._peers.knows(key)):
            return _denied(
                f"Access key {key[:9]!r}… is not of this start of the local AWS: take the variables that it gives "
                "(endpoint.json in its folder; .fedgrass/demo/environment of a demo).",
                "InvalidClientTokenId",
            )
        return None


def access_key(environ: WSGIEnvironment) -> str | None:
    """Return the access key that a request is signed with, in its header or, presigned, in its address."""
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    if "Credential=" in header:
        return header.split("Credential=", 1)[1].split("/", 1)[0]
    # Presigned addresses have it in the query: SigV4 as a credential, SigV2 (boto3's default for S3) as the bare key.
    query = parse_qs(str(environ.get("QUERY_STRING", "")))
    if "X-Amz-Credential" in query:
        return query["X-Amz-Credential"][0].split("/", 1)[0]
    return query["AWSAccessKeyId"][0] if "AWSAccessKeyId" in query else None


def _region(environ: WSGIEnvironment) -> str | None:
    """Return the region that a request is signed for; None for S3, which tells in its own way, and for other signatures."""
    # The scope of SigV4 is KEY/date/region/service/aws4_request.
    scope = str(environ.get("HTTP_AUTHORIZATION", "")).partition("Credential=")[2].partition(",")[0].split("/")
    return scope[2] if len(scope) >= 5 and scope[3] != "s3" else None


def _answer(refusal: ApiError, environ: WSGIEnvironment) -> Response:
    """Write the refusal in the protocol of the request, so that the SDK can read it."""
    # The query protocol (IAM, STS, CloudFormation) sends forms and, like S3, reads its errors as XML.
    form = str(environ.get("CONTENT_TYPE", "")).startswith("application/x-www-form-urlencoded")
    storage = signing_name(environ.get("HTTP_AUTHORIZATION")) == "s3"
    if not (form or storage):
        return refusal.response()
    error = f"<Error><Code>{refusal.name}</Code><Message>{escape(str(refusal))}</Message></Error>"
    body = error if storage else f"<ErrorResponse>{error}</ErrorResponse>"
    return Response(body, status=refusal.status, content_type="application/xml")


def _name_of(host: str) -> str:
    try:
        # Through a URL, for this takes a port off and knows the brackets of IPv6.
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _denied(reason: str, name: str = "AccessDeniedException") -> ApiError:
    return ApiError(name, f"{reason} Nothing was done.", status=403)

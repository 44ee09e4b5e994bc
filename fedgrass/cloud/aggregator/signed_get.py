"""Objects fetched by small signed requests on connections that are kept, for a fifth of the processor time that boto3 takes.

boto3 says how: the first object of a bucket is fetched by it, and what it asked for, where, and as whom is the pattern of all
that follow. Whatever is not a plain answer (a redirect, a refusal, an unknown kind of signature, a proxy) is left to boto3 again,
which knows it all and has the words for it. Why so: docs/decisions/0067-updates-by-signed-requests.md.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import percent_encode
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from fedgrass.cloud.aggregator.kept_connections import Connections, Exchange, SignedAnswer
from fedgrass.logs import Log

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = Log(__name__)

_ATTEMPTS = 8
_BUSY = frozenset({429, 500, 502, 503, 504})
# S3 says these with a status of 400 or 403, though asking again helps: credentials are asked for anew each time.
_PASSING = (b"<Code>RequestTimeout<", b"<Code>ExpiredToken<", b"<Code>SlowDown<")
_SKEWED = b"<Code>RequestTimeTooSkewed<"
_SKEW_TOLD = timedelta(seconds=60)  # a correction by less would change nothing: S3 allows 15 minutes
_SIGNATURES = frozenset({"v4", "s3v4"})


@dataclass(frozen=True)
class _Pattern:
    """How boto3 asked for an object: all but its key."""

    scheme: str
    host: str
    prefix: str  # of the path, before the key
    service: str
    region: str
    signer: Any  # botocore's: gives credentials that are fresh
    headers: Mapping[str, str]

    @classmethod
    def of(cls, seen: Mapping[str, Any], key: str) -> _Pattern | None:
        """Return what follows from a request of boto3's; None if its like cannot be made here."""
        parts, quoted = urlsplit(seen["request"].url), percent_encode(key, safe="/~")
        if seen["signature_version"] not in _SIGNATURES or not parts.path.endswith("/" + quoted):
            return None
        headers = {
            # botocore's values are text or bytes.
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in seen["request"].headers.items()
            if _is_kept(name.lower())
        }
        return cls(
            scheme=parts.scheme,
            host=parts.netloc,
            prefix=parts.path[: -len(quoted)],
            service=seen["signing_name"],
            region=seen["region_name"],
            signer=seen["request_signer"],
            headers=headers,
        )


def _is_kept(name: str) -> bool:
    return name == "user-agent" or name.startswith("x-amz-")


class _BusyError(Exception):
    """S3 gave an error that may not be there when it is asked again."""


class _ShiftedAuth(S3SigV4Auth):
    """botocore's signature of one request, at the server's time rather than this machine's."""

    def __init__(self, *arguments: Any, ahead: timedelta) -> None:
        super().__init__(*arguments)
        self._ahead = ahead
        self._signed: Any = None

    def headers_to_sign(self, request: Any) -> Any:
        """Return the headers that are signed, found once: botocore asks twice, for what is an eighth of a request's time."""
        if self._signed is None:
            self._signed = super().headers_to_sign(request)
        return self._signed

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = (datetime.now(timezone.utc) + self._ahead).strftime(SIGV4_TIMESTAMP)
        super()._modify_request_before_signing(request)  # type: ignore[misc] # not in the stubs


class SignedGets:
    """Reads of one client's objects.

    Parameters
    ----------
    client
        boto3's S3 client, for endpoint, credentials, certificates and all that is not a plain answer.
    sleep
        Waits so many seconds between attempts.
    """

    def __init__(self, client: S3Client, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._repeating = Retrying(
            retry=retry_if_exception_type((OSError, HTTPException, _BusyError)),
            stop=stop_after_attempt(_ATTEMPTS),
            # Full jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter
            wait=wait_random_exponential(multiplier=0.1, max=20),
            before_sleep=_tell,
            sleep=sleep,
            reraise=True,
        )
        self._seen = threading.local()
        self._watching = threading.Lock()
        self._watched = False
        self._patterns: dict[str, _Pattern | None] = {}
        self._connections: dict[tuple[str, str], Connections] = {}
        self._ahead = timedelta()

    def by_boto3(self, request: Mapping[str, Any]) -> Any:
        """Let boto3 fetch an object, and learn from it how others of the bucket are fetched.

        Parameters
        ----------
        request
            Arguments of ``get_object``.
        """
        self._watch()
        self._seen.signed = self._seen.sent = None
        answer = self._client.get_object(**request)
        self._patterns[request["Bucket"]] = self._pattern(request["Key"])
        return answer

    def head(self, request: Mapping[str, Any]) -> Mapping[str, str] | None:
        """Have boto3 ask what an object is, with its checksum; None if it gets no answer.

        Parameters
        ----------
        request
            Arguments of ``head_object``.

        Returns
        -------
        Mapping or None
            The answer's headers, their names in lower case.
        """
        try:
            headers: Mapping[str, str] = self._client.head_object(**request, ChecksumMode="ENABLED")[
                "ResponseMetadata"
            ]["HTTPHeaders"]
        except (BotoCoreError, ClientError, RuntimeError):
            return None
        return headers

    def begin(self, request: Mapping[str, Any]) -> Exchange | None:
        """Ask for an object without waiting for the answer, which `get` takes; None if that must be left to `get` altogether.

        Parameters
        ----------
        request
            As `get` takes it.
        """
        pattern = self._patterns.get(request["Bucket"])
        try:
            return None if pattern is None else self._start(pattern, request)
        # Whatever it is: `get` meets it again, and asks again or has boto3 tell.
        except (BotoCoreError, OSError, HTTPException, RuntimeError):
            return None

    def get(self, request: Mapping[str, Any], begun: Exchange | None = None) -> SignedAnswer | None:
        """Fetch an object.

        Parameters
        ----------
        request
            Arguments of ``get_object``: ``Bucket``, ``Key``, and none or more of ``VersionId``, ``IfMatch`` and ``Range``.
        begun
            What `begin` returned for it.

        Returns
        -------
        SignedAnswer or None
            A plain answer; None if there is none, for boto3 to ask and to tell why.
        """
        pattern = self._patterns.get(request["Bucket"])
        if pattern is None:
            return None
        try:
            answer: SignedAnswer | None = self._repeating(self._once, pattern, request, [begun] if begun else [])
        except (OSError, HTTPException, _BusyError):
            return None
        return answer

    def _once(self, pattern: _Pattern, request: Mapping[str, Any], begun: list[Exchange]) -> SignedAnswer | None:
        """Ask once; None if there is no plain answer, and asking again would not help."""
        try:
            # What was begun is good for the first time only.
            answer = self._ask(pattern, request, begun.pop() if begun else None)
            if not answer.is_plain and self._is_corrected(answer):
                answer = self._ask(pattern, request, None)
        except ssl.SSLCertVerificationError:
            return None
        if answer.is_plain:
            return answer
        if answer.status in _BUSY or any(code in answer.refusal() for code in _PASSING):
            raise _BusyError(f"HTTP {answer.status}")
        return None

    def _watch(self) -> None:
        """See from now on what boto3 asks for; each thread its own."""
        with self._watching:
            if not self._watched:
                self._client.meta.events.register("before-sign.s3.GetObject", self._on_signing)
                self._client.meta.events.register("before-send.s3.GetObject", self._on_sending)
                self._watched = True

    def _on_signing(self, **signed: Any) -> None:
        self._seen.signed = signed

    def _on_sending(self, request: Any, **_: Any) -> None:
        self._seen.sent = request

    def _pattern(self, key: str) -> _Pattern | None:
        if self._seen.signed is None or self._seen.sent is None:
            return None
        pattern = _Pattern.of(self._seen.signed, key)
        if pattern is None or self._is_answered_here() or not self._connect(pattern):
            return None
        return pattern

    def _is_answered_here(self) -> bool:
        """Whether somebody answers in the network's place, as tests' stand-ins do."""
        event = "before-send.s3.GetObject"
        return any(answer is not None for _, answer in self._client.meta.events.emit(event, request=self._seen.sent))

    def _connect(self, pattern: _Pattern) -> bool:
        """Make room for connections as boto3 makes them; whether they go straight to the endpoint."""
        where = pattern.scheme, pattern.host
        if where in self._connections:
            return True
        try:
            session: Any = self._client._endpoint.http_session  # type: ignore[attr-defined]
            if session._proxy_config.proxy_url_for(f"{pattern.scheme}://{pattern.host}"):
                return False
            context = _context(session) if pattern.scheme == "https" else None
        # Where botocore keeps its certificates is its own affair: boto3 itself does what cannot be made like it.
        except AttributeError as error:
            log.log_event("signed_requests_unavailable", error=str(error))
            return False
        self._connections[where] = Connections(pattern.host, context, self._client.meta.config)
        return True

    def _start(self, pattern: _Pattern, request: Mapping[str, Any]) -> Exchange:
        path = pattern.prefix + percent_encode(request["Key"], safe="/~")
        if version := request.get("VersionId"):
            path += f"?versionId={percent_encode(version)}"
        headers = dict(pattern.headers)
        if tag := request.get("IfMatch"):
            headers["If-Match"] = tag
        if span := request.get("Range"):
            headers["Range"] = span
        signed = AWSRequest("GET", f"{pattern.scheme}://{pattern.host}{path}", headers)
        # By botocore's signer, so that credentials near their end are renewed as they are for all of boto3's requests.
        credentials = pattern.signer.get_auth_instance(pattern.service, pattern.region, "s3v4").credentials
        _ShiftedAuth(credentials, pattern.service, pattern.region, ahead=self._ahead).add_auth(signed)
        return self._connections[pattern.scheme, pattern.host].send(path, dict(signed.headers.items()))

    def _ask(self, pattern: _Pattern, request: Mapping[str, Any], begun: Exchange | None) -> SignedAnswer:
        exchange = begun or self._start(pattern, request)
        while True:
            try:
                return exchange.answer()
            except TimeoutError:
                raise
            # Servers close what rests for long, sometimes just as it is used: that tells nothing about the request.
            except (OSError, HTTPException):
                if not exchange.is_reused:
                    raise
            exchange = self._start(pattern, request)

    def _is_corrected(self, answer: SignedAnswer) -> bool:
        """Take over the server's clock if it refuses ours; whether that changes anything."""
        if _SKEWED not in answer.refusal():
            return False
        try:
            ahead = parsedate_to_datetime(answer.headers["date"]) - datetime.now(timezone.utc)
        except (KeyError, ValueError, TypeError):
            return False
        changes = abs(ahead - self._ahead) > _SKEW_TOLD
        if changes:
            self._ahead = ahead
            log.log_event("clock_differs_from_s3", seconds=round(ahead.total_seconds()))
        return changes


def _tell(state: RetryCallState) -> None:
    request, failure = state.args[1], state.outcome and state.outcome.exception()
    reason = str(failure) if isinstance(failure, _BusyError) else f"{type(failure).__name__}: {failure}"
    name = f"s3://{request['Bucket']}/{request['Key']}"
    log.log_event("object_request_repeated", object=name, attempt=state.attempt_number, error=reason)


def _context(session: Any) -> ssl.SSLContext:
    """Return what boto3 trusts, and shows of itself."""
    if session._verify:
        context = ssl.create_default_context(cafile=get_cert_path(session._verify))
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if session._cert_file:
        context.load_cert_chain(session._cert_file, session._key_file)
    return context

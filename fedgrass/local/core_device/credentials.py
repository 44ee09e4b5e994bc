"""The device's role credentials, and the token exchange service that hands them to its components.

``sts:AssumeRole`` stands in for the IoT credentials provider. Components get them as boto3 asks for them: an HTTP GET
of ``AWS_CONTAINER_CREDENTIALS_FULL_URI`` with ``AWS_CONTAINER_AUTHORIZATION_TOKEN`` in ``Authorization``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_sts import STSClient

_RETRY_SECONDS, _LEAST_RETRY_SECONDS = 300.0, 10.0
_PATH = "/2016-11-01/credentialprovider/"
_REFRESH_BEFORE = timedelta(minutes=5)
_READ_TIMEOUT = 10.0


@dataclass(frozen=True)
class Credentials:
    """Temporary credentials of the device's role."""

    access_key: str
    secret_key: str
    token: str
    expires: datetime

    def metadata(self) -> dict[str, str]:
        """Return them as botocore's refreshable credentials want them."""
        expiry = self.expires.isoformat()
        return {
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "token": self.token,
            "expiry_time": expiry,
        }


class RoleCredentials:
    """Assumes the token exchange role, and again shortly before the credentials expire."""

    def __init__(self, sts: STSClient, *, role_arn: str, thing: str) -> None:
        self._sts = sts
        self._role_arn = role_arn
        self._thing = thing
        self._current: Credentials | None = None

    def get(self) -> Credentials:
        """Return valid credentials; blocks on the network when they are due."""
        now = datetime.now(timezone.utc)
        # Before they expire: a caller may use them for some minutes after this.
        if self._current is None or self._current.expires - now < _REFRESH_BEFORE:
            answer = self._sts.assume_role(RoleArn=self._role_arn, RoleSessionName=self._thing)["Credentials"]
            self._current = Credentials(
                answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"], answer["Expiration"]
            )
        return self._current


def kept_failure(configuration: Mapping[str, Any], default: float) -> float:
    """Return for how long a failed connection is kept.

    Parameters
    ----------
    configuration
        Of the service's component: ``credentialRetryInSec.unknownError`` is 300 s if it is not set, and 10 s at least.
    default
        Seconds that stand here for those 300.

    Returns
    -------
    float
        Seconds.
    """
    try:
        wanted = float(configuration["credentialRetryInSec"]["unknownError"])
    except (KeyError, TypeError, ValueError):
        return default
    return default * max(wanted, _LEAST_RETRY_SECONDS) / _RETRY_SECONDS


class TokenExchangeService:
    """The HTTP endpoint on loopback.

    Parameters
    ----------
    keeps_failure
        Returns for how many seconds it goes on answering 500 after it got no connection, whether there is a link again or not.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        authenticate: Callable[[str], str | None],
        *,
        keeps_failure: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._authenticate = authenticate
        self._keeps_failure = keeps_failure
        self._clock = clock
        self._failed_until = float("-inf")
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What components get as ``AWS_CONTAINER_CREDENTIALS_FULL_URI``."""
        if self._server is None:
            return ""
        return f"http://127.0.0.1:{self.port}{_PATH}"

    @property
    def port(self) -> int:
        """Where it listens; 0 while it does not."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server is not None else 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_TIMEOUT)
            status, body = await self._answer(head.decode("latin-1"))
            content = json.dumps(body).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
                + content
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, ConnectionError):
            pass  # the client went away or is not speaking HTTP
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, head: str) -> tuple[str, dict[str, str]]:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if method != "GET" or rest.split(" ")[0] != _PATH:
            return "404 Not Found", {"message": f"only GET {_PATH} is served"}
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        component = self._authenticate(headers.get("authorization", ""))
        if component is None:
            return "403 Forbidden", {"message": "the token is not one of a component"}
        # The classic nucleus keeps a failed connection, so a link that is back changes nothing until the time is up.
        if self._clock() < self._failed_until:
            return "500 Internal Server Error", {"message": "Failed to get connection"}
        try:
            # It may wait for the network, and the loop serves all components.
            current = await asyncio.to_thread(self._credentials)
        except Exception as error:  # noqa: BLE001 - botocore has no common base for what can go wrong here
            self._failed_until = self._clock() + self._keeps_failure()
            log_event("credentials_unavailable", component=component, error=repr(error))
            return "500 Internal Server Error", {"message": "Failed to get connection"}
        return "200 OK", {
            "AccessKeyId": current.access_key,
            "SecretAccessKey": current.secret_key,
            "Token": current.token,
            # The form that SDKs parse: UTC, with a Z and without fractions.
            "Expiration": current.expires.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

"""Where a device gets credentials for S3, and whether it has some: what an upload waits for, without Stream Manager saying so.

The token exchange service of the classic nucleus goes on answering 500 for up to five minutes after the link is back, to whoever
asks, and so an upload may wait although everything else flows.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedgrass.edge.backoff import Backoff
from fedgrass.errors import IpcError

if TYPE_CHECKING:
    from fedgrass.edge.ipc import Ipc
    from fedgrass.logs import Log

_URI, _TOKEN = "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN"
_SERVICE = "aws.greengrass.TokenExchangeService"
_PATH = "/2016-11-01/credentialprovider/"
_AGAIN_SECONDS = 0.5
_QUIET_SECONDS = 10.0
"""Seconds without news of an upload before it is asked why: a round's update arrives in less."""


def find_service(ipc: Ipc, *, patience: float = 10.0) -> None:
    """Put the token exchange service's address into this process's environment, which its children have too.

    The classic nucleus does that for what starts after the service, and lets a component wait for the service only where the
    dependency is HARD; so is none, as nucleus lite makes BindsTo of it. A component that was sooner has no address, or after a
    boot the one of before. The service's configuration has the port that it listens on now; on nucleus lite it has none, and the
    environment is right.

    Parameters
    ----------
    patience
        Seconds to wait for a service that does not listen yet.
    """
    until = time.monotonic() + patience
    while True:
        try:
            port = ipc.get_configuration(_SERVICE).get("activePort")
        except IpcError:
            return  # as for all else that is asked of IPC: the next time will tell
        if not isinstance(port, int | float):
            return
        if 0 < port < 1 << 16 and _listens(int(port)):
            os.environ[_URI] = f"http://localhost:{int(port)}{_PATH}"
            return
        if time.monotonic() >= until:
            return
        time.sleep(_AGAIN_SECONDS)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=_AGAIN_SECONDS).close()
    except OSError:
        return False
    return True


def refusal(timeout: float = 10.0) -> str:
    """Ask the nucleus for credentials, as the AWS SDKs do.

    Parameters
    ----------
    timeout
        Seconds.

    Returns
    -------
    str
        Why there are none; nothing if there are, or if this process's environment does not say whom to ask.
    """
    # Imported for a device in trouble alone: an idle component needs no HTTP.
    import urllib.error
    import urllib.request

    if not (uri := os.environ.get(_URI)):
        return ""
    try:
        request = urllib.request.Request(uri, headers={"Authorization": os.environ.get(_TOKEN, "")})  # noqa: S310
        # Not through a proxy: the service is on loopback.
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return f"the token exchange service answers {error.code}"
    except (OSError, ValueError) as error:
        return f"the token exchange service does not answer ({getattr(error, 'reason', None) or error})"
    return ""


class CredentialsWatch:
    """Says for how long there have been no credentials while an upload waits.

    Parameters
    ----------
    ask
        Returns why there are none, or nothing.
    clock
        Seconds that only go up.
    """

    def __init__(
        self, log: Log, *, ask: Callable[[], str] = refusal, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._ask = ask
        self._clock = clock
        self._missing_since: float | None = None
        self._backoff = Backoff(first=_QUIET_SECONDS, most=120)
        self._next = 0.0
        self._said = ""

    def look(self, quiet: float) -> None:
        """Ask, if there has been no news of the uploads for so many seconds and it was not asked just now."""
        # Most looks end here: uploads are moving, and the service is left alone.
        now = self._clock()
        if quiet < _QUIET_SECONDS:
            self._missing_since, self._next = None, 0.0
            self._backoff.succeeded()
            self._forget()
            return
        if now < self._next:
            return
        self._next = now + self._backoff.failed()
        if not (reason := self._ask()):
            self._missing_since = None
            self._forget()
            return
        # Counted from the uploads' last sign of life, not from the first look.
        if self._missing_since is None:
            self._missing_since = now - quiet
        seconds = round(now - self._missing_since)
        self._log.log_event("upload_waiting", reason=f"no credentials for {seconds} s ({reason})")
        self._said = self._log.last_error

    def _forget(self) -> None:
        """Forget what was reported: the device no longer has that problem."""
        self._log.passed(self._said)
        self._said = ""

"""Whether the device has credentials for S3: what an upload waits for, without Stream Manager saying so.

The token exchange service of the classic nucleus goes on answering 500 for up to five minutes after the link is back, to whoever
asks, and so an upload may wait although everything else flows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedgrass.edge.backoff import Backoff

if TYPE_CHECKING:
    from fedgrass.logs import Log

_URI, _TOKEN = "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN"
_QUIET_SECONDS = 10.0
"""Seconds without news of an upload before it is asked why: a round's update arrives in less."""


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

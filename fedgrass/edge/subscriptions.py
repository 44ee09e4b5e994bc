"""The streams of a component's subscriptions, each kept open, and renewed where it may silently go deaf.

Nucleus lite forgets the subscriptions to IoT Core when its MQTT daemon restarts, and leaves the components' streams open. So
those are renewed on a schedule, and at once when the daemon is seen to be another: the new stream first, then the old one is
closed, so that nothing falls between the two and what comes on both is heard twice. A retained message comes again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fedgrass.edge.backoff import Backoff
from fedgrass.errors import IpcError
from fedgrass.logs import Log

if TYPE_CHECKING:
    from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2


class Closable(Protocol):
    """An operation of the SDK's: an open stream."""

    def close(self) -> object:
        """End it."""
        ...


Open: TypeAlias = (
    "Callable[[GreengrassCoreIPCClientV2, dict[str, Callable[..., object]]], tuple[Future[object], Closable]]"
)
"""Opens a stream on the SDK's client with its handlers; returns its future and operation."""
Call: TypeAlias = "Callable[[str, Callable[[GreengrassCoreIPCClientV2], Future[object]]], object]"

# Between two looks at the MQTT daemon's process: reading one small file of the kernel's.
_LOOK_SECONDS = 2.0
# A tenth: without it all devices that were started by one deployment renew in the same second.
_JITTER = 0.1


@dataclass
class Subscription:
    """One stream that must stay open. ``open`` starts it on a client and returns the SDK's (future, operation)."""

    name: str
    open: Open
    received: Callable[[Any], None]
    backoff: Backoff
    optional: bool
    renewed: bool
    operation: Closable | None = None
    given_up: bool = False
    due: float = 0.0
    # Number of the stream opened last: events of a stream that was replaced are told apart by it.
    generation: int = 0
    heard_from: int = 0


class Subscriptions:
    """All of a component's; `work` is done by one thread, `add` comes from another.

    Parameters
    ----------
    call
        Makes an IPC call by its name, on the client at hand.
    unsupported
        Whether an error says that the nucleus lacks the operation.
    renewal
        Seconds after which a stream that may go deaf is opened again, less or more a tenth.
    daemon
        Tells which MQTT daemon the nucleus has; "" where that cannot be seen.
    wake
        Set when there is something to do.
    """

    def __init__(
        self,
        call: Call,
        log: Log,
        *,
        unsupported: Callable[[IpcError], bool],
        renewal: float,
        daemon: Callable[[], str],
        wake: threading.Event,
    ) -> None:
        self._call = call
        self._log = log
        self._unsupported = unsupported
        self._renewal = renewal
        self._daemon = daemon
        self._seen = daemon()
        self._wake = wake
        # One opening at a time: `add` comes from the loop's thread, `work` from the maintenance thread.
        self._lock = threading.Lock()
        self._all: list[Subscription] = []
        self._unavailable: set[str] = set()

    def add(
        self,
        name: str,
        start: Open,
        received: Callable[[Any], None],
        *,
        optional: bool = False,
        renewed: bool = False,
    ) -> None:
        """Subscribe, and keep the subscription up through reconnections.

        Parameters
        ----------
        name
            Names it in the log.
        start
            Opens the stream.
        received
            Called with each event, on the IPC library's thread.
        optional
            Whether a nucleus without this operation is put up with.
        renewed
            Whether it is opened again from time to time: nucleus lite loses some without a sign.
        """
        backoff = Backoff(first=0.5, most=30)
        subscription = Subscription(name, start, received, backoff, optional=optional, renewed=renewed)
        self._all.append(subscription)
        self._open(subscription)
        self._wake.set()  # there is one more to look after

    def wait_seconds(self) -> float | None:
        """Seconds until there is something to do; None if nothing is known to come."""
        # Copied, because another thread may add to it.
        due = min((s.due for s in list(self._all) if not s.given_up), default=float("inf"))
        wait = max(0.0, due - time.monotonic())
        # On nucleus lite the daemon is looked at even if nothing is due.
        if self._seen:
            return min(wait, _LOOK_SECONDS)
        return None if wait == float("inf") else wait

    def work(self) -> None:
        """Open what closed, and renew what is due."""
        self._look()
        for subscription in list(self._all):
            if not subscription.given_up and subscription.due <= time.monotonic():
                self._open(subscription)

    def disconnected(self) -> None:
        """Note that the connection is gone, and every stream with it."""
        for subscription in list(self._all):
            subscription.generation += 1
            subscription.operation = None
            subscription.due = 0.0

    def _look(self) -> None:
        """Have those streams opened again that the MQTT daemon of before kept."""
        now = self._daemon()
        # An empty answer is a daemon that is just being restarted: nothing can be opened until the next one is there.
        if self._seen and now and now != self._seen:
            self._log.log_event("mqtt_daemon_replaced")
            for subscription in list(self._all):
                if subscription.renewed:
                    subscription.due = 0.0
        self._seen = now or self._seen

    def _open(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription.due <= time.monotonic():
                self._open_now(subscription)

    def _open_now(self, subscription: Subscription) -> None:
        subscription.generation += 1
        generation, former = subscription.generation, subscription.operation

        def closed() -> None:
            # A late close of a stream that was replaced must not have the new one opened again.
            if subscription.generation == generation:
                subscription.operation = None
                subscription.due = 0.0
                self._wake.set()

        def received(event: Any) -> None:
            # The stream that was replaced may still deliver what the new one has brought already.
            if generation >= subscription.heard_from:
                subscription.received(event)

        handlers: dict[str, Callable[..., object]] = {
            "on_stream_event": received,
            # True ends the stream; then `closed` has it opened again.
            "on_stream_error": lambda _error: True,
            "on_stream_closed": closed,
        }
        opened: list[Closable] = []

        def start(client: GreengrassCoreIPCClientV2) -> Future[object]:
            future, operation = subscription.open(client, handlers)
            opened.append(operation)
            return future

        # Before the call: the stream may close again before its result is seen here.
        subscription.due = time.monotonic() + self._until_renewal(subscription)
        try:
            self._call(subscription.name, start)
        except IpcError as error:
            self._refused(subscription, error)
            return
        subscription.backoff.succeeded()
        if subscription.generation == generation:
            subscription.operation, subscription.heard_from = opened[0], generation
            # Only after the new one is open: nothing may fall between the two.
            if former is not None:
                former.close()

    def _refused(self, subscription: Subscription, error: IpcError) -> None:
        """Give up what this nucleus does not know; try anything else again later."""
        if subscription.optional and self._unsupported(error):
            subscription.given_up = True
            if subscription.name not in self._unavailable:
                self._log.log_event("operation_unsupported", operation=subscription.name)
            self._unavailable.add(subscription.name)
            return
        subscription.due = time.monotonic() + subscription.backoff.failed()
        self._log.log_event("subscription_failed", subscription=subscription.name, error=type(error).__name__)

    def _until_renewal(self, subscription: Subscription) -> float:
        if not subscription.renewed:
            return float("inf")
        return self._renewal * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, keeps no secret

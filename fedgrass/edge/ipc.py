"""Greengrass IPC in the shape the components use it: the only module that imports the IPC SDK.

Built to nucleus lite, the stricter of the two nuclei: messages are always binary, error texts may be empty so only classes
are looked at, operations may be unsupported, a subscription or the connection may drop at any time, and nothing is queued
for us. Callbacks run on the SDK's network thread: they may only hand over, never call back into IPC.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Protocol, TypeVar

import awsiot.greengrasscoreipc
from awscrt.exceptions import AwsCrtError
from awsiot.eventstreamrpc import AccessDeniedError, LifecycleHandler
from awsiot.greengrasscoreipc import model
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

from fedgrass.edge import systemd, token
from fedgrass.edge.backoff import Backoff
from fedgrass.edge.subscriptions import Subscriptions
from fedgrass.errors import IpcError, IpcRefusedError, IpcUnauthorizedError
from fedgrass.logs import Log

EXIT_RELAUNCH = 75
"""Exit code of a process that asks to be started again."""

_VOID_AFTER = 5  # connections in a row that were closed without an answer: so nucleus lite treats a token that is void

Received = Callable[[bytes], None]


class Ipc(Protocol):
    """What components ask of the nucleus. Subscriptions are kept up by themselves once asked for."""

    def get_configuration(self, component: str) -> dict[str, Any]:
        """Return a component's whole configuration; an unknown component has an empty one."""
        ...

    def on_configuration(self, component: str, changed: Callable[[], None]) -> None:
        """Call ``changed`` when a component's configuration changed (on lite, once for each key)."""
        ...

    def publish_local(self, topic: str, payload: bytes) -> None:
        """Publish to the components on this device."""
        ...

    def on_local(self, topic: str, received: Received) -> None:
        """Receive what components publish on this device; a component also hears itself."""
        ...

    def publish_cloud(self, topic: str, payload: bytes) -> None:
        """Publish to IoT Core at QoS 1. Returning means that the nucleus took it, not that it arrived."""
        ...

    def on_cloud(self, topic: str, received: Received) -> None:
        """Receive from IoT Core; a retained message arrives first if the topic has no wildcard."""
        ...

    def on_component_update(self, arrived: Callable[[str], None]) -> None:
        """Call ``arrived`` with the deployment's id before components are updated, where the nucleus supports it."""
        ...

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """Put a component update off; 0 accepts it."""
        ...


T = TypeVar("T")


class GreengrassIpc:
    """`Ipc` over the nucleus's Unix socket; reconnects and subscribes again by itself.

    Parameters
    ----------
    component
        The component that this process belongs to: with its name a new token is asked for when the nucleus has forgotten the
        one from the environment.
    lost
        Called once, from a separate thread, when the connection cannot be restored: the process should exit with
        `EXIT_RELAUNCH`.
    patience
        Seconds of trying to reconnect before it counts as lost.
    timeout
        Seconds that one operation may take.
    renewal
        Seconds after which a subscription to IoT Core is opened again.
    mqtt_daemon
        Tells which MQTT daemon the nucleus has; "" where that cannot be seen.

    Raises
    ------
    IpcError
        If there is no nucleus to connect to.
    """

    def __init__(
        self,
        log: Log,
        *,
        component: str,
        lost: Callable[[], None],
        patience: float = 60.0,
        timeout: float = 10.0,
        renewal: float = 300.0,
        mqtt_daemon: Callable[[], str] = systemd.mqtt_daemon,
    ) -> None:
        self._log = log
        self._component = component
        self._lost = lost
        self._patience = patience
        self._timeout = timeout
        # None while disconnected. Read once per call, because the SDK's thread may take it away at any time.
        self._client: GreengrassCoreIPCClientV2 | None = None
        self._wake = threading.Event()
        self._subscriptions = Subscriptions(
            self._call,
            log,
            unsupported=lambda error: isinstance(error.__cause__, model.ServiceError),
            renewal=renewal,
            daemon=mqtt_daemon,
            wake=self._wake,
        )
        self._closing = False
        # Connected before the constructor returns: a component without IPC can do nothing, so it fails at its start.
        if not self._reconnect():
            raise IpcError(
                "IPC: cannot connect to the nucleus; expected SVCUID and AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT "
                "of a running nucleus in the environment. Start this as a Greengrass component"
            )
        # Not on the SDK's own thread: its callbacks must not call back into IPC.
        threading.Thread(target=self._maintain, name="ipc", daemon=True).start()

    def get_configuration(self, component: str) -> dict[str, Any]:
        """See `Ipc`."""
        try:
            response = self._call(
                f"configuration of {component}",
                # The whole document in one call, not one round trip for each key.
                lambda c: c.get_configuration_async(component_name=component, key_path=[]),
            )
        # A component without a configuration, or one that this deployment leaves out.
        except _NotFoundError:
            return {}
        return dict(response.value or {})

    def on_configuration(self, component: str, changed: Callable[[], None]) -> None:
        """See `Ipc`."""
        self._subscriptions.add(
            f"configuration of {component}",
            lambda c, h: c.subscribe_to_configuration_update_async(component_name=component, key_path=[], **h),
            lambda _event: changed(),
        )

    def publish_local(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        # Always binary: nucleus lite accepts a JSON message with a list of 45 items, drops it and kills the
        # subscription it matches.
        message = model.PublishMessage(binary_message=model.BinaryMessage(message=payload))
        self._call(f"local topic {topic}", lambda c: c.publish_to_topic_async(topic=topic, publish_message=message))

    def on_local(self, topic: str, received: Received) -> None:
        """See `Ipc`."""
        self._subscriptions.add(
            f"local topic {topic}",
            lambda c, h: c.subscribe_to_topic_async(topic=topic, **h),
            lambda event: received(_local_payload(event)),
        )

    def publish_cloud(self, topic: str, payload: bytes) -> None:
        """See `Ipc`."""
        self._call(
            f"topic {topic}",
            lambda c: c.publish_to_iot_core_async(topic_name=topic, qos=model.QOS.AT_LEAST_ONCE, payload=payload),
        )

    def on_cloud(self, topic: str, received: Received) -> None:
        """See `Ipc`."""
        self._subscriptions.add(
            f"topic {topic}",
            lambda c, h: c.subscribe_to_iot_core_async(topic_name=topic, qos=model.QOS.AT_LEAST_ONCE, **h),
            lambda event: received(_bytes(event.message.payload if event.message else None)),
            # Lite's MQTT daemon forgets subscriptions when it restarts, and leaves the stream open.
            renewed=True,
        )

    def on_component_update(self, arrived: Callable[[str], None]) -> None:
        """See `Ipc`."""

        # The subscription is optional, as nucleus lite has no such operation: there an update does not wait for a
        # training.
        def received(event: model.ComponentUpdatePolicyEvents) -> None:
            if event.pre_update_event is not None:
                arrived(event.pre_update_event.deployment_id or "")

        self._subscriptions.add(
            "component updates", lambda c, h: c.subscribe_to_component_updates_async(**h), received, optional=True
        )

    def defer(self, deployment_id: str, milliseconds: int) -> None:
        """See `Ipc`."""
        self._call(
            "deferral of a component update",
            lambda c: c.defer_component_update_async(deployment_id=deployment_id, recheck_after_ms=milliseconds),
        )

    def close(self) -> None:
        """Disconnect."""
        self._closing = True
        self._wake.set()
        # Taken away first, so that the disconnection is not taken for a loss.
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, name: str, start: Callable[[GreengrassCoreIPCClientV2], Future[T]]) -> T:
        client = self._client
        if client is None:
            raise IpcRefusedError(f"{name}: IPC is not connected")
        try:
            # The asynchronous form with a bound of our own: the SDK's blocking calls would wait for ever for a
            # nucleus that hangs.
            return start(client).result(self._timeout)
        except (RuntimeError, AwsCrtError, FutureTimeoutError) as error:
            raise _translated(name, error) from error

    def _maintain(self) -> None:
        """Bring back what closed: first the connection, then the streams."""
        while not self._closing:
            self._wake.wait(self._subscriptions.wait_seconds())
            self._wake.clear()
            if self._closing:
                return
            # The process ends and is started again by the nucleus: that is the one way to a new token if renewal fails.
            if self._client is None and not self._reconnect():
                self._log.log_event("ipc_lost", exit_code=EXIT_RELAUNCH)
                self._lost()
                return
            self._subscriptions.work()

    def _reconnect(self) -> bool:
        """Connect, for as long as the patience lasts; a token that is void is renewed, once."""
        # A nucleus that restarts is back within seconds; a minute without one means that waiting in here will not
        # help.
        backoff, deadline = Backoff(first=0.2, most=5), time.monotonic() + self._patience
        unanswered, renewed = 0, False
        while not self._closing:
            try:
                if self._connect():
                    return True
                unanswered = 0
            except (AccessDeniedError, KeyError):
                # Refused in so many words: there is no need to try further.
                unanswered = _VOID_AFTER
            except AwsCrtError as error:
                # Nucleus lite closes without an answer; a nucleus that restarts refuses the connection instead, and a
                # token is then not at fault.
                unanswered = unanswered + 1 if error.name == "AWS_IO_SOCKET_CLOSED" else 0
            except (RuntimeError, FutureTimeoutError):
                unanswered = 0
            if unanswered >= _VOID_AFTER:
                # Once for each reconnection: a second token that is refused as well means that the nucleus does not
                # want this process.
                if renewed or not token.renew(self._component, self._timeout):
                    return False
                self._log.log_event("ipc_token_renewed")
                unanswered, renewed = 0, True
                continue
            wait = backoff.failed()
            # No wait that would outlast the patience.
            if time.monotonic() + wait > deadline:
                return False
            self._wake.wait(wait)
            self._wake.clear()
        return False

    def _connect(self) -> bool:
        """Connect now; False if the connection ended as soon as it was made."""
        lifecycle = _Lifecycle(self)
        connection = awsiot.greengrasscoreipc.connect(lifecycle_handler=lifecycle, timeout=self._timeout)
        # Without an executor callbacks run on the network thread: they only hand over.
        self._client = GreengrassCoreIPCClientV2(client=connection, executor=None)
        gc.collect()  # a connection that is over is a cycle of objects, and holds a thread and two files until then
        # The disconnection may have been told before `_client` was set, and so have been overwritten by the line
        # above.
        if lifecycle.is_over:
            self._client = None
        return self._client is not None

    def _disconnected(self) -> None:
        if self._closing:
            return
        self._log.log_event("ipc_disconnected")
        self._client = None
        # Streams end with their connection; the maintenance thread opens them on the next one.
        self._subscriptions.disconnected()
        self._wake.set()


class _Lifecycle(LifecycleHandler):  # type: ignore[misc]
    def __init__(self, owner: GreengrassIpc) -> None:
        self._owner = owner

        self.is_over = False

    def on_disconnect(self, _reason: Exception | None) -> None:
        self.is_over = True
        self._owner._disconnected()

    def on_error(self, _error: Exception) -> bool:
        return True


class _NotFoundError(IpcError):
    pass


def _translated(name: str, error: BaseException) -> IpcError:
    # Lite's exceptions carry no text, so the class is all there is to say.
    kind = type(error).__name__
    if isinstance(error, model.UnauthorizedError):
        return IpcUnauthorizedError(f"{name}: not allowed; add it to accessControl in the component's configuration")
    if isinstance(error, model.ResourceNotFoundError):
        return _NotFoundError(f"{name}: not found")
    return IpcRefusedError(f"{name}: the nucleus did not take it ({kind})")


def _local_payload(event: model.SubscriptionResponseMessage) -> bytes:
    # Another component may publish JSON; nucleus lite then delivers it as such.
    if event.json_message is not None:
        return json.dumps(event.json_message.message).encode()
    return _bytes(event.binary_message.message if event.binary_message else None)


def _bytes(payload: bytes | str | None) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload or b"")

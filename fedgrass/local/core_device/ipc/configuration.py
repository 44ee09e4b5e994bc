"""A component's configuration over IPC."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.local.core_device.configuration import ConfigurationStore, OutdatedError, Path
from fedgrass.local.core_device.ipc.errors import (
    FailedUpdateConditionCheckError,
    InvalidArgumentsError,
    ResourceNotFoundError,
    ServiceError,
)
from fedgrass.local.core_device.ipc.server import Operation, Payload, Stream

_RESTRICTED = "accessControl"


class ConfigurationService:
    """GetConfiguration, UpdateConfiguration and SubscribeToConfigurationUpdate."""

    def __init__(self, store: ConfigurationStore) -> None:
        self._store = store

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "GetConfiguration": Operation(self._get),
            "UpdateConfiguration": Operation(self._update),
            "SubscribeToConfigurationUpdate": Operation(self._subscribe, events="ConfigurationUpdateEvents"),
        }

    async def _get(self, stream: Stream, request: Payload) -> Payload:
        component, path = request.get("componentName") or stream.component, _key_path(request)
        value = self._find(component, path)
        # A leaf comes back as a map of its own name, as from the nucleus.
        return {"componentName": component, "value": value if isinstance(value, dict) else {path[-1]: value}}

    async def _update(self, stream: Stream, request: Payload) -> Payload:
        path, values = _key_path(request), request.get("valueToMerge")
        if not isinstance(values, Mapping):
            raise InvalidArgumentsError(f"valueToMerge is required and must be an object, found {values!r}")
        # A component must not widen its own permissions.
        if _RESTRICTED in (path[:1] or tuple(values)):
            raise InvalidArgumentsError(f"Config update is not allowed for following fields [{_RESTRICTED}]")
        timestamp = request.get("timestamp")
        # The SDK sends seconds, the store counts milliseconds.
        moment = float(timestamp) if isinstance(timestamp, (int, float)) else time.time()
        try:
            self._store.merge(stream.component, values, moment * 1000, path=path, strict=True)
        except OutdatedError as error:
            raise FailedUpdateConditionCheckError(str(error)) from error
        except ConfigurationError as error:
            raise ServiceError(str(error)) from error
        return {}

    async def _subscribe(self, stream: Stream, request: Payload) -> Payload:
        component, path = request.get("componentName") or stream.component, _key_path(request)
        self._find(component, path)

        def notify(changed: Path) -> None:
            stream.send({"configurationUpdateEvent": {"componentName": component, "keyPath": list(changed)}})

        stream.on_close.append(partial(self._store.unsubscribe, self._store.subscribe(component, path, notify)))
        return {}

    def _find(self, component: str, path: Path) -> Any:
        try:
            return self._store.find(component, path)
        except KeyError as error:
            raise ResourceNotFoundError("Key not found", resource_type="key", resource_name="/".join(path)) from error


def _key_path(request: Payload) -> Path:
    path = request.get("keyPath") or []
    if not isinstance(path, list) or not all(isinstance(key, str) for key in path):
        raise InvalidArgumentsError(f"keyPath must be a list of strings, found {path!r}")
    return tuple(path)

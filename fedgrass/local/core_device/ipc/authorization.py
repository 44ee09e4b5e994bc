"""Which operation a component may perform on which resource, from its ``accessControl`` configuration.

Source: "Authorize components to perform IPC operations" in the Greengrass v2 developer guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.local.core_device.ipc.errors import UnauthorizedError

ConfigurationOf = Callable[[str], Mapping[str, Any]]


class Service(str, Enum):
    """IPC services that need authorisation."""

    PUBSUB = "aws.greengrass.ipc.pubsub"
    MQTT_PROXY = "aws.greengrass.ipc.mqttproxy"


class Policy(BaseModel):
    """One policy of an ``accessControl`` map."""

    model_config = ConfigDict(extra="ignore")

    operations: list[str]
    resources: list[str] = Field(default_factory=list)

    def allows(self, operation: str, resource: str, *, mqtt: bool) -> bool:
        """Say whether the policy covers an operation on a resource.

        Parameters
        ----------
        operation
            Without its namespace, such as ``PublishToTopic``.
        resource
            Topic or component.
        mqtt
            Whether the resource is a topic of IoT Core, where ``#`` and ``+`` are wildcards.

        Returns
        -------
        bool
            Whether it does.
        """
        if "*" not in self.operations and operation not in self.operations:
            return False
        return any(_pattern(allowed, mqtt).fullmatch(resource) for allowed in self.resources)


class Authorizer:
    """Decides from the configuration as it is at the time of the request."""

    def __init__(self, configuration_of: ConfigurationOf, *, max_bytes: int | None = None) -> None:
        self._configuration_of = configuration_of
        self._max_bytes = max_bytes

    def require(self, component: str, service: Service, operation: str, resource: str) -> None:
        """Refuse what no policy of a component covers.

        Parameters
        ----------
        component
            Name of the component that asks.
        service
            Service whose policies count.
        operation
            Without its namespace.
        resource
            Topic or component.

        Raises
        ------
        UnauthorizedError
            None of its policies for ``service`` covers the operation on the resource.
        """
        access = self._configuration_of(component).get("accessControl")
        if self._max_bytes is not None and len(json.dumps(access)) > self._max_bytes:
            access = None  # nucleus lite cannot read it, and grants nothing
        policies = access.get(service.value) if isinstance(access, Mapping) else None
        for raw in policies.values() if isinstance(policies, Mapping) else ():
            try:
                policy = Policy.model_validate(raw)
            except ValidationError:
                continue  # as the nucleus: a malformed policy grants nothing and breaks no other
            if policy.allows(f"aws.greengrass#{operation}", resource, mqtt=service is Service.MQTT_PROXY):
                return
        raise UnauthorizedError(
            f"Principal {component} is not authorized to perform {service.value}:aws.greengrass#{operation}"
            f" on resource {resource}"
        )


# "#" counts as a wildcard at the end and after a slash, "+" as a whole level (MQTT 3.1.1, 4.7.1); elsewhere they are
# characters.
_TOKENS = re.compile(
    r"\$\{(?P<escaped>.)\}|(?P<star>\*)|(?P<below>/\#$)|(?P<all>^\#$)|(?P<level>(?<![^/])\+(?![^/]))|(?P<literal>.)",
    re.DOTALL,
)
_MQTT = {"below": "(/.*)?", "all": ".*", "level": "[^/]*"}


@lru_cache(maxsize=1024)
def _pattern(resource: str, mqtt: bool) -> re.Pattern[str]:
    """Compile an allowed resource: ``*`` matches any text, ``${c}`` is the character c, and MQTT wildcards count."""
    parts: list[str] = []
    for token in _TOKENS.finditer(resource):
        kind = token.lastgroup or ""
        if kind == "star":
            parts.append(".*")
        elif mqtt and kind in _MQTT:
            parts.append(_MQTT[kind])
        else:
            parts.append(re.escape(token[kind]))
    return re.compile("".join(parts), re.DOTALL)

"""Core devices, as their fleet status messages describe them."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError, page
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import type_defs as api

_TOPIC = re.compile(r"\$aws/things/(?P<thing>[^/]+)/greengrassv2/health/json")


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class ComponentHealth(_Message):
    """One component in a fleet status message."""

    name: str = Field(alias="componentName")
    version: str
    status: str
    is_root: bool = Field(default=False, alias="isRoot")
    status_details: object = Field(default=None, alias="statusDetails")
    fleet_config_arns: list[str] = Field(default_factory=list, alias="fleetConfigArns")


class DeviceHealth(_Message):
    """A fleet status message, published by the nucleus on ``$aws/things/<thing>/greengrassv2/health/json``."""

    nucleus_version: str = Field(alias="ggcVersion")
    platform: str
    architecture: str
    overall_status: Literal["HEALTHY", "UNHEALTHY"] = Field(alias="overallDeviceStatus")
    timestamp: int
    message_type: Literal["PARTIAL", "COMPLETE"] = Field(alias="messageType")
    trigger: str = ""
    components: list[ComponentHealth] = Field(default_factory=list)


@dataclass
class CoreDevice:
    """What the service knows of a device."""

    thing: str
    health: DeviceHealth
    components: dict[str, ComponentHealth] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """Return what ListCoreDevices shows."""
        return {
            "coreDeviceThingName": self.thing,
            "status": self.health.overall_status,
            "lastStatusUpdateTimestamp": _time(self.health),
            "platform": self.health.platform,
            "architecture": self.health.architecture,
        }


class CoreDevices:
    """The account's core devices; one exists from its first status message on."""

    def __init__(self) -> None:
        self._devices: dict[str, CoreDevice] = {}
        self._lock = threading.Lock()

    def handle(self, topic: str, payload: bytes) -> None:
        """Take a fleet status message, if ``topic`` is that of one."""
        match = _TOPIC.fullmatch(topic)
        if match is None:
            return
        try:
            health = DeviceHealth.model_validate_json(payload)
        except ValidationError as error:
            log_event("fleet_status_ignored", thing=match["thing"], reason=str(error))
            return
        with self._lock:
            device = self._devices.setdefault(match["thing"], CoreDevice(match["thing"], health))
            device.health = health
            # A complete message names every component, so what it leaves out is gone; a partial one has the changes
            # only.
            if health.message_type == "COMPLETE":
                device.components.clear()
            device.components.update({component.name: component for component in health.components})

    # Operations, in the parameters and results of boto3's `greengrassv2`

    def list_core_devices(
        self, parameters: api.ListCoreDevicesRequestTypeDef, members: list[str] | None
    ) -> dict[str, object]:
        """List core devices, of one thing group's ``members`` if given."""
        status = parameters.get("status")
        found = [
            device.summary()
            for thing, device in sorted(self._devices.items())
            if status in {None, device.health.overall_status} and (members is None or thing in members)
        ]
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"coreDevices": items, "nextToken": token}

    def get_core_device(self, parameters: api.GetCoreDeviceRequestTypeDef) -> dict[str, object]:
        """Return a core device's platform and status."""
        device = self._find(parameters["coreDeviceThingName"])
        return {**device.summary(), "coreVersion": device.health.nucleus_version, "tags": {}}

    def delete_core_device(self, parameters: api.DeleteCoreDeviceRequestTypeDef) -> dict[str, object]:
        """Forget a core device; its thing stays."""
        device = self._find(parameters["coreDeviceThingName"])
        with self._lock:
            self._devices.pop(device.thing, None)
        return {}

    def list_installed_components(self, parameters: api.ListInstalledComponentsRequestTypeDef) -> dict[str, object]:
        """List a device's components: those deployed by name, or all with ``topologyFilter`` ALL."""
        device = self._find(parameters["coreDeviceThingName"])
        everything = parameters.get("topologyFilter", "ROOT") == "ALL"
        found = [
            {
                "componentName": component.name,
                "componentVersion": component.version,
                "lifecycleState": component.status,
                "lifecycleStateDetails": _details(component.status_details),
                "isRoot": component.is_root,
                "lastStatusChangeTimestamp": _time(device.health),
                "lastReportedTimestamp": _time(device.health),
                "lastInstallationSource": (component.fleet_config_arns or [""])[0],
            }
            for _, component in sorted(device.components.items())
            if everything or component.is_root
        ]
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"installedComponents": items, "nextToken": token}

    def _find(self, thing: str) -> CoreDevice:
        if thing not in self._devices:
            raise ApiError(
                "ResourceNotFoundException",
                f"No core device {thing} has reported its status.",
                status=404,
                resourceId=arn("greengrass", f"coreDevices:{thing}"),
                resourceType="core device",
            )
        return self._devices[thing]


def _time(health: DeviceHealth) -> datetime:
    # The nucleus counts milliseconds.
    return datetime.fromtimestamp(health.timestamp / 1000, timezone.utc)


def _details(details: object) -> str:
    return details if isinstance(details, str) else "" if details is None else str(details)

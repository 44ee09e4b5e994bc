"""Count deployments that failed on the fleet's devices, and log why."""

from __future__ import annotations

from pydantic import BaseModel, Field

from fedgrass.cloud.rounds.metrics import measure
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.logs import log_event
from fedgrass.protocol.roster import is_of_fleet


class DeploymentDetail(BaseModel, defer_build=True):
    """Detail of "Greengrass V2 Effective Deployment Status Change"."""

    deployment: str = Field(alias="deploymentId")
    status: str = Field(alias="coreDeviceExecutionStatus")
    reason: str = ""


class DeploymentEvent(BaseModel, defer_build=True):
    """The event; its one resource is the core device."""

    resources: list[str]
    detail: DeploymentDetail


connect("devices")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point, called by EventBridge for every core device of the account."""
    record_deployment(own_services(), DeploymentEvent.model_validate(event))


def record_deployment(services: Services, event: DeploymentEvent) -> bool:
    """Count the failure if the device is one of the fleet's; returns whether it is."""
    # The event comes for all core devices of the account, of other fleets and of none.
    thing = event.resources[0].rpartition("coreDevices:")[2]
    if not is_of_fleet(services.devices, services.fleet, thing, ()):  # a silo is no core device
        return False
    log_event(
        "deployment_failed",
        fleet=services.fleet,
        thing=thing,
        deployment=event.detail.deployment,
        status=event.detail.status,
        reason=event.detail.reason or None,
    )
    measure(services, {"DeploymentsFailed": 1})
    return True

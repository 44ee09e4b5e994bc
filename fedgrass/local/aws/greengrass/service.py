"""AWS IoT Greengrass v2 behind boto3's ``greengrassv2``: which operation is answered where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from werkzeug import Request, Response

from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.events import Emit
from fedgrass.local.aws.greengrass.deployments import Deployments
from fedgrass.local.aws.greengrass.devices import CoreDevices
from fedgrass.local.aws.greengrass.registry import ObjectStore, Registry
from fedgrass.local.aws.jobs import Publish
from fedgrass.local.aws.rest_json import RestJsonService

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import type_defs as api


class Greengrass:
    """The service: a `Layer` for its REST paths and a handler for what devices publish.

    Parameters
    ----------
    objects
        Reads artifacts from S3.
    target_exists, things_of
        What a target ARN names: whether it exists, and its things at this moment.
    publish
        Sends a message to a device.
    emit
        Sends an EventBridge event.
    """

    def __init__(
        self,
        *,
        objects: ObjectStore,
        target_exists: Callable[[str], bool],
        things_of: Callable[[str], list[str]],
        publish: Publish,
        emit: Emit,
    ) -> None:
        self.registry = Registry(objects)
        self.devices = CoreDevices()
        self.deployments = Deployments(
            registry=self.registry, target_exists=target_exists, things_of=things_of, publish=publish, emit=emit
        )
        self._things_of = things_of
        registry, devices, deployments = self.registry, self.devices, self.deployments
        self._operations = RestJsonService(
            "greengrassv2",
            {
                "CreateComponentVersion": registry.create_component_version,
                "GetComponent": registry.get_component,
                "DescribeComponent": registry.describe_component,
                "ListComponents": registry.list_components,
                "ListComponentVersions": registry.list_component_versions,
                "DeleteComponent": registry.delete_component,
                "GetComponentVersionArtifact": registry.get_component_version_artifact,
                "ResolveComponentCandidates": registry.resolve_component_candidates,
                "CreateDeployment": deployments.create_deployment,
                "GetDeployment": deployments.get_deployment,
                "ListDeployments": deployments.list_deployments,
                "CancelDeployment": deployments.cancel_deployment,
                "DeleteDeployment": deployments.delete_deployment,
                "ListEffectiveDeployments": deployments.list_effective_deployments,
                "ListCoreDevices": self._list_core_devices,
                "GetCoreDevice": devices.get_core_device,
                "DeleteCoreDevice": self._delete_core_device,
                "ListInstalledComponents": devices.list_installed_components,
            },
        )

    def layer(self, request: Request) -> Response:
        """Answer a request for Greengrass, if only to say that the operation is not here."""
        answer = self._operations(request)
        if answer is not None:
            return answer
        message = f"The local AWS has no {request.method} {request.path} of Greengrass."
        return ApiError("NotImplementedException", message, status=501).response()

    def handle(self, topic: str, payload: bytes) -> None:
        """Take a message that a device published."""
        self.deployments.jobs.handle(topic, payload)
        self.devices.handle(topic, payload)

    def stop(self) -> None:
        """End background work."""
        self.registry.stop()

    def _list_core_devices(self, parameters: api.ListCoreDevicesRequestTypeDef) -> dict[str, object]:
        group = parameters.get("thingGroupArn")
        return self.devices.list_core_devices(parameters, self._things_of(group) if group else None)

    def _delete_core_device(self, parameters: api.DeleteCoreDeviceRequestTypeDef) -> dict[str, object]:
        result = self.devices.delete_core_device(parameters)
        # Else its executions would wait for ever for a device that does not exist any more.
        self.deployments.jobs.forget(parameters["coreDeviceThingName"])
        return result

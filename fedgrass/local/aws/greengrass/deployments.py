"""Deployments: the whole component set of a thing or thing group, sent to its devices as IoT jobs."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError, page
from fedgrass.local.aws.events import Emit
from fedgrass.local.aws.greengrass.registry import Registry
from fedgrass.local.aws.jobs import Execution, Job, Jobs, Publish

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import type_defs as api

_FINAL = {"SUCCEEDED", "FAILED", "REJECTED", "CANCELED"}
_BUILT_IN = "aws.greengrass."  # AWS's own components are in no private registry
_DEFAULT_POLICIES = {
    "failureHandlingPolicy": "ROLLBACK",
    "componentUpdatePolicy": {"timeoutInSeconds": 60, "action": "NOTIFY_COMPONENTS"},
    "configurationValidationPolicy": {"timeoutInSeconds": 30},
}


@dataclass
class Deployment:
    """A revision of a target's component set."""

    deployment_id: str
    revision: int
    parameters: api.CreateDeploymentRequestTypeDef
    policies: dict[str, Any]
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    status: str = "ACTIVE"
    latest: bool = True
    deleted: bool = False

    @property
    def target_arn(self) -> str:
        """ARN of the thing or thing group."""
        return str(self.parameters["targetArn"])

    @property
    def name(self) -> str:
        """Name given by the caller, empty if none."""
        return str(self.parameters.get("deploymentName", ""))

    def summary(self) -> dict[str, object]:
        """Return what ListDeployments shows."""
        return {
            "targetArn": self.target_arn,
            "revisionId": str(self.revision),
            "deploymentId": self.deployment_id,
            "deploymentName": self.name,
            "creationTimestamp": self.created,
            "deploymentStatus": self.status,
            "isLatestForTarget": self.latest,
            "parentTargetArn": self.parameters.get("parentTargetArn"),
        }


class Deployments:
    """The account's deployments, newest last."""

    def __init__(
        self,
        *,
        registry: Registry,
        target_exists: Callable[[str], bool],
        things_of: Callable[[str], list[str]],
        publish: Publish,
        emit: Emit,
    ) -> None:
        self._registry = registry
        self._target_exists = target_exists
        self._emit = emit
        self._deployments: dict[str, Deployment] = {}
        self._by_token: dict[str, str] = {}
        self._lock = threading.RLock()
        self.jobs = Jobs(publish, things_of, self._changed)

    # Operations, in the parameters and results of boto3's `greengrassv2`

    def create_deployment(self, parameters: api.CreateDeploymentRequestTypeDef) -> dict[str, object]:
        """Replace the target's component set."""
        target = parameters["targetArn"]
        if not self._target_exists(target):
            raise _not_found(target, "target")
        # Checked before anything changes: a refused deployment must leave the target's former one as it is.
        components = self._components(parameters.get("components") or {})
        token = parameters.get("clientToken")
        with self._lock:
            # The SDK repeats a call whose answer was lost: it must not make a second deployment.
            if token and token in self._by_token:
                return self._created(self._by_token[token])
            previous = self._latest(target)
            deployment = Deployment(
                str(uuid.uuid4()),
                previous.revision + 1 if previous else 1,
                parameters,
                {**_DEFAULT_POLICIES, **(parameters.get("deploymentPolicies") or {})},
            )
            self._deployments[deployment.deployment_id] = deployment
            if token:
                self._by_token[token] = deployment.deployment_id
            if previous:
                previous.latest = False
                # What was canceled or completed stays so in the history.
                previous.status = "INACTIVE" if previous.status == "ACTIVE" else previous.status
            self.jobs.create(
                deployment.deployment_id,
                target,
                _document(deployment, components),
                supersedes=previous.deployment_id if previous else None,
            )
        return self._created(deployment.deployment_id)

    def get_deployment(self, parameters: api.GetDeploymentRequestTypeDef) -> dict[str, object]:
        """Return a deployment as it was asked for, with its status."""
        deployment = self._find(parameters["deploymentId"])
        return {
            **deployment.summary(),
            "iotJobId": deployment.deployment_id,
            "iotJobArn": arn("iot", f"job/{deployment.deployment_id}"),
            "components": deployment.parameters.get("components") or {},
            "deploymentPolicies": deployment.policies,
            "iotJobConfiguration": deployment.parameters.get("iotJobConfiguration") or {},
            "tags": deployment.parameters.get("tags") or {},
        }

    def list_deployments(self, parameters: api.ListDeploymentsRequestTypeDef) -> dict[str, object]:
        """List deployments, newest first; only the latest of each target unless ``historyFilter`` is ALL."""
        target = parameters.get("targetArn")
        everything = parameters.get("historyFilter", "LATEST_ONLY") == "ALL"
        found = [
            deployment.summary()
            for deployment in reversed(list(self._deployments.values()))
            if target in {None, deployment.target_arn} and (everything or deployment.latest) and not deployment.deleted
        ]
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"deployments": items, "nextToken": token}

    def cancel_deployment(self, parameters: api.CancelDeploymentRequestTypeDef) -> dict[str, object]:
        """Take a deployment back from the devices that have not begun it."""
        deployment = self._find(parameters["deploymentId"])
        with self._lock:
            if deployment.status != "ACTIVE":
                raise ApiError(
                    "ConflictException",
                    f"Deployment {deployment.deployment_id} is {deployment.status}: only an active one can be canceled.",
                    status=409,
                    resourceId=deployment.deployment_id,
                    resourceType="deployment",
                )
            deployment.status = "CANCELED"
            self.jobs.cancel(deployment.deployment_id)
        return {"message": "SUCCESS"}

    def delete_deployment(self, parameters: api.DeleteDeploymentRequestTypeDef) -> dict[str, object]:
        """Forget a deployment that is not active any more."""
        deployment = self._find(parameters["deploymentId"])
        with self._lock:
            if deployment.status == "ACTIVE":
                raise ApiError(
                    "ConflictException",
                    f"Deployment {deployment.deployment_id} is active: cancel it first.",
                    status=409,
                    resourceId=deployment.deployment_id,
                    resourceType="deployment",
                )
            deployment.deleted = True  # what its devices were sent stays known
        return {}

    def list_effective_deployments(self, parameters: api.ListEffectiveDeploymentsRequestTypeDef) -> dict[str, object]:
        """List what a core device was sent, newest first, with its status there."""
        found = []
        for execution in self.jobs.executions(thing=parameters["coreDeviceThingName"]):
            deployment = self._deployments[execution.job_id]
            found.append(
                {
                    "deploymentId": deployment.deployment_id,
                    "deploymentName": deployment.name,
                    "iotJobId": deployment.deployment_id,
                    "iotJobArn": arn("iot", f"job/{deployment.deployment_id}"),
                    "targetArn": deployment.target_arn,
                    "coreDeviceExecutionStatus": execution.status,
                    "reason": _reason(execution),
                    "creationTimestamp": deployment.created,
                    "modifiedTimestamp": datetime.fromtimestamp(execution.updated_at, timezone.utc),
                    "statusDetails": _status_details(execution),
                }
            )
        items, token = page(found, token=parameters.get("nextToken"), limit=parameters.get("maxResults"))
        return {"effectiveDeployments": items, "nextToken": token}

    def _components(
        self, components: Mapping[str, api.ComponentDeploymentSpecificationUnionTypeDef]
    ) -> dict[str, object]:
        checked: dict[str, object] = {}
        for name, wanted in components.items():
            version = wanted.get("componentVersion")
            if not version:
                raise ApiError("ValidationException", f"Component {name} has no componentVersion.")
            known = self._registry.find(name, version)
            if not name.startswith(_BUILT_IN) and (known is None or known.state != "DEPLOYABLE"):
                state = known.state if known else "unknown"
                raise ApiError(
                    "ValidationException",
                    f"Component {name} {version} cannot be deployed: it is {state}, not DEPLOYABLE.",
                )
            # The service takes `merge` as a JSON text; in a device's document it is an object.
            described: dict[str, object] = {"version": version, "runWith": wanted.get("runWith") or {}}
            checked[name] = described
            if update := wanted.get("configurationUpdate"):  # left out otherwise: nucleus lite restarts for it
                described["configurationUpdate"] = {
                    "merge": _json_object(name, update.get("merge")),
                    "reset": list(update.get("reset") or []),
                }
        return checked

    def _created(self, deployment_id: str) -> dict[str, object]:
        return {
            "deploymentId": deployment_id,
            "iotJobId": deployment_id,
            "iotJobArn": arn("iot", f"job/{deployment_id}"),
        }

    def _latest(self, target: str) -> Deployment | None:
        return next((one for one in self._deployments.values() if one.latest and one.target_arn == target), None)

    def _find(self, deployment_id: str) -> Deployment:
        if deployment_id not in self._deployments or self._deployments[deployment_id].deleted:
            raise _not_found(deployment_id, "deployment")
        return self._deployments[deployment_id]

    def _changed(self, job: Job, execution: Execution) -> None:
        deployment = self._deployments[job.job_id]
        # A group's deployment stays active for devices to come; a single thing's ends with it
        if ":thing/" in deployment.target_arn and deployment.status == "ACTIVE" and execution.status in _FINAL:
            deployment.status = {"SUCCEEDED": "COMPLETED", "CANCELED": "CANCELED"}.get(execution.status, "FAILED")
        if execution.status in _FINAL:
            self._emit(
                "aws.greengrass",
                "Greengrass V2 Effective Deployment Status Change",
                [arn("greengrass", f"coreDevices:{execution.thing}")],
                {
                    "deploymentId": deployment.deployment_id,
                    "coreDeviceExecutionStatus": execution.status,
                    "statusDetails": _status_details(execution),
                    "reason": _reason(execution),
                },
            )


def _document(deployment: Deployment, components: dict[str, object]) -> dict[str, object]:
    update = deployment.policies["componentUpdatePolicy"]
    group = deployment.target_arn.partition(":thinggroup/")[2]
    # The keys are the device's, not the API's: milliseconds, and `timeout` where the API has `timeoutInSeconds`.
    document = {
        "deploymentId": deployment.deployment_id,
        "deploymentName": deployment.name,
        "targetArn": deployment.target_arn,
        "configurationArn": _configuration_arn(deployment),
        "creationTimestamp": int(deployment.created.timestamp() * 1000),
        "components": components,
        "failureHandlingPolicy": deployment.policies["failureHandlingPolicy"],
        "componentUpdatePolicy": {
            "action": update.get("action", "NOTIFY_COMPONENTS"),
            "timeout": update.get("timeoutInSeconds", 60),
        },
    }
    if parent := deployment.parameters.get("parentTargetArn"):
        document["parentTargetArn"] = parent
    return {**document, "thingGroupName": group} if group else document


def _configuration_arn(deployment: Deployment) -> str:
    """Name the target's configuration, as the device reads the thing group from it; each deployment is a revision."""
    kind, _, name = deployment.target_arn.split(":", 5)[5].partition("/")
    return arn("greengrass", f"configuration:{kind}/{name}:{int(deployment.created.timestamp() * 1000)}")


def _json_object(component: str, text: str | None) -> dict[str, object]:
    try:
        merge = json.loads(text) if text else {}
    except ValueError as error:
        raise ApiError("ValidationException", f"The merge of {component} is not JSON: {error}.") from error
    if not isinstance(merge, dict):
        raise ApiError("ValidationException", f"The merge of {component} is not a JSON object.")
    return merge


def _reason(execution: Execution) -> str:
    return execution.details.get("deployment-failure-cause") or execution.details.get("detailed-deployment-status", "")


def _status_details(execution: Execution) -> dict[str, object]:
    failed = execution.status in {"FAILED", "REJECTED"}
    detail = execution.details.get("detailed-deployment-status", "")
    return {"errorStack": ["DEPLOYMENT_FAILURE", detail] if failed and detail else [], "errorTypes": []}


def _not_found(identifier: str, kind: str) -> ApiError:
    return ApiError(
        "ResourceNotFoundException",
        f"The {kind} {identifier} does not exist.",
        status=404,
        resourceId=identifier,
        resourceType=kind,
    )

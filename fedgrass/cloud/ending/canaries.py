"""Which model the canaries have: a subdeployment of the fleet's, which is taken back where the model was not released.

https://docs.aws.amazon.com/greengrass/v2/developerguide/create-deployments.html (subdeployments)
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fedgrass.cloud.ending.deployment import component_version, entries
from fedgrass.logs import log_event
from fedgrass.protocol.records import RoundRecord

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_greengrassv2.type_defs import (
        CreateDeploymentRequestTypeDef,
        GetDeploymentResponseTypeDef,
    )


def canary_arn(fleet_arn: str, group: str) -> str:
    """Return the ARN of the thing group of that name."""
    return f"{fleet_arn.rpartition('/')[0]}/{group}"


def latest(greengrass: GreengrassV2Client, target_arn: str) -> GetDeploymentResponseTypeDef | None:
    """Return the target's latest deployment; None if it has none."""
    listed = entries(greengrass, target_arn)
    return greengrass.get_deployment(deploymentId=listed[0]["deploymentId"]) if listed else None


def deploy_to_canaries(
    greengrass: GreengrassV2Client,
    fleet: GetDeploymentResponseTypeDef,
    fleet_arn: str,
    group_arn: str,
    component: str,
    version: str | None,
) -> datetime:
    """Give the canaries the fleet's components with one version changed, or left out, unless they have just that.

    Parameters
    ----------
    greengrass
        The boto3 client.
    fleet
        The fleet's latest deployment, as GetDeployment gives it.
    fleet_arn
        ARN of the fleet's thing group, the parent of the canaries' deployment.
    group_arn
        ARN of the canaries' thing group.
    component
        Name of the model component.
    version
        The version that they get; None leaves the component out.

    Returns
    -------
    datetime
        When the canaries' deployment was created: what they said before is not about it.
    """
    components: dict[str, Any] = dict(fleet["components"])
    if version is None:
        components.pop(component, None)
    else:
        # Only the version changes: configuration updates that an operator made to this entry stay.
        kept: Mapping[str, Any] = components.get(component) or {}
        components[component] = {**kept, "componentVersion": version}
    present = latest(greengrass, group_arn)
    # Made again, it would restart the canaries' components for nothing, and their time would begin anew.
    if present is not None and present["components"] == components:
        return _since(present)
    wanted: CreateDeploymentRequestTypeDef = {
        "targetArn": group_arn,
        "parentTargetArn": fleet_arn,
        "deploymentName": f"{fleet.get('deploymentName') or 'fedgrass'}-canaries",
        "components": components,
    }
    # GetDeployment leaves out what was never set.
    if fleet.get("deploymentPolicies"):
        wanted["deploymentPolicies"] = fleet["deploymentPolicies"]
    made = greengrass.create_deployment(**wanted)
    log_event("canaries_deployed", target=group_arn, version=version, deployment=made["deploymentId"])
    return _since(greengrass.get_deployment(deploymentId=made["deploymentId"]))


def _since(deployment: GetDeploymentResponseTypeDef) -> datetime:
    return deployment["creationTimestamp"]


def restore(greengrass: GreengrassV2Client, fleet_arn: str, component: str, record: RoundRecord) -> None:
    """Give a round's canaries back what the fleet has, if they had its model and it was not released; safe to repeat.

    Parameters
    ----------
    greengrass
        The boto3 client.
    fleet_arn
        ARN of the fleet's thing group.
    component
        Name of the model component.
    record
        The round, with its canaries and its outcome.
    """
    trial = record.canaries
    # Until the outcome is known nothing is taken back: the model may yet be released.
    if trial is None or record.outcome in {None, "released"}:
        return
    theirs = entries(greengrass, trial.target)
    if not theirs:
        return
    newest = greengrass.get_deployment(deploymentId=theirs[0]["deploymentId"])
    # They have moved on: another round, or a person, has given them something since.
    if component_version(newest, component) != record.version:
        return
    fleets = entries(greengrass, fleet_arn)
    if not fleets or fleets[0]["creationTimestamp"] > theirs[0]["creationTimestamp"]:
        return  # a deployment to the fleet takes the place of theirs
    fleet = greengrass.get_deployment(deploymentId=fleets[0]["deploymentId"])
    had = component_version(fleet, component) or trial.before
    deploy_to_canaries(greengrass, fleet, fleet_arn, trial.target, component, had)

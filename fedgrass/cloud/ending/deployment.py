"""One entry of a thing group's deployment changed, everything else kept.

CreateDeployment replaces its target's whole component set and takes no precondition, so another's change made between our
reading and our writing would be lost without a word. It is noticed afterwards instead: a deployment that came between
the one we read and the one we wrote is read and merged.
https://docs.aws.amazon.com/greengrass/v2/APIReference/API_CreateDeployment.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedgrass.errors import ReleaseError
from fedgrass.logs import log_event
from fedgrass.protocol.names import version_order
from fedgrass.protocol.release_settings import Rollout

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_greengrassv2.type_defs import (
        DeploymentIoTJobConfigurationTypeDef,
        DeploymentTypeDef,
        GetDeploymentResponseTypeDef,
        IoTJobAbortCriteriaTypeDef,
    )

# Members of GetDeployment's answer that CreateDeployment takes; the answer has others that it refuses.
_CARRIED_OVER = ("deploymentName", "deploymentPolicies", "iotJobConfiguration", "parentTargetArn", "tags")
Entry = dict[str, Any]
"""What is changed of a component's entry in a deployment."""

_ATTEMPTS = 10
_FEWEST = 10
"""Devices of the fleet that must have ended before the share of failures among them stops the rest."""


class SupersededError(ReleaseError):
    """The target has a newer version of the component already; that one stays.

    Cause: Another round or `fedgrass model publish` released a newer version meanwhile.

    Remedy: Nothing: the newer version stays, and the next round starts from it.
    """

    code = "superseded"


def deploy_version(
    greengrass: GreengrassV2Client,
    target_arn: str,
    component: str,
    version: str,
    *,
    create: bool = True,
    exact: bool = False,
    job: DeploymentIoTJobConfigurationTypeDef | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> str | None:
    """Make ``target_arn``'s latest deployment hold ``component`` at ``version``; returns that deployment's id.

    Running it again changes nothing. Components, their configuration updates, policies, name, parent and tags are
    those of the latest deployment, whoever made it.

    Parameters
    ----------
    create
        Whether to make the target's first deployment, with this component alone, if it has none; returns None otherwise.
    exact
        Whether a newer version makes way for this one: a person's decision, never a round's.
    job
        ``iotJobConfiguration`` of a deployment that is made; None keeps that of the latest.
    pause
        Waits that many seconds until a new deployment shows in the list.

    Raises
    ------
    SupersededError
        If a newer version is deployed, unless ``exact``.
    ReleaseError
        If others keep deploying to the target at the same time.
    """
    wanted = version

    def change(base: GetDeploymentResponseTypeDef | None) -> Entry | None:
        nonlocal wanted
        found = component_version(base, component)
        # A round that is late never puts an older model in place of a newer one.
        wanted = version if found is None or exact else max(found, version, key=version_order)
        return None if found == wanted else {"componentVersion": wanted}

    what = f"{component} {version}"
    latest = _revise(greengrass, target_arn, component, change, what, create=create, job=job, pause=pause)
    if latest is not None and wanted != version:
        raise SupersededError(f"{component} {wanted} is deployed already; {version} was not put in its place")
    return latest


def configure(
    greengrass: GreengrassV2Client,
    target_arn: str,
    component: str,
    settings: Mapping[str, Any],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> str | None:
    """Merge settings into a component's configuration in ``target_arn``'s latest deployment; returns the deployment's id.

    Running it again changes nothing. Settings that are not given stay.

    Parameters
    ----------
    settings
        What is merged, as the component's recipe has it.
    pause
        Waits that many seconds until a new deployment shows in the list.

    Returns
    -------
    str or None
        None if the target has no deployment.

    Raises
    ------
    ReleaseError
        If the deployment does not name the component, or others keep deploying to the target at the same time.
    """

    def change(base: GetDeploymentResponseTypeDef | None) -> Entry | None:
        known: Mapping[str, Any] = base or {}
        entry: Mapping[str, Any] | None = known.get("components", {}).get(component)
        if entry is None:
            raise ReleaseError(
                f"{target_arn}: its deployment does not name {component}, so its configuration cannot be changed there. Add it "
                f"to the deployment, with the configuration {json.dumps(settings)}"
            )
        update = entry.get("configurationUpdate", {})
        before = json.loads(update.get("merge") or "{}")
        after = _merged(before, settings)
        return None if after == before else {"configurationUpdate": {**update, "merge": json.dumps(after)}}

    what = f"the configuration of {component}"
    return _revise(greengrass, target_arn, component, change, what, create=False, pause=pause)


def _merged(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    after = dict(before)
    for name, value in settings.items():
        known = after.get(name)
        after[name] = _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return after


def _revise(
    greengrass: GreengrassV2Client,
    target_arn: str,
    component: str,
    change: Callable[[GetDeploymentResponseTypeDef | None], Entry | None],
    what: str,
    *,
    create: bool,
    job: DeploymentIoTJobConfigurationTypeDef | None = None,
    pause: Callable[[float], None],
) -> str | None:
    """Deploy what ``change`` makes of one entry of the newest deployment; it returns None where that is as it should be."""
    ours: dict[str, str | None] = {}  # a deployment we made -> the one it was made from
    made: str | None = None
    # By hand: the functions' archive has no tenacity, and most turns of this loop act rather than wait.
    for attempt in range(_ATTEMPTS):
        deployments = history(greengrass, target_arn)
        # ListDeployments is eventually consistent: our own may not show yet.
        if made is not None and made not in deployments:
            pause(0.1 * 2**attempt)
            continue
        latest = deployments[0] if deployments else None
        # CreateDeployment replaces all components, so ours is made from the newest that is somebody else's; made from
        # our own, it would undo theirs.
        theirs = next((one for one in deployments if one not in ours), None)
        if theirs is None and not create:
            return None
        base = greengrass.get_deployment(deploymentId=theirs) if theirs is not None else None
        entry = change(base)
        # Done if our newest was made from their newest, or theirs is as it should be already.
        if latest is not None and (ours[latest] == theirs if latest in ours else entry is None):
            return latest
        if made is not None:
            log_event("deployment_merged", target=target_arn, deployment=theirs)
        made = greengrass.create_deployment(**_changed(base, target_arn, component, entry, job))["deploymentId"]
        ours[made] = theirs
    raise ReleaseError(
        f"{target_arn}: others kept deploying to it while {what} was being deployed. Run again when they are done"
    )


def deployed_version(greengrass: GreengrassV2Client, target_arn: str, component: str) -> str | None:
    """Find the version of a component in a target's latest deployment.

    Parameters
    ----------
    greengrass
        The boto3 client.
    target_arn
        ARN of a thing group or a thing.
    component
        Name of the component.

    Returns
    -------
    str or None
        None if the target has no deployment, or the deployment not this component.
    """
    listed = history(greengrass, target_arn)
    if not listed:
        return None
    return component_version(greengrass.get_deployment(deploymentId=listed[0]), component)


def component_version(deployment: GetDeploymentResponseTypeDef | None, component: str) -> str | None:
    """Return the component's version in a deployment; None if it is not in it."""
    components = {} if deployment is None else deployment.get("components", {})
    return components[component].get("componentVersion") if component in components else None


def job_configuration(rollout: Rollout) -> DeploymentIoTJobConfigurationTypeDef | None:
    """Return the ``iotJobConfiguration`` of the fleet's deployment; None where the settings ask for nothing."""
    found: DeploymentIoTJobConfigurationTypeDef = {}
    if rollout.per_minute is not None:
        found["jobExecutionsRolloutConfig"] = {"maximumPerMinute": rollout.per_minute}
    if rollout.abort_share > 0:
        criterion: IoTJobAbortCriteriaTypeDef = {
            "failureType": "FAILED",
            "action": "CANCEL",
            "thresholdPercentage": round(100 * rollout.abort_share, 2),
            "minNumberOfExecutedThings": _FEWEST,
        }
        found["abortConfig"] = {"criteriaList": [criterion]}
    return found or None


def history(greengrass: GreengrassV2Client, target_arn: str) -> list[str]:
    """Ids of the target's deployments, the newest first."""
    return [entry["deploymentId"] for entry in entries(greengrass, target_arn)]


def entries(greengrass: GreengrassV2Client, target_arn: str) -> list[DeploymentTypeDef]:
    """Return what is listed of the target's deployments, the newest first."""
    # All of them: the newest that is somebody else's lies below ours.
    pages = greengrass.get_paginator("list_deployments").paginate(targetArn=target_arn, historyFilter="ALL")
    return sorted(
        (entry for page in pages for entry in page["deployments"]),
        # isLatestForTarget first: two deployments of one second have the same time.
        key=lambda entry: (entry.get("isLatestForTarget", False), entry["creationTimestamp"]),
        reverse=True,
    )


def _changed(
    base: GetDeploymentResponseTypeDef | None,
    target_arn: str,
    component: str,
    entry: Entry | None,
    job: DeploymentIoTJobConfigurationTypeDef | None,
) -> dict[str, Any]:
    known: Mapping[str, Any] = base or {}
    components = {**known.get("components", {})}
    # Entry by entry: configuration that somebody set for this component outlives the new version.
    if entry is not None:
        components[component] = {**components.get(component, {}), **entry}
    carried = {name: known[name] for name in _CARRIED_OVER if known.get(name)}
    # Replaces what was carried over: the pace is that of the settings of this release.
    if job is not None:
        carried["iotJobConfiguration"] = job
    return {"targetArn": target_arn, "components": components, **carried}

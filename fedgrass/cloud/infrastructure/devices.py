"""A fleet's devices in IoT Core: which things are its own, and how one is removed with all that was made for it.

Whatever is removed last is what the next run finds the rest by: the policy leads to the certificates, the thing to the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedgrass.cloud.infrastructure.identity import forsaken, is_ours, remove_certificate, subject
from fedgrass.cloud.infrastructure.script import is_gone, removed
from fedgrass.errors import InfrastructureError
from fedgrass.protocol.device_policy import policy_name, policy_prefix
from fedgrass.protocol.records import MODEL_SUFFIX
from fedgrass.protocol.writes import delete_item

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_iot import IoTClient

FLEET_MARK = "fedgrassFleet"  # an attribute of things that were made for a fleet
FLEET_TAG = "fedgrass:fleet"


def owner(iot: IoTClient, thing: str) -> str | None:
    """Return the fleet that a thing was made for; None if there is no such thing, or it was made for none."""
    try:
        mark: str | None = iot.describe_thing(thingName=thing).get("attributes", {}).get(FLEET_MARK)
    except iot.exceptions.ResourceNotFoundException:
        return None
    return mark


def check_is_free(iot: IoTClient, fleet: str, thing: str) -> None:
    """Check that a thing was not made for another fleet.

    Parameters
    ----------
    iot
        The boto3 client.
    fleet
        The fleet's name.
    thing
        The thing's name.

    Raises
    ------
    InfrastructureError
        If it was.
    """
    found = owner(iot, thing)
    if found not in (None, fleet):
        raise InfrastructureError(f"thing {thing!r} is of fleet {found!r}, not of {fleet!r}: choose another name")


def provisioned_things(iot: IoTClient, fleet: str) -> Iterator[str]:
    """Names of the things that were made for the fleet, and of those that were only given a policy of it."""
    pages = iot.get_paginator("list_things").paginate(attributeName=FLEET_MARK, attributeValue=fleet)
    marked = {entry["thingName"] for page in pages for entry in page["things"]}
    policies = set(left_policies(iot, fleet))
    yield from sorted(marked)
    try:
        listed = iot.get_paginator("list_things_in_thing_group").paginate(thingGroupName=fleet)
        members = [name for page in listed for name in page["things"]]
    except iot.exceptions.ResourceNotFoundException:
        members = []
    # Things that were there before `scripts/provision` carry no mark: their policy shows that they were given one.
    yield from sorted(thing for thing in set(members) - marked if policy_name(fleet, thing) in policies)


def left_policies(iot: IoTClient, fleet: str) -> list[str]:
    """Policies of the fleet's devices, for when the things that the fleet knows are removed."""
    return [name for name in _policies(iot) if name.startswith(policy_prefix(fleet))]


def remove_policy(session: Session, fleet: str, policy: str) -> None:
    """Remove a device's policy, and the device by way of its certificate if it left the fleet's group.

    Parameters
    ----------
    session
        A boto3 session.
    fleet
        The fleet's name.
    policy
        The policy's name.
    """
    iot = session.client("iot")
    for arn in _targets(iot, policy):
        things = iot.list_principal_things(principal=arn)["things"]
        for thing in things:
            # A certificate may be on several things; only the one that this policy is for is removed by it.
            if policy_name(fleet, thing) == policy:
                unprovision(session, fleet, thing)
        if things:
            removed(iot.detach_policy, policyName=policy, target=arn)
        else:
            # IoT Core deletes inactive certificates only.
            removed(iot.update_certificate, certificateId=arn.rpartition("/")[2], newStatus="INACTIVE")
            removed(iot.delete_certificate, certificateId=arn.rpartition("/")[2], forceDelete=True)
    _delete_policy(iot, policy)


def unprovision(session: Session, fleet: str, thing: str) -> None:
    """Remove a device's certificate, policy, core device and thing. If it is interrupted, run it again to continue.

    A thing that was there before `scripts/provision` stays, and so does a certificate that it had.

    Parameters
    ----------
    session
        A boto3 session.
    fleet
        The fleet's name.
    thing
        The device's thing name.

    Raises
    ------
    InfrastructureError
        If the thing was made for another fleet.
    """
    iot = session.client("iot")
    check_is_free(iot, fleet, thing)
    made_here = owner(iot, thing) == fleet
    policy = policy_name(fleet, thing)
    targets, principals = _targets(iot, policy), _principals(iot, thing)
    # Neither policy nor thing leads to a certificate: a run was stopped between making and attaching one.
    if not targets and not principals:
        for arn in list(forsaken(iot, subject(fleet, thing))):
            remove_certificate(iot, arn, thing)
    for arn in dict.fromkeys([*targets, *(principals if made_here else [])]):
        if made_here or is_ours(iot, arn, subject(fleet, thing)):
            remove_certificate(iot, arn, thing)
        else:
            removed(iot.detach_policy, policyName=policy, target=arn)
    # After the certificates, which are found by it; before the thing, by which the policy's name is found.
    _delete_policy(iot, policy)
    if made_here:
        removed(session.client("greengrassv2").delete_core_device, coreDeviceThingName=thing)
        removed(iot.delete_thing, thingName=thing)
    else:
        removed(iot.remove_thing_from_thing_group, thingName=thing, thingGroupName=fleet)


def forget(session: Session, table: str, fleet: str, thing: str) -> None:
    """Remove what the tables know of a device; from then on nothing of it counts, not even what it has uploaded.

    Parameters
    ----------
    session
        A boto3 session.
    table
        Name of the devices' table.
    fleet
        The fleet's name.
    thing
        The device's thing name.
    """
    devices = session.resource("dynamodb").Table(table)
    for name in (thing, thing + MODEL_SUFFIX):
        delete_item(devices, Key={"fleet": fleet, "thing": name})


def _policies(iot: IoTClient) -> list[str]:
    return [entry["policyName"] for page in iot.get_paginator("list_policies").paginate() for entry in page["policies"]]


def _targets(iot: IoTClient, policy: str) -> list[str]:
    try:
        pages = iot.get_paginator("list_targets_for_policy").paginate(policyName=policy)
        return [arn for page in pages for arn in page["targets"]]
    except iot.exceptions.ClientError as error:
        if is_gone(error):
            return []
        raise


def _principals(iot: IoTClient, thing: str) -> list[str]:
    try:
        return [arn for arn in iot.list_thing_principals(thingName=thing)["principals"] if ":cert/" in arn]
    except iot.exceptions.ResourceNotFoundException:
        return []


def _delete_policy(iot: IoTClient, policy: str) -> None:
    try:
        versions = iot.list_policy_versions(policyName=policy)["policyVersions"]
    except iot.exceptions.ResourceNotFoundException:
        return
    # DeletePolicy refuses a policy that has versions besides the default one.
    for version in versions:
        if not version["isDefaultVersion"]:
            removed(iot.delete_policy_version, policyName=policy, policyVersionId=version["versionId"])
    removed(iot.delete_policy, policyName=policy)

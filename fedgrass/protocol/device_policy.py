"""A core device's IoT policy: what it is called, and what it allows. Used by scripts/provision and by the claim hook alike."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.names import round_topic

_MAX_POLICY = 2048  # characters, spaces not counted
_MAX_NAME = 128


def policy_name(fleet: str, thing: str) -> str:
    """Return the name of a device's IoT policy, which no other device or fleet shares.

    Neither name has a full stop, and no thing's name a plus. Names that are too long together end in a digest.

    >>> policy_name("mill", "north:1"), policy_name("mill-north", "1")
    ('fedgrass.mill.north+1', 'fedgrass.mill-north.1')
    """
    name = policy_prefix(fleet) + thing.replace(":", "+")
    if len(name) <= _MAX_NAME:
        return name
    # '=' is in neither kind of name, so a shortened name equals no other device's.
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name[: _MAX_NAME - len(digest) - 1]}={digest}"


def policy_prefix(fleet: str) -> str:
    """Return what the names of the policies of a fleet's devices, and of no other's, begin with."""
    return f"fedgrass.{fleet}."


def device_policy(fleet: str, thing: str, role_alias: str, arn: str) -> dict[str, Any]:
    """Return a core device's IoT policy: its own topics, its own jobs and shadows, its fleet's round.

    Written out per device, because a Greengrass core device cannot use thing policy variables: its HTTPS requests have
    none, and the nucleus' second connection is called ``thing#2``.
    https://docs.aws.amazon.com/greengrass/v2/developerguide/device-auth.html

    Parameters
    ----------
    arn
        What the ARNs of the account's resources in the region have before their type, ``arn:aws:iot:REGION:ACCOUNT``.

    Raises
    ------
    ConfigurationError
        If the names are so long that IoT Core would not take the policy.
    """
    # One wildcard each for jobs, shadows, health and Defender: naming each topic would leave little of the 2,048
    # characters.
    own = [f"$aws/things/{thing}/*", f"fedgrass/{fleet}/devices/{thing}/*"]
    announced = round_topic(fleet)
    # Any component: a device downloads Greengrass's own ones and the application's, too.
    components = arn.replace(":iot:", ":greengrass:", 1) + ":components:*"

    def statement(actions: list[str], resources: list[str]) -> dict[str, Any]:
        return {"Effect": "Allow", "Action": actions, "Resource": resources}

    # Each action takes resources of its own kind only: a statement for each would not leave room for long names.
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            statement(
                ["iot:Connect", "iot:Publish", "iot:Receive", "iot:Subscribe", "iot:AssumeRoleWithCertificate"],
                [
                    # thing#2 and so on are the nucleus's further connections, past 50 subscriptions.
                    *(f"{arn}:client/{thing}", f"{arn}:client/{thing}#*", f"{arn}:rolealias/{role_alias}"),
                    *(f"{arn}:{kind}/{topic}" for kind in ("topic", "topicfilter") for topic in own),
                ],
            ),
            statement(["iot:Receive", "iot:Subscribe"], [f"{arn}:topic/{announced}", f"{arn}:topicfilter/{announced}"]),
            statement(
                ["greengrass:GetComponentVersionArtifact", "greengrass:ResolveComponentCandidates"], [components]
            ),
            # These two have no resource that a policy could name.
            statement(["greengrass:GetDeploymentConfiguration", "greengrass:ListThingGroupsForCoreDevice"], ["*"]),
        ],
    }
    # IoT Core does not count white space.
    size = len(json.dumps(policy, separators=(",", ":")))
    if size > _MAX_POLICY:
        raise ConfigurationError(
            f"the names of fleet {fleet!r} and thing {thing!r} are too long: the device's IoT policy would have {size} "
            f"characters, IoT Core takes {_MAX_POLICY}; a shorter thing's name counts six times"
        )
    return policy

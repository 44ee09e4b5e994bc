"""Decide whether a device may claim an identity: called by IoT Core before it provisions one with the fleet's template.

A claim certificate is in many hands, so it is good for new devices only: no name that exists already is given away, and each
device gets a policy of its own, the same as from scripts/provision.
https://docs.aws.amazon.com/iot/latest/developerguide/pre-provisioning-hook.html
"""

from __future__ import annotations

import json

from pydantic import BaseModel, Field

from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.errors import ConfigurationError
from fedgrass.logs import log_event
from fedgrass.protocol.device_policy import device_policy, policy_name
from fedgrass.protocol.names import check_device

_SERIAL = "SerialNumber"


class Claim(BaseModel, defer_build=True):
    """What IoT Core passes of the device's RegisterThing request."""

    template: str = Field(alias="templateArn")
    parameters: dict[str, str] = {}


connect("iot")


def handler(event: dict[str, object], _context: object) -> dict[str, object]:
    """Entry point."""
    return claim_device(own_services(), Claim.model_validate(event))


def claim_device(services: Services, claim: Claim) -> dict[str, object]:
    """Write the device's policy, and return its name and the thing's; or refuse, with the reason in the log."""
    serial = claim.parameters.get(_SERIAL, "")
    # The prefix is the fleet's, so a claim certificate cannot take a name outside it.
    thing = services.setting("FEDGRASS_CLAIM_PREFIX") + serial
    reason = _prepare(services, claim, thing) if serial else f"no {_SERIAL} was given"
    if reason is not None:
        log_event("claim_refused", fleet=services.fleet, thing=thing[:128], reason=reason)
        return {"allowProvisioning": False}
    log_event("device_claimed", fleet=services.fleet, thing=thing)
    names = {"ThingName": thing, "PolicyName": policy_name(services.fleet, thing)}
    return {"allowProvisioning": True, "parameterOverrides": names}


def _prepare(services: Services, claim: Claim, thing: str) -> str | None:
    """Write the device's policy; returns why not."""
    fleet, iot = services.fleet, services.iot
    try:
        # Built before IoT Core is asked: a name that is too long for the policy is refused here.
        document = device_policy(fleet, check_device(thing), f"fedgrass-{fleet}", claim.template.rpartition(":")[0])
    except ConfigurationError as error:
        return str(error)
    try:
        # A claim certificate is in many hands: handing out an existing name would let one device pose as another.
        iot.describe_thing(thingName=thing)
    except iot.exceptions.ResourceNotFoundException:
        pass
    else:
        return (
            "there is such a thing already; remove it first (scripts/provision --remove) if it is to be created again"
        )
    name = policy_name(fleet, thing)
    # Written before IoT Core provisions: the template attaches this policy by its name.
    try:
        iot.create_policy(
            policyName=name, policyDocument=json.dumps(document), tags=[{"Key": "fedgrass:fleet", "Value": fleet}]
        )
    except iot.exceptions.ResourceAlreadyExistsException:  # of an attempt that failed later
        if json.loads(iot.get_policy(policyName=name)["policyDocument"]) != document:
            return f"there is another IoT policy {name}"
    return None

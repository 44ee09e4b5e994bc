"""Give devices their identity: thing, certificate, IoT policy, thing group, and the nucleus' configuration."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import botocore
import typer
import yaml

from fedgrass.cloud.infrastructure import script
from fedgrass.cloud.infrastructure.devices import (
    FLEET_MARK,
    FLEET_TAG,
    check_is_free,
    forget,
    provisioned_things,
    unprovision,
)
from fedgrass.cloud.infrastructure.identity import (
    CERTIFICATE,
    KEY,
    forsaken,
    is_ours,
    make_key,
    remove_certificate,
    request,
    subject,
)
from fedgrass.cloudformation import StackOutputs, stack_outputs
from fedgrass.errors import InfrastructureError
from fedgrass.files import write_atomically
from fedgrass.protocol import device_policy as device_policies
from fedgrass.protocol.device_policy import policy_name
from fedgrass.protocol.names import ThingName, check_device, check_fleet, check_thing

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_iot import IoTClient

__all__ = ["device_policy", "policy_name", "provision", "provisioned_things", "unprovision"]

_ROOT_CA = "AmazonRootCA1.pem"
_CLASSIC_ROOT = "/greengrass/v2"
_LITE_ROOT = "/var/lib/greengrass"


@dataclass(frozen=True)
class Endpoints:
    """Where devices of the account connect to."""

    data: str
    credentials: str

    @classmethod
    def of(cls, iot: IoTClient) -> Endpoints:
        """Ask IoT Core."""
        data, credentials = (
            iot.describe_endpoint(endpointType=kind)["endpointAddress"]
            for kind in ("iot:Data-ATS", "iot:CredentialProvider")
        )
        return cls(data, credentials)


def device_policy(fleet: str, thing: str, role_alias: str, caller: script.Caller) -> dict[str, Any]:
    """Make a core device's IoT policy in the caller's account; see `fedgrass.protocol.device_policy`.

    Parameters
    ----------
    fleet
        The fleet's name.
    thing
        The device's thing name.
    role_alias
        The fleet's token-exchange role alias.
    caller
        Account, region and partition.

    Returns
    -------
    dict
        The policy document.
    """
    arn = f"arn:{caller.partition}:iot:{caller.region}:{caller.account}"
    return device_policies.device_policy(fleet, thing, role_alias, arn)


def nucleus_config(thing: str, region: str, role_alias: str, endpoints: Endpoints, *, lite: bool) -> str:
    """Write the configuration of a nucleus.

    Parameters
    ----------
    thing
        The device's thing name.
    region
        The fleet's region.
    role_alias
        The fleet's token-exchange role alias.
    endpoints
        Of IoT's data plane and of its credentials provider.
    lite
        Whether it is for nucleus lite; for the classic nucleus otherwise.

    Returns
    -------
    str
        The content of ``config.yaml``.
    """
    root = _LITE_ROOT if lite else _CLASSIC_ROOT
    settings: dict[str, Any] = {
        "awsRegion": region,
        "iotRoleAlias": role_alias,
        "iotDataEndpoint": endpoints.data,
        "iotCredEndpoint": endpoints.credentials,
    }
    if lite:
        settings |= {"runWithDefault": {"posixUser": "gg_component:gg_component"}, "greengrassDataPlanePort": "8443"}
        nucleus = {"aws.greengrass.NucleusLite": {"componentType": "NUCLEUS", "configuration": settings}}
    else:
        nucleus = {
            "aws.greengrass.Nucleus": {
                # Without a version: one that stands here wins over what the nucleus knows of itself.
                "componentType": "NUCLEUS",
                "configuration": settings,
            }
        }
    system = {
        "certificateFilePath": f"{root}/{CERTIFICATE}",
        "privateKeyPath": f"{root}/{KEY}",
        "rootCaPath": f"{root}/{_ROOT_CA}",
        # The two nuclei spell it differently, and nucleus lite is particular about case.
        "rootPath" if lite else "rootpath": root,
        "thingName": thing,
    }
    return str(yaml.safe_dump({"system": system, "services": nucleus}, sort_keys=False))


def provision(
    session: Session, outputs: StackOutputs, caller: script.Caller, thing: ThingName, folder: Path, steps: script.Steps
) -> None:
    """Make what is missing of one device, and write its files to ``folder``. If it is interrupted, run it again to continue.

    Parameters
    ----------
    session
        A boto3 session.
    outputs
        The stack's.
    caller
        Account, region and partition.
    thing
        The device's thing name.
    folder
        Where the device's files go; the private key is there and nowhere else.
    steps
        Does each step, or only tells of it.

    Raises
    ------
    ConfigurationError
        If the thing cannot have the name.
    InfrastructureError
        If the thing is another fleet's, or has a certificate whose private key is not in ``folder``: nobody else has the key.
    """
    fleet, alias = outputs.fleet, outputs.token_exchange_role_alias
    document = device_policy(fleet, check_device(thing), alias, caller)
    iot = session.client("iot")
    check_is_free(iot, fleet, thing)
    # A certificate whose key is elsewhere cannot be used by this device, and nothing here may replace it unasked.
    policy, certificate = policy_name(fleet, thing), _certificate(iot, thing)
    if certificate and not (folder / KEY).exists():
        raise InfrastructureError(
            f"thing {thing!r} has certificate {certificate.rpartition('/')[2][:12]}…, and its private key is not at "
            f"{folder / KEY}. Put it there, or give the device a new identity: scripts/provision --remove, then again"
        )
    steps.do(f"create thing {thing} in group {fleet}", _create_thing, iot, thing, fleet)
    # Before the certificate: a certificate that is attached finds its policy in place.
    steps.do(f"write IoT policy {policy}", _write_policy, iot, policy, document, fleet)
    if certificate is None:
        what = f"make a key, {folder / KEY}, and its certificate"
        certificate = steps.do(what, _new_certificate, iot, fleet, thing, folder, policy)
    if certificate is not None:
        steps.do("attach them", _attach, iot, thing, policy, certificate)
        steps.do(f"write {folder / CERTIFICATE}", _write_certificate, iot, certificate, folder)
    endpoints = Endpoints.of(iot)
    for name, lite in (("config.yaml", False), ("config-lite.yaml", True)):
        content = nucleus_config(thing, caller.region, alias, endpoints, lite=lite)
        steps.do(f"write {folder / name}", _write, folder / name, content)
    steps.do(f"write {folder / _ROOT_CA}", _write, folder / _ROOT_CA, amazon_root_ca())


def amazon_root_ca() -> str:
    """Return the certificate that IoT Core's endpoints lead to, from the collection that botocore brings."""
    bundle = (Path(botocore.__file__).parent / "cacert.pem").read_text()
    match = re.search(
        r'# Label: "Amazon Root CA 1".*?(-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n)', bundle, re.DOTALL
    )
    if match is None:
        raise InfrastructureError(
            "botocore's cacert.pem has no Amazon Root CA 1; get it from https://www.amazontrust.com/repository/"
        )
    return match.group(1)


def _certificate(iot: IoTClient, thing: str) -> str | None:
    try:
        principals = iot.list_thing_principals(thingName=thing)["principals"]
    except iot.exceptions.ResourceNotFoundException:
        return None
    return next((str(arn) for arn in principals if ":cert/" in arn), None)


def _create_thing(iot: IoTClient, thing: str, group: str) -> None:
    # The mark says that the thing is ours to remove. One that was there before keeps its attributes, and stays.
    with suppress(iot.exceptions.ResourceAlreadyExistsException):
        iot.create_thing(thingName=thing, attributePayload={"attributes": {FLEET_MARK: group}})
    iot.add_thing_to_thing_group(thingName=thing, thingGroupName=group)


def _write_policy(iot: IoTClient, name: str, document: dict[str, Any], fleet: str) -> None:
    text = json.dumps(document, separators=(",", ":"))
    try:
        iot.create_policy(policyName=name, policyDocument=text, tags=[{"Key": FLEET_TAG, "Value": fleet}])
    except iot.exceptions.ResourceAlreadyExistsException:
        if json.loads(iot.get_policy(policyName=name)["policyDocument"]) == document:
            return
        # A policy keeps five versions at most.
        versions = iot.list_policy_versions(policyName=name)["policyVersions"]
        for version in versions:
            if not version["isDefaultVersion"]:
                iot.delete_policy_version(policyName=name, policyVersionId=version["versionId"])
        iot.create_policy_version(policyName=name, policyDocument=text, setAsDefault=True)


def _new_certificate(iot: IoTClient, fleet: str, thing: str, folder: Path, policy: str) -> str:
    name = subject(fleet, thing)
    if (folder / KEY).exists():  # an earlier run was stopped, perhaps between these lines
        for arn in iot.list_targets_for_policy(policyName=policy)["targets"]:
            if is_ours(iot, arn, name):
                return str(arn)
        for arn in forsaken(iot, name):
            remove_certificate(iot, arn, thing)
    make_key(folder)
    # Inactive until it is attached: a key that nothing refers to must not be able to connect.
    made = iot.create_certificate_from_csr(certificateSigningRequest=request(folder, name), setAsActive=False)
    return str(made["certificateArn"])


def _attach(iot: IoTClient, thing: str, policy: str, certificate: str) -> None:
    # The policy first, active last: the next run finds an unfinished certificate by its policy.
    iot.attach_policy(policyName=policy, target=certificate)
    # Exclusively: no other thing can be given this certificate.
    iot.attach_thing_principal(thingName=thing, principal=certificate, thingPrincipalType="EXCLUSIVE_THING")
    iot.update_certificate(certificateId=certificate.rpartition("/")[2], newStatus="ACTIVE")


def _write_certificate(iot: IoTClient, certificate: str, folder: Path) -> None:
    described = iot.describe_certificate(certificateId=certificate.rpartition("/")[2])["certificateDescription"]
    _write(folder / CERTIFICATE, described["certificatePem"])


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, content.encode())


def main(
    things: Annotated[list[str], typer.Argument(help="Names of the devices.")],
    fleet: script.Fleet,
    output: Annotated[Path, typer.Option(help="Where each device gets a folder with its files.")] = Path("devices"),
    remove: Annotated[bool, typer.Option("--remove", help="Remove the devices' identities instead.")] = False,
    dry_run: script.DryRun = False,
) -> None:
    """Give devices their identity, and write what goes onto each: certificate, key, root certificate, config.yaml.

    config.yaml is for the classic nucleus, config-lite.yaml for nucleus lite. Running it again makes only what is missing. Many
    devices can provision themselves with a claim certificate: see docs/how-to/add-a-device.md.
    """
    check_fleet(fleet)
    for thing in things:
        policy_name(fleet, (check_thing if remove else check_device)(thing))
    session = script.own_session()
    caller = script.identify(session)
    outputs = stack_outputs(session, fleet)
    steps = script.Steps(dry_run=dry_run)
    for thing in things:
        device_policy(fleet, thing, outputs.token_exchange_role_alias, caller)
        check_is_free(session.client("iot"), fleet, thing)
    for thing in things:
        if remove:
            steps.do(f"remove device {thing}", unprovision, session, fleet, thing)
            # Afterwards: until its certificate is gone it can send another heartbeat.
            steps.do(f"forget what {thing} said", forget, session, outputs.devices_table, fleet, thing)
        else:
            provision(session, outputs, caller, thing, output / thing, steps)


if __name__ == "__main__":
    script.run(main)

"""Give devices their identity: thing, certificate, IoT policy, thing group, and the nucleus' configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import botocore
import typer
import yaml

from cloud.infrastructure import script
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.files import write_atomically
from fedgrass.protocol.names import ThingName, check_fleet, round_topic
from fedgrass.stack import StackOutputs, stack_outputs

_CERTIFICATE = "device.pem.crt"
_KEY = "private.pem.key"
_ROOT_CA = "AmazonRootCA1.pem"
_CLASSIC_ROOT = "/greengrass/v2"
_LITE_ROOT = "/var/lib/greengrass"
_NUCLEUS_VERSION = "2.14.3"
_MAX_POLICY = 2048  # characters, spaces not counted


@dataclass(frozen=True)
class Endpoints:
    """Where devices of the account connect to."""

    data: str
    credentials: str

    @classmethod
    def of(cls, iot: Any) -> Endpoints:
        """Ask IoT Core."""
        data, credentials = (
            iot.describe_endpoint(endpointType=kind)["endpointAddress"]
            for kind in ("iot:Data-ATS", "iot:CredentialProvider")
        )
        return cls(data, credentials)


def policy_name(fleet: str, thing: str) -> str:
    """Name of a device's IoT policy; policies' names have no colons."""
    return f"fedgrass-{fleet}-{thing.replace(':', '.')}"


def device_policy(fleet: str, thing: str, role_alias: str, caller: script.Caller) -> dict[str, Any]:
    """Return a core device's IoT policy: its own topics, its own jobs and shadows, its fleet's round.

    Written out per device, because a Greengrass core device cannot use thing policy variables. The nucleus' second
    connection is called ``thing#2``. https://docs.aws.amazon.com/greengrass/v2/developerguide/device-auth.html

    Raises
    ------
    ConfigurationError
        If the names are so long that IoT Core would not take the policy.
    """
    iot = f"arn:{caller.partition}:iot:{caller.region}:{caller.account}"
    topics = [f"$aws/things/{thing}/*", f"fedgrass/{fleet}/devices/{thing}/*"]
    announced = round_topic(fleet)

    def statement(actions: str | list[str], resources: list[str]) -> dict[str, Any]:
        return {"Effect": "Allow", "Action": actions, "Resource": resources}

    policy = {
        "Version": "2012-10-17",
        "Statement": [
            statement("iot:Connect", [f"{iot}:client/{thing}", f"{iot}:client/{thing}#*"]),
            statement(["iot:Publish", "iot:Receive"], [f"{iot}:topic/{topic}" for topic in topics]),
            statement("iot:Receive", [f"{iot}:topic/{announced}"]),
            statement("iot:Subscribe", [f"{iot}:topicfilter/{topic}" for topic in (*topics, announced)]),
            statement("iot:AssumeRoleWithCertificate", [f"{iot}:rolealias/{role_alias}"]),
            statement(
                [
                    "greengrass:GetComponentVersionArtifact",
                    "greengrass:GetDeploymentConfiguration",
                    "greengrass:ListThingGroupsForCoreDevice",
                    "greengrass:ResolveComponentCandidates",
                ],
                ["*"],
            ),
        ],
    }
    size = len(json.dumps(policy, separators=(",", ":")))
    if size > _MAX_POLICY:
        raise ConfigurationError(
            f"the names of fleet {fleet!r} and thing {thing!r} are too long: the device's IoT policy would have {size} "
            f"characters, IoT Core takes {_MAX_POLICY}"
        )
    return policy


def nucleus_config(thing: str, region: str, role_alias: str, endpoints: Endpoints, *, lite: bool) -> str:
    """Return ``config.yaml`` of the classic nucleus, or of nucleus lite."""
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
                "componentType": "NUCLEUS",
                "version": _NUCLEUS_VERSION,
                "configuration": settings,
            }
        }
    system = {
        "certificateFilePath": f"{root}/{_CERTIFICATE}",
        "privateKeyPath": f"{root}/{_KEY}",
        "rootCaPath": f"{root}/{_ROOT_CA}",
        "rootPath" if lite else "rootpath": root,
        "thingName": thing,
    }
    return str(yaml.safe_dump({"system": system, "services": nucleus}, sort_keys=False))


def check_thing(thing: str) -> str:
    """Return the name, or raise `ConfigurationError` if it cannot be a thing's."""
    if not re.fullmatch(r"[a-zA-Z0-9:_-]{1,128}", thing):
        raise ConfigurationError(f"thing {thing!r}: expected 1 to 128 letters, digits, ':', '_' or '-'")
    return thing


def provision(
    session: Any, outputs: StackOutputs, caller: script.Caller, thing: ThingName, folder: Path, steps: script.Steps
) -> None:
    """Make what is missing of one device, and write its files to ``folder``.

    Raises
    ------
    InfrastructureError
        If the thing has a certificate whose private key is not in ``folder``: AWS shows a key only once.
    """
    iot = session.client("iot")
    alias = outputs.token_exchange_role_alias
    certificate = _certificate(iot, thing)
    key = folder / _KEY
    if certificate and not key.exists():
        raise InfrastructureError(
            f"thing {thing!r} has certificate {certificate.rpartition('/')[2][:12]}…, and its private key is not at {key}. "
            "Put it there, or detach the certificate from the thing to get a new one"
        )
    steps.do(f"create thing {thing} in group {outputs.fleet}", _create_thing, iot, thing, outputs.fleet)
    document = device_policy(outputs.fleet, thing, alias, caller)
    policy = policy_name(outputs.fleet, thing)
    steps.do(f"write IoT policy {policy}", _write_policy, iot, policy, document)
    if certificate is None:
        certificate = steps.do(f"create a certificate; its key goes to {key}", _new_certificate, iot, folder)
    if certificate is not None:
        steps.do("attach them", _attach, iot, thing, policy, certificate)
    endpoints = Endpoints.of(iot)
    for name, lite in (("config.yaml", False), ("config-lite.yaml", True)):
        content = nucleus_config(thing, caller.region, alias, endpoints, lite=lite)
        steps.do(f"write {folder / name}", _write, folder / name, content)
    steps.do(f"write {folder / _ROOT_CA}", _write, folder / _ROOT_CA, amazon_root_ca())


def provisioned_things(iot: Any, fleet: str) -> Iterator[str]:
    """Names of the things in the fleet's group that have a policy of ours."""
    pages = iot.get_paginator("list_things_in_thing_group").paginate(thingGroupName=fleet)
    for thing in [name for page in pages for name in page["things"]]:
        try:
            iot.get_policy(policyName=policy_name(fleet, thing))
        except iot.exceptions.ResourceNotFoundException:
            continue
        yield thing


def unprovision(session: Any, fleet: str, thing: str) -> None:
    """Remove a device's certificate, policy, thing and core device."""
    iot = session.client("iot")
    policy = policy_name(fleet, thing)
    for arn in iot.list_thing_principals(thingName=thing)["principals"]:
        certificate = arn.rpartition("/")[2]
        iot.detach_thing_principal(thingName=thing, principal=arn)
        iot.detach_policy(policyName=policy, target=arn)
        iot.update_certificate(certificateId=certificate, newStatus="INACTIVE")
        iot.delete_certificate(certificateId=certificate, forceDelete=True)
    for version in iot.list_policy_versions(policyName=policy)["policyVersions"]:
        if not version["isDefaultVersion"]:
            iot.delete_policy_version(policyName=policy, policyVersionId=version["versionId"])
    iot.delete_policy(policyName=policy)
    greengrass = session.client("greengrassv2")
    with suppress(greengrass.exceptions.ResourceNotFoundException):  # a device that never connected is none
        greengrass.delete_core_device(coreDeviceThingName=thing)
    iot.delete_thing(thingName=thing)


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


def _certificate(iot: Any, thing: str) -> str | None:
    try:
        principals = iot.list_thing_principals(thingName=thing)["principals"]
    except iot.exceptions.ResourceNotFoundException:
        return None
    return next((str(arn) for arn in principals if ":cert/" in arn), None)


def _create_thing(iot: Any, thing: str, group: str) -> None:
    with suppress(iot.exceptions.ResourceAlreadyExistsException):  # with attributes of its own
        iot.create_thing(thingName=thing)
    iot.add_thing_to_thing_group(thingName=thing, thingGroupName=group)


def _write_policy(iot: Any, name: str, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1)
    try:
        iot.create_policy(policyName=name, policyDocument=text)
    except iot.exceptions.ResourceAlreadyExistsException:
        if json.loads(iot.get_policy(policyName=name)["policyDocument"]) == document:
            return
        # A policy keeps five versions at most.
        versions = iot.list_policy_versions(policyName=name)["policyVersions"]
        for version in versions:
            if not version["isDefaultVersion"]:
                iot.delete_policy_version(policyName=name, policyVersionId=version["versionId"])
        iot.create_policy_version(policyName=name, policyDocument=text, setAsDefault=True)


def _new_certificate(iot: Any, folder: Path) -> str:
    made = iot.create_keys_and_certificate(setAsActive=True)
    _write(folder / _KEY, made["keyPair"]["PrivateKey"])
    (folder / _KEY).chmod(0o600)
    _write(folder / _CERTIFICATE, made["certificatePem"])
    return str(made["certificateArn"])


def _attach(iot: Any, thing: str, policy: str, certificate: str) -> None:
    iot.attach_policy(policyName=policy, target=certificate)
    iot.attach_thing_principal(thingName=thing, principal=certificate)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, content.encode())


def main(
    things: Annotated[list[str], typer.Argument(help="Names of the devices.")],
    fleet: script.Fleet,
    output: Annotated[Path, typer.Option(help="Where each device gets a folder with its files.")] = Path("devices"),
    dry_run: script.DryRun = False,
) -> None:
    """Give devices their identity, and write what goes onto each: certificate, key, root certificate, config.yaml.

    config.yaml is for the classic nucleus, config-lite.yaml for nucleus lite. Running it again makes only what is missing. For
    many devices that provision themselves see cloud/infrastructure/fleet_provisioning.yaml.
    """
    for thing in things:
        check_thing(thing)
    session = script.own_session()
    caller = script.identify(session)
    outputs = stack_outputs(session, check_fleet(fleet))
    steps = script.Steps(dry_run=dry_run)
    for thing in things:
        provision(session, outputs, caller, thing, output / thing, steps)


if __name__ == "__main__":
    script.run(main)

"""Deploy a fleet's stack: functions, state machine, roles, tables, alarms, and the aggregator's image by CodeBuild.

Works against AWS, and against the local stand-in through AWS_ENDPOINT_URL. Running it again changes only what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer
from botocore.exceptions import ClientError

from fedgrass.cloud.infrastructure import script, storage
from fedgrass.cloud.infrastructure.image import build_image, image_exists
from fedgrass.cloud.infrastructure.package import definition, functions_archive, image_source, template
from fedgrass.cloud.infrastructure.parameters import check_parameters, template_parameters
from fedgrass.cloud.infrastructure.stacks import described_stack, wait
from fedgrass.cloud.infrastructure.states import check_changeable
from fedgrass.cloudformation import StackOutputs, check_owner, stack_name, stack_outputs
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.protocol.names import GLOBAL_MODEL, check_fleet, fleet_digest

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import ParameterTypeDef, StackTypeDef
    from mypy_boto3_s3 import S3Client

__all__ = ["Code", "check", "deploy", "template_parameters", "wait"]


@dataclass(frozen=True)
class Code:
    """What is uploaded before the stack: each under its digest, so that CloudFormation sees when it changes."""

    dependencies: bool = True

    @cached_property
    def files(self) -> dict[str, tuple[str, bytes]]:
        """Key and content of each, by the template's parameter."""
        contents = {
            "CodeKey": ("rounds", "zip", functions_archive(dependencies=self.dependencies)),
            "DefinitionKey": ("rounds", "asl.json", definition().read_bytes()),
            "SourceKey": ("source", "zip", image_source()),
            "Template": ("templates", "yaml", template().read_bytes()),
        }
        return {
            name: (f"{folder}/{hashlib.sha256(content).hexdigest()}.{suffix}", content)
            for name, (folder, suffix, content) in contents.items()
        }

    @property
    def image_tag(self) -> str:
        """Tag of the image that is made of the source."""
        # 16 of the digest's 64 digits: enough to name an image, and short enough to read.
        return self.files["SourceKey"][0].removeprefix("source/")[:16]


def deploy(
    session: Session,
    *,
    fleet: str,
    parameters: dict[str, str] | None = None,
    dependencies: bool = True,
) -> StackOutputs:
    """Create or update the fleet's stack and wait until it is ready.

    Parameters
    ----------
    session
        A boto3 session.
    parameters
        Parameters of the template beyond the fleet and the code, such as ``AlarmMail``. Those that are left out stay
        as they are.
    dependencies
        See `functions_archive`.

    Raises
    ------
    ConfigurationError
        If the fleet's name is not valid, or the template has no such parameter.
    InfrastructureError
        If the stack is in no state to be changed, or could not be; the message has CloudFormation's own reason.
    """
    check(session, fleet, parameters or {})
    return _apply(session, fleet, parameters or {}, Code(dependencies=dependencies))


def check(session: Session, fleet: str, parameters: dict[str, str]) -> bool:
    """Check everything that could fail, before anything is changed.

    Parameters
    ----------
    session
        A boto3 session.
    fleet
        The fleet's name.
    parameters
        Of the template, by name.

    Returns
    -------
    bool
        Whether there is a stack.

    Raises
    ------
    ConfigurationError
        If a name or a parameter's value is invalid.
    InfrastructureError
        If the stack cannot be changed, or another fleet has what this one needs.
    """
    check_fleet(fleet)
    check_parameters(parameters)
    # Everything below only reads: what would fail half way fails here, before anything changed.
    cloudformation = session.client("cloudformation")
    name = stack_name(fleet)
    stack = described_stack(cloudformation, name)
    if stack is not None:
        check_owner(stack, fleet)
    check_changeable(name, fleet, stack["StackStatus"] if stack else None)
    # An existing stack keeps its component, so there is nobody new to collide with.
    if stack is None or "ModelComponent" in parameters:
        _check_others(cloudformation, fleet, parameters.get("ModelComponent", GLOBAL_MODEL))
    if stack is None and parameters.get("BucketName"):
        _check_bucket_is_free(storage.own_s3(session, script.identify(session)), parameters["BucketName"])
    return stack is not None


def _check_others(cloudformation: CloudFormationClient, fleet: str, component: str) -> None:
    """Raise `ConfigurationError` if another fleet has the model component, or this name but for case."""
    for stack in [one for page in cloudformation.get_paginator("describe_stacks").paginate() for one in page["Stacks"]]:
        given = _given(stack)
        other = given.get("Fleet")
        # Stacks without FleetDigest are none of ours, whatever their parameters are called.
        if other in (None, fleet) or "FleetDigest" not in given:
            continue
        if other.casefold() == fleet.casefold():
            raise ConfigurationError(
                f"fleet {fleet!r} is written like fleet {other!r} but for case: choose another name"
            )
        if given.get("ModelComponent") == component:
            raise ConfigurationError(
                f"fleet {other!r} has its models in component {component}, and a component's versions exist once in an account "
                f"and region: --parameter ModelComponent={GLOBAL_MODEL}.{fleet}, or another name"
            )


def _given(stack: StackTypeDef | None) -> dict[str, str]:
    return {
        given["ParameterKey"]: given.get("ParameterValue", "")
        for given in (stack.get("Parameters", []) if stack else [])
    }


def _parameters(given: Mapping[str, str], kept: Collection[str]) -> list[ParameterTypeDef]:
    values: list[ParameterTypeDef] = [{"ParameterKey": key, "ParameterValue": given[key]} for key in given]
    same: list[ParameterTypeDef] = [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]
    return [*values, *same]


def _apply(
    session: Session, fleet: str, parameters: dict[str, str], code: Code, *, image: bool = False
) -> StackOutputs:
    """Create or update the stack.

    Parameters
    ----------
    image
        Whether the image of this code is there, so that an existing stack may point at it. A new one points at what is made
        next: no round can start before.
    """
    cloudformation = session.client("cloudformation")
    name = stack_name(fleet)
    # Uploaded before the stack is touched: CloudFormation and Lambda read them from S3 during the update.
    bucket, template_url = _upload(session, code)
    existing = described_stack(cloudformation, name)
    given = {
        "Fleet": fleet,
        "FleetDigest": fleet_digest(fleet),
        "CodeBucket": bucket,
        **({"ImageTag": code.image_tag} if image or existing is None else {}),
        **{key: code.files[key][0] for key in ("CodeKey", "DefinitionKey", "SourceKey")},
        **parameters,
    }
    # Only parameters that the new template still has: CloudFormation refuses a previous value of one that is gone.
    kept = _given(existing).keys() & template_parameters() - given.keys()
    arguments: dict[str, Any] = {
        "StackName": name,
        # By address: the template is over the 51,200 bytes that may be passed by value.
        "TemplateURL": template_url,
        "Parameters": _parameters(given, kept),
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": "fedgrass:fleet", "Value": fleet}],
    }
    if existing is None:
        cloudformation.create_stack(**arguments)
        wait(cloudformation, name, "stack_create_complete")
    else:
        try:
            cloudformation.update_stack(**arguments)
        except ClientError as error:
            # CloudFormation has no error code of its own for it.
            if "No updates are to be performed" not in str(error):
                raise
        else:
            wait(cloudformation, name, "stack_update_complete")
    return stack_outputs(session, fleet)


def change_parameters(session: Session, fleet: str, parameters: dict[str, str]) -> None:
    """Change parameters of a fleet's stack and nothing else, and wait until it is done.

    Parameters
    ----------
    session
        A boto3 session.
    fleet
        The fleet's name.
    parameters
        New values by name; the others stay.

    Raises
    ------
    InfrastructureError
        If there is no stack, it is in no state to be changed, it knows no such parameter, or CloudFormation could not do it.
    """
    cloudformation = session.client("cloudformation")
    name = stack_name(check_fleet(fleet))
    stack = described_stack(cloudformation, name)
    if stack is None:
        raise InfrastructureError(f"fleet {fleet!r}: there is no stack {name}; deploy it first")
    check_owner(stack, fleet)
    check_changeable(name, fleet, stack["StackStatus"])
    known = cloudformation.get_template_summary(StackName=name)["Parameters"]
    names = {one["ParameterKey"] for one in known}
    if missing := sorted(parameters.keys() - names):
        raise InfrastructureError(f"stack {name} has no parameter {missing[0]}: deploy it again (scripts/deploy)")
    kept = _given(stack).keys() & names - parameters.keys()
    try:
        cloudformation.update_stack(
            StackName=name,
            UsePreviousTemplate=True,
            Parameters=_parameters(parameters, kept),
            Capabilities=["CAPABILITY_IAM"],
        )
    except ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise
    else:
        wait(cloudformation, name, "stack_update_complete")


def _check_bucket_is_free(s3: S3Client, bucket: str) -> None:
    if storage.bucket_exists(s3, bucket, otherwise="names are unique in all of AWS, choose another"):
        raise InfrastructureError(
            f"bucket {bucket!r} exists in this account, outside the stack: choose another name, or delete it (a fleet that was "
            "removed with --keep-models leaves its bucket)"
        )


def _upload(session: Session, code: Code) -> tuple[str, str]:
    """Upload the code and the template; returns the bucket and the template's address."""
    caller = script.identify(session)
    bucket = f"fedgrass-deploy-{caller.account}-{caller.region}"
    s3 = storage.own_s3(session, caller)
    storage.ensure_bucket(s3, bucket, caller, otherwise="deployments use a bucket of this name")
    for key, content in code.files.values():
        s3.put_object(Bucket=bucket, Key=key, Body=content)
    # China's partition has another domain for S3.
    suffix = "amazonaws.com.cn" if caller.partition == "aws-cn" else "amazonaws.com"
    return bucket, f"https://{bucket}.s3.{caller.region}.{suffix}/{code.files['Template'][0]}"


def main(
    fleet: script.Fleet,
    parameter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the template, such as AlarmMail=me@example.org; may be repeated."),
    ] = None,
    image: Annotated[
        bool, typer.Option(help="Also build the aggregator's image with CodeBuild, if it does not exist.")
    ] = True,
    dependencies: Annotated[bool, typer.Option(help="Pack third-party libraries; not needed locally.")] = True,
    dry_run: script.DryRun = False,
) -> None:
    """Deploy a fleet's stack to the AWS account of the environment, or bring it up to date.

    Running it again changes only what differs, and parameters keep their values.
    """
    parameters = dict(_parameter(text) for text in parameter or [])
    check_fleet(fleet)
    check_parameters(parameters)
    session = script.own_session()
    caller = script.identify(session)
    exists = check(session, fleet, parameters)
    # In a dry run without the libraries: pip would download them for a look only.
    code = Code(dependencies=dependencies and not dry_run)
    steps = script.Steps(dry_run=dry_run)
    there = False
    if exists:
        # Built first, and by the stack as it is: a round that starts meanwhile finds the image that it had.
        there = _image(session, fleet, parameters, code, steps, build=image)
    verb = "update" if exists else "create"
    outputs = steps.do(
        f"{verb} stack {stack_name(fleet)} in account {caller.account}, {caller.region} {parameters or ''}".rstrip(),
        _apply,
        session,
        fleet,
        parameters,
        code,
        image=there,
    )
    if not exists and outputs is not None:
        # A new stack first: the build project and the repository are part of it.
        _image(session, fleet, parameters, code, steps, build=image)
    elif not exists and image:
        steps.tell(f"would make the aggregator's image {code.image_tag} by CodeBuild")
    for field in fields(outputs) if outputs else ():
        typer.echo(f"{field.name}={getattr(outputs, field.name)}")


def _image(
    session: Session, fleet: str, parameters: dict[str, str], code: Code, steps: script.Steps, *, build: bool
) -> bool:
    """Have the image of the code made if it is not there; returns whether it is. None is made where another one is used."""
    outputs = stack_outputs(session, fleet)
    own = outputs.image.startswith(outputs.repository_uri) and not parameters.get("AggregatorImage")
    if not own and parameters.get("AggregatorImage") != "":
        return False
    if not build:
        return False
    if not image_exists(session, outputs, code.image_tag):
        caller = script.identify(session)
        source = f"fedgrass-deploy-{caller.account}-{caller.region}/{code.files['SourceKey'][0]}"
        steps.do(f"make the aggregator's image {code.image_tag} by CodeBuild", _build, session, outputs, code, source)
    return True


def _build(session: Session, outputs: StackOutputs, code: Code, source: str) -> None:
    _upload(session, code)
    build_image(session, outputs, tag=code.image_tag, source=source, tell=typer.echo)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--parameter {text!r}: expected NAME=VALUE")
    return name, value


if __name__ == "__main__":
    script.run(main)

"""Deploy a fleet's stack: functions, state machine, roles, tables, alarms, and the aggregator's image by CodeBuild.

Works against AWS, and against the local stand-in through AWS_ENDPOINT_URL. Running it again changes only what differs.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from botocore.exceptions import ClientError, WaiterError

from cloud.infrastructure import script
from cloud.infrastructure.image import build_image, image_exists
from cloud.infrastructure.package import DEFINITION, functions_archive, image_source
from fedgrass.errors import ConfigurationError, InfrastructureError
from fedgrass.protocol.names import check_fleet
from fedgrass.stack import StackOutputs, stack_name, stack_outputs

TEMPLATE = Path(__file__).with_name("template.yaml")

_FINISHED = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE"}
_BEGUN = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}


@dataclass(frozen=True)
class Code:
    """What is uploaded before the stack: each under its digest, so that CloudFormation sees when it changes."""

    dependencies: bool = True

    @cached_property
    def files(self) -> dict[str, tuple[str, bytes]]:
        """Key and content of each, by the template's parameter."""
        contents = {
            "CodeKey": ("rounds", "zip", functions_archive(dependencies=self.dependencies)),
            "DefinitionKey": ("rounds", "asl.json", DEFINITION.read_bytes()),
            "SourceKey": ("source", "zip", image_source()),
            "Template": ("templates", "yaml", TEMPLATE.read_bytes()),
        }
        return {
            name: (f"{folder}/{hashlib.sha256(content).hexdigest()}.{suffix}", content)
            for name, (folder, suffix, content) in contents.items()
        }

    @property
    def image_tag(self) -> str:
        """Tag of the image that is made of the source."""
        return self.files["SourceKey"][0].removeprefix("source/")[:16]


def deploy(
    session: Any,
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


def check(session: Any, fleet: str, parameters: dict[str, str]) -> bool:
    """Look before changing anything; returns whether there is a stack. Raises as `deploy` does."""
    check_fleet(fleet)
    unknown = sorted(parameters.keys() - template_parameters())
    if unknown:
        raise ConfigurationError(
            f"the template has no parameter {unknown[0]!r}; it has {', '.join(sorted(template_parameters()))}"
        )
    cloudformation = session.client("cloudformation")
    status = _status(cloudformation, stack_name(fleet))
    _check_changeable(stack_name(fleet), status)
    if status is None and parameters.get("BucketName"):
        _check_bucket_is_free(session.client("s3"), parameters["BucketName"])
    return status is not None


def template_parameters() -> set[str]:
    """Names of the template's parameters."""
    section = TEMPLATE.read_text().split("\nParameters:\n")[1].split("\nConditions:\n")[0]
    return set(re.findall(r"^  (\w+):$", section, re.MULTILINE))


def _apply(session: Any, fleet: str, parameters: dict[str, str], code: Code) -> StackOutputs:
    cloudformation = session.client("cloudformation")
    name = stack_name(fleet)
    bucket, template_url = _upload(session, code)
    given = {
        "Fleet": fleet,
        "CodeBucket": bucket,
        "ImageTag": code.image_tag,
        **{key: code.files[key][0] for key in ("CodeKey", "DefinitionKey", "SourceKey")},
        **parameters,
    }
    existing = _parameters(cloudformation, name)
    arguments = {
        "StackName": name,
        "TemplateURL": template_url,
        "Parameters": [
            *({"ParameterKey": key, "ParameterValue": value} for key, value in given.items()),
            *(
                {"ParameterKey": key, "UsePreviousValue": True}
                for key in sorted((existing or set()) & template_parameters() - given.keys())
            ),
        ],
        # Named: the role that silos assume has a name that other accounts can know.
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
        "Tags": [{"Key": "fedgrass:fleet", "Value": fleet}],
    }
    if existing is None:
        cloudformation.create_stack(**arguments)
        wait(cloudformation, name, "stack_create_complete")
    else:
        try:
            cloudformation.update_stack(**arguments)
        except ClientError as error:
            if "No updates are to be performed" not in str(error):
                raise
        else:
            wait(cloudformation, name, "stack_update_complete")
    return stack_outputs(session, fleet)


def _parameters(cloudformation: Any, name: str) -> set[str] | None:
    """Names of the stack's parameters; None if there is no stack."""
    if _status(cloudformation, name) is None:
        return None
    stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    return {parameter["ParameterKey"] for parameter in stack.get("Parameters", [])}


def _status(cloudformation: Any, name: str) -> str | None:
    try:
        status: str = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        return None
    return status


def _check_changeable(name: str, status: str | None) -> None:
    if status is None or status in _FINISHED:
        return
    if status.endswith("_IN_PROGRESS"):
        raise InfrastructureError(f"stack {name} is being changed ({status}); wait until that is done, then try again")
    raise InfrastructureError(
        f"stack {name} cannot be updated in state {status}; remove it with scripts/destroy, then deploy again"
    )


def _check_bucket_is_free(s3: Any, bucket: str) -> None:
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in {"404", "NoSuchBucket"}:
            return
        raise InfrastructureError(
            f"bucket {bucket!r} exists in another account: names are unique in all of AWS, choose another"
        ) from error
    raise InfrastructureError(
        f"bucket {bucket!r} exists in this account, outside the stack: choose another name, or delete it (a fleet that was "
        "removed with --keep-models leaves its bucket)"
    )


def _upload(session: Any, code: Code) -> tuple[str, str]:
    """Upload what is not there yet; returns the bucket and the template's address."""
    caller = script.identify(session)
    bucket = f"fedgrass-deploy-{caller.account}-{caller.region}"
    s3 = session.client("s3")
    _ensure_bucket(s3, bucket, caller.region)
    for key, content in code.files.values():
        s3.put_object(Bucket=bucket, Key=key, Body=content)
    suffix = "amazonaws.com.cn" if caller.partition == "aws-cn" else "amazonaws.com"
    return bucket, f"https://{bucket}.s3.{caller.region}.{suffix}/{code.files['Template'][0]}"


def _ensure_bucket(s3: Any, bucket: str, region: str) -> None:
    try:
        s3.head_bucket(Bucket=bucket)
        return
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code not in {"404", "NoSuchBucket"}:
            raise InfrastructureError(
                f"bucket {bucket}, which deployments use, cannot be opened ({code}); it exists in another account, or "
                "these credentials lack s3:ListBucket on it"
            ) from error
    # us-east-1 is the one region that must not be named.
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=bucket, **place)
    s3.put_public_access_block(
        Bucket=bucket,
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True,
            "IgnorePublicAcls": True,
            "BlockPublicPolicy": True,
            "RestrictPublicBuckets": True,
        },
    )


def wait(cloudformation: Any, name: str, condition: str) -> None:
    """Wait for a stack; raises `InfrastructureError` with CloudFormation's own reason if it fails."""
    try:
        cloudformation.get_waiter(condition).wait(StackName=name, WaiterConfig={"Delay": 5, "MaxAttempts": 240})
    except WaiterError as error:
        raise InfrastructureError(f"stack {name}: {_first_failure(cloudformation, name) or error}") from error


def _first_failure(cloudformation: Any, name: str) -> str | None:
    """Return the reason that CloudFormation gave first, in the last operation; what follows is its consequence."""
    try:
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    except ClientError:
        return None
    first = None
    for event in events:  # the newest first
        if event["ResourceStatus"].endswith("_FAILED"):
            first = f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', event['ResourceStatus'])}"
        elif event["ResourceType"] == "AWS::CloudFormation::Stack" and event["ResourceStatus"] in _BEGUN:
            break
    return first


def main(
    fleet: script.Fleet,
    parameter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the template, such as AlarmMail=me@example.org; may be repeated."),
    ] = None,
    image: Annotated[
        bool, typer.Option(help="Also have CodeBuild make the aggregator's image, if it is not there.")
    ] = True,
    dependencies: Annotated[bool, typer.Option(help="Pack third-party libraries; not needed locally.")] = True,
    dry_run: script.DryRun = False,
) -> None:
    """Deploy a fleet's stack to the AWS account of the environment, or bring it up to date.

    Running it again changes only what differs, and parameters keep their values.
    """
    session = script.own_session()
    caller = script.identify(session)
    parameters = dict(_parameter(text) for text in parameter or [])
    exists = check(session, fleet, parameters)
    code = Code(dependencies=dependencies and not dry_run)
    steps = script.Steps(dry_run=dry_run)
    verb = "update" if exists else "create"
    outputs = steps.do(
        f"{verb} stack {stack_name(fleet)} in account {caller.account}, {caller.region} {parameters or ''}".rstrip(),
        _apply,
        session,
        fleet,
        parameters,
        code,
    )
    own = outputs or (stack_outputs(session, fleet) if exists else None)
    if image and (own is None or not image_exists(session, own, code.image_tag)):
        steps.do(
            f"make the aggregator's image {code.image_tag} by CodeBuild",
            _build,
            session,
            fleet,
        )
    for field in fields(outputs) if outputs else ():
        typer.echo(f"{field.name}={getattr(outputs, field.name)}")


def _build(session: Any, fleet: str) -> None:
    build_image(session, stack_outputs(session, fleet), tell=typer.echo)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--parameter {text!r}: expected NAME=VALUE")
    return name, value


if __name__ == "__main__":
    script.run(main)

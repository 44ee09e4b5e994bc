"""Deploy a fleet's stack, and remove it: ``python -m cloud.infrastructure.deploy up|down --fleet NAME``.

Works against AWS, and against the local stand-in through AWS_ENDPOINT_URL. Running it again changes only what differs.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import boto3
import typer
from botocore.exceptions import ClientError, WaiterError

from cloud.infrastructure.package import DEFINITION, functions_archive
from fedgrass.errors import FedgrassError, InfrastructureError
from fedgrass.protocol.names import check_fleet, round_topic
from fedgrass.stack import StackOutputs, stack_name, stack_outputs

TEMPLATE = Path(__file__).with_name("template.yaml")

_FINISHED = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE"}
_BEGUN = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}


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
        Parameters of the template beyond the fleet and the code, such as ``AggregatorImage``.
    dependencies
        See `functions_archive`.

    Raises
    ------
    ConfigurationError
        If the fleet's name is not valid.
    InfrastructureError
        If the stack is in no state to be changed, or could not be; the message has CloudFormation's own reason.
    """
    check_fleet(fleet)
    cloudformation = session.client("cloudformation")
    name = stack_name(fleet)
    status = _status(cloudformation, name)
    _check_changeable(name, status)
    given = {"Fleet": fleet, **_upload_code(session, dependencies=dependencies), **(parameters or {})}
    arguments = {
        "StackName": name,
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": [{"Key": "fedgrass:fleet", "Value": fleet}],
    }
    if status is None:
        cloudformation.create_stack(**arguments)
        _wait(cloudformation, name, "stack_create_complete")
    else:
        try:
            cloudformation.update_stack(**arguments)
        except ClientError as error:
            if "No updates are to be performed" not in str(error):
                raise
        else:
            _wait(cloudformation, name, "stack_update_complete")
    return stack_outputs(session, fleet)


def destroy(session: Any, *, fleet: str) -> bool:
    """Remove the fleet's stack with all its data; returns whether there was one.

    Raises
    ------
    InfrastructureError
        If CloudFormation could not delete everything.
    """
    cloudformation = session.client("cloudformation")
    name = stack_name(check_fleet(fleet))
    if _status(cloudformation, name) is None:
        return False
    session.client("iot-data").publish(topic=round_topic(fleet), qos=1, retain=True, payload=b"")
    found = cloudformation.describe_stacks(StackName=name)["Stacks"][0].get("Outputs", [])
    bucket = next((output["OutputValue"] for output in found if output["OutputKey"] == "Bucket"), None)
    if bucket is not None:
        session.resource("s3").Bucket(bucket).object_versions.delete()  # CloudFormation deletes only empty ones
    cloudformation.delete_stack(StackName=name)
    _wait(cloudformation, name, "stack_delete_complete")
    return True


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
        f"stack {name} cannot be updated in state {status}; remove it (`down`), then deploy again"
    )


def _upload_code(session: Any, *, dependencies: bool) -> dict[str, str]:
    """Upload the code under its digest, so that CloudFormation sees when it changes; returns the template's parameters."""
    account = session.client("sts").get_caller_identity()["Account"]
    bucket = f"fedgrass-deploy-{account}-{session.region_name}"
    s3 = session.client("s3")
    _ensure_bucket(s3, bucket, session.region_name)
    code = functions_archive(dependencies=dependencies)
    definition = DEFINITION.read_bytes()
    keys = {
        "CodeKey": f"rounds/{hashlib.sha256(code).hexdigest()}.zip",
        "DefinitionKey": f"rounds/{hashlib.sha256(definition).hexdigest()}.asl.json",
    }
    s3.put_object(Bucket=bucket, Key=keys["CodeKey"], Body=code)
    s3.put_object(Bucket=bucket, Key=keys["DefinitionKey"], Body=definition)
    return {"CodeBucket": bucket, **keys}


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


def _wait(cloudformation: Any, name: str, condition: str) -> None:
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


app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

_Fleet = Annotated[str, typer.Option(help="Name of the fleet.")]


@app.command()
def up(
    fleet: _Fleet,
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the template; may be repeated.")] = None,
    dependencies: Annotated[bool, typer.Option(help="Pack third-party libraries; not needed locally.")] = True,
) -> None:
    """Deploy the fleet's stack, or bring it up to date, and print what it consists of."""
    parameters = dict(text.split("=", 1) for text in parameter or [] if "=" in text)
    try:
        outputs = deploy(boto3.Session(), fleet=fleet, parameters=parameters, dependencies=dependencies)
    except FedgrassError as error:
        raise typer.BadParameter(str(error)) from error
    for field in fields(outputs):
        typer.echo(f"{field.name}={getattr(outputs, field.name)}")


@app.command()
def down(
    fleet: _Fleet,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the fleet's stack with all its models, updates and reports."""
    if not yes:
        typer.confirm(f"Remove fleet {fleet} with all its models, updates and reports?", abort=True)
    removed = destroy(boto3.Session(), fleet=fleet)
    typer.echo("removed" if removed else "there was no such stack")


if __name__ == "__main__":
    app()

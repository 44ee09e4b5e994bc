"""Remove a fleet: what runs, its stack, its data, and the devices that scripts/provision made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from botocore.exceptions import ClientError

from cloud.infrastructure import script
from cloud.infrastructure.deploy import wait
from cloud.infrastructure.provision import provisioned_things, unprovision
from fedgrass.errors import InfrastructureError
from fedgrass.protocol.names import check_fleet, round_topic
from fedgrass.stack import StackOutputs, stack_name, stack_outputs


def destroy(session: Any, *, fleet: str, keep_models: bool = False, steps: script.Steps | None = None) -> bool:
    """Remove the fleet; returns whether there was one. Run again after a failure, it goes on where it stopped.

    Parameters
    ----------
    keep_models
        Leave the bucket, with models, reports and updates, and the entries of SageMaker's registry that point into it.

    Raises
    ------
    InfrastructureError
        If CloudFormation could not delete everything.
    """
    steps = steps or script.Steps(dry_run=False, tell=lambda _: None)
    name = stack_name(check_fleet(fleet))
    cloudformation = session.client("cloudformation")
    try:
        outputs = stack_outputs(session, fleet)
    except InfrastructureError:
        if not _exists(cloudformation, name):
            return False
        outputs = None  # it was never whole: there is nothing in it but what CloudFormation made
    if outputs is not None:
        _stop(session, outputs, steps)
        for thing in provisioned_things(session.client("iot"), fleet):
            steps.do(f"remove device {thing}", unprovision, session, fleet, thing)
    steps.do(f"delete stack {name}", _delete_stack, cloudformation, name)
    if outputs is not None and not keep_models:
        steps.do(f"delete bucket {outputs.bucket} with all it holds", _delete_bucket, session, outputs.bucket)
        group = outputs.model_package_group
        steps.do(f"delete model package group {group}", _delete_models, session, group)
    return True


def _exists(cloudformation: Any, name: str) -> bool:
    try:
        cloudformation.describe_stacks(StackName=name)
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        return False
    return True


def _stop(session: Any, outputs: StackOutputs, steps: script.Steps) -> None:
    """Stop what runs: it would go on writing, and being paid for, while the rest is removed."""
    step_functions = session.client("stepfunctions")
    running = step_functions.get_paginator("list_executions").paginate(
        stateMachineArn=outputs.state_machine_arn, statusFilter="RUNNING"
    )
    for execution in [entry["executionArn"] for page in running for entry in page["executions"]]:
        steps.do(
            f"stop execution {execution.rpartition(':')[2]}",
            step_functions.stop_execution,
            executionArn=execution,
            error="Cancelled",
            cause="the fleet is removed",
        )
    sagemaker = session.client("sagemaker")
    for job in _running_jobs(sagemaker, outputs.fleet):
        steps.do(f"stop job {job}", sagemaker.stop_processing_job, ProcessingJobName=job)
    steps.do(
        "clear the announcement",
        session.client("iot-data").publish,
        topic=round_topic(outputs.fleet),
        qos=1,
        retain=True,
        payload=b"",
    )


def _running_jobs(sagemaker: Any, fleet: str) -> Iterator[str]:
    """Names of the fleet's jobs, as `cloud.rounds.start_aggregation.job_name` makes them."""
    prefix = f"fedgrass-{fleet.replace('_', '-').strip('-')[:32]}-"
    pages = sagemaker.get_paginator("list_processing_jobs").paginate(NameContains=prefix, StatusEquals="InProgress")
    for page in pages:
        for job in page["ProcessingJobSummaries"]:
            if re.fullmatch(re.escape(prefix) + r"\d{6}-[0-9a-f]{10}", job["ProcessingJobName"]):
                yield job["ProcessingJobName"]


def _delete_stack(cloudformation: Any, name: str) -> None:
    cloudformation.delete_stack(StackName=name)
    wait(cloudformation, name, "stack_delete_complete")


def _delete_bucket(session: Any, name: str) -> None:
    bucket = session.resource("s3").Bucket(name)
    try:
        bucket.object_versions.delete()
        bucket.delete()
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"NoSuchBucket", "404"}:
            raise


def _delete_models(session: Any, group: str) -> None:
    sagemaker = session.client("sagemaker")
    try:
        pages = sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=group)
        for arn in [package["ModelPackageArn"] for page in pages for package in page["ModelPackageSummaryList"]]:
            sagemaker.delete_model_package(ModelPackageName=arn)
        sagemaker.delete_model_package_group(ModelPackageGroupName=group)
    except ClientError as error:
        if "does not exist" not in str(error) and "not found" not in str(error).lower():
            raise


def main(
    fleet: script.Fleet,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Leave the bucket with models and reports, and the model registry.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: script.DryRun = False,
) -> None:
    """Remove a fleet from the AWS account of the environment: what runs, its stack, its data, its devices' identities.

    Components, and the bucket that deployments use, serve other fleets too: they stay.
    """
    session = script.own_session()
    caller = script.identify(session)
    if not (yes or dry_run):
        what = "but keep its models and reports" if keep_models else "with all its models, updates and reports"
        typer.confirm(f"Remove fleet {fleet} of account {caller.account}, {caller.region}, {what}?", abort=True)
    if not destroy(session, fleet=fleet, keep_models=keep_models, steps=script.Steps(dry_run=dry_run)):
        typer.echo(f"there is no stack {stack_name(fleet)} in account {caller.account}, {caller.region}")


if __name__ == "__main__":
    script.run(main)

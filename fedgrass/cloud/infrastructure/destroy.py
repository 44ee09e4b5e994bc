"""Remove a fleet: what runs, its devices' identities, its data, its stack.

The stack goes last: as long as it is there, the next run finds everything by it. What has no stack any more is found by its
marks: things by an attribute, policies by their names, buckets and model package groups by their tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from fedgrass.cloud.infrastructure import devices, script, storage
from fedgrass.cloud.infrastructure.script import is_gone, removed
from fedgrass.cloud.infrastructure.stacks import wait
from fedgrass.cloudformation import check_owner, stack_name
from fedgrass.errors import InfrastructureError
from fedgrass.protocol.names import check_fleet, job_prefix, round_topic

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_cloudformation.type_defs import StackTypeDef
    from mypy_boto3_greengrassv2 import GreengrassV2Client
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker.type_defs import TagTypeDef
    from mypy_boto3_stepfunctions import SFNClient

_KEPT_TAG = "fedgrass:kept"
_JOB_LOGS = "/aws/sagemaker/ProcessingJobs"
_ENDPOINT_LOGS = "/aws/sagemaker/Endpoints/"


def destroy(session: Session, *, fleet: str, keep_models: bool = False, steps: script.Steps | None = None) -> bool:
    """Remove the fleet; return whether there was anything to remove. If it is interrupted, run it again to continue.

    Parameters
    ----------
    keep_models
        Leave the bucket, with models, reports and updates, the entries of SageMaker's registry that point into it, and the
        versions of the model component. What was kept stays: a later run leaves it too.

    Raises
    ------
    InfrastructureError
        If the stack is another fleet's, is protected, is being changed, or could not be deleted.
    """
    steps = steps or script.Steps(dry_run=False, tell=lambda _: None)
    name = stack_name(check_fleet(fleet))
    removal = _Removal(session, fleet, name, steps)
    stack = removal.stack()
    # In this order: what runs would write again what is removed, and devices are found by the stack.
    if stack is not None:
        removal.stop()
    removal.remove_devices()
    if stack is not None:
        removal.remove_deployments()
    removal.keep_data() if keep_models else removal.remove_data()
    if stack is not None:
        steps.do(f"delete stack {name}", removal.delete_stack)
        if not (keep_models or steps.dry_run):
            removal.remove_data()  # what was written, and logged, until the last moment
    return stack is not None or removal.found


Given = ParamSpec("Given")


class _Removal:
    """One fleet on its way out."""

    def __init__(self, session: Session, fleet: str, name: str, steps: script.Steps) -> None:
        self._session = session
        self._fleet = fleet
        self._name = name
        self._steps = steps
        self._cloudformation = session.client("cloudformation")
        self._caller = script.identify(session)
        self._s3 = storage.own_s3(session, self._caller)
        self._resources: dict[str, str] = {}
        self._component: str | None = None
        self.found = False

    def stack(self) -> StackTypeDef | None:
        """Return the stack as CloudFormation describes it, None if there is none, and learn what it consists of."""
        try:
            stack = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"][0]
        except self._cloudformation.exceptions.ClientError as error:
            if not is_gone(error):
                raise
            return None
        check_owner(stack, self._fleet)
        status = stack["StackStatus"]
        if stack.get("EnableTerminationProtection"):
            raise InfrastructureError(
                f"stack {self._name} is protected from deletion; if you mean it: aws cloudformation "
                f"update-termination-protection --no-enable-termination-protection --stack-name {self._name}"
            )
        # A stack whose deletion is under way may be waited for; one that is updated must not be pulled away.
        if status.endswith("_IN_PROGRESS") and status not in {"DELETE_IN_PROGRESS", "REVIEW_IN_PROGRESS"}:
            raise InfrastructureError(f"stack {self._name} is being changed ({status}); wait until that is done")
        given = {one["ParameterKey"]: one.get("ParameterValue") for one in stack.get("Parameters", [])}
        self._component = given.get("ModelComponent")
        pages = self._cloudformation.get_paginator("list_stack_resources").paginate(StackName=self._name)
        self._resources = {
            one["LogicalResourceId"]: one["PhysicalResourceId"]
            for page in pages
            for one in page["StackResourceSummaries"]
            if one.get("PhysicalResourceId")
        }
        return stack

    def stop(self) -> None:
        """Stop what runs: it would go on writing, and being paid for, while the rest is removed."""
        do, resources = self._steps.do, self._resources
        if "RoundSchedule" in resources:
            rule = resources["RoundSchedule"].rpartition("/")[2]
            # First: it would start another round meanwhile.
            do("stop the schedule", removed, self._session.client("events").disable_rule, Name=rule)
        if "StateMachine" in resources:
            step_functions = self._session.client("stepfunctions")
            for execution in _executions(step_functions, resources["StateMachine"]):
                do(
                    f"stop execution {execution.rpartition(':')[2]}",
                    removed,
                    step_functions.stop_execution,
                    executionArn=execution,
                    error="Cancelled",
                    cause="the fleet is removed",
                )
        sagemaker = self._session.client("sagemaker")
        for job in self._running_jobs(sagemaker):
            do(f"stop job {job}", removed, sagemaker.stop_processing_job, ProcessingJobName=job)
        publish = self._session.client("iot-data").publish
        # The retained message would outlive the stack, and ask devices of a fleet that is gone.
        do("clear the announcement", publish, topic=round_topic(self._fleet), qos=1, retain=True, payload=b"")

    def _running_jobs(self, sagemaker: SageMakerClient) -> Iterator[str]:
        """Names of the fleet's jobs that run, each of which says itself that it is the fleet's."""
        prefix = job_prefix(self._fleet)
        pages = sagemaker.get_paginator("list_processing_jobs").paginate(NameContains=prefix, StatusEquals="InProgress")
        for name in [job["ProcessingJobName"] for page in pages for job in page["ProcessingJobSummaries"]]:
            described = sagemaker.describe_processing_job(ProcessingJobName=name)
            # NameContains is a search: names of other fleets may contain the prefix, too.
            if name.startswith(prefix) and described.get("Environment", {}).get("FEDGRASS_FLEET") == self._fleet:
                yield name

    def remove_devices(self) -> None:
        """Remove the devices that were made for the fleet, and what a stopped run left of others."""
        iot = self._session.client("iot")
        for thing in list(devices.provisioned_things(iot, self._fleet)):
            self._do(f"remove device {thing}", devices.unprovision, self._session, self._fleet, thing)
        # What a stopped run left: policies whose things are gone lead to certificates that nothing else names.
        for policy in devices.left_policies(iot, self._fleet):
            if not self._steps.dry_run:
                self._do(f"remove IoT policy {policy}", devices.remove_policy, self._session, self._fleet, policy)

    def remove_deployments(self) -> None:
        """Remove the thing group's deployments: as IoT jobs they would outlive it."""
        greengrass = self._session.client("greengrassv2")
        group = (
            f"arn:{self._caller.partition}:iot:{self._caller.region}:{self._caller.account}:thinggroup/{self._fleet}"
        )
        pages = greengrass.get_paginator("list_deployments").paginate(targetArn=group, historyFilter="ALL")
        for deployment in [entry for page in pages for entry in page["deployments"]]:
            name = deployment["deploymentId"]
            # DeleteDeployment refuses an active one.
            if deployment["deploymentStatus"] == "ACTIVE":
                self._steps.do(f"cancel deployment {name}", removed, greengrass.cancel_deployment, deploymentId=name)
            self._steps.do(f"delete deployment {name}", removed, greengrass.delete_deployment, deploymentId=name)

    def remove_data(self) -> None:
        """Delete buckets and registered models of the fleet, but what was kept; then the jobs' log."""
        for group in self._model_groups():
            self._do(f"delete model package group {group}", _delete_models, self._session.client("sagemaker"), group)
        # Components before the bucket: once it is gone nothing says which of them lay in it.
        for bucket in self._buckets():
            greengrass = self._session.client("greengrassv2")
            for arn in self._model_components(bucket):
                self._do(
                    f"delete component version {arn.partition(':components:')[2]}",
                    removed,
                    greengrass.delete_component,
                    arn=arn,
                )
            self._do(f"delete bucket {bucket} with all it holds", storage.delete_bucket, self._s3, bucket)
        logs, prefix = self._session.client("logs"), job_prefix(self._fleet)
        # SageMaker makes these log groups by itself, so no stack removes them.
        for group in _groups(logs, f"{_ENDPOINT_LOGS}{prefix.removesuffix('-')}"):
            self._do(f"delete log group {group}", removed, logs.delete_log_group, logGroupName=group)
        for stream in _streams(logs, prefix):
            self._do(
                f"delete log stream {stream}",
                removed,
                logs.delete_log_stream,
                logGroupName=_JOB_LOGS,
                logStreamName=stream,
            )

    def keep_data(self) -> None:
        """Mark the fleet's data, so that no later run deletes them."""
        sagemaker = self._session.client("sagemaker")
        for group in self._model_groups():
            arn = sagemaker.describe_model_package_group(ModelPackageGroupName=group)["ModelPackageGroupArn"]
            mark: list[TagTypeDef] = [{"Key": _KEPT_TAG, "Value": "true"}]
            self._do(f"keep model package group {group}", sagemaker.add_tags, ResourceArn=arn, Tags=mark)
        for bucket in self._buckets():
            self._do(f"keep bucket {bucket}", storage.tag, self._s3, bucket, fedgrass__kept="true")

    def delete_stack(self) -> None:
        """Delete the stack, and wait until it is gone."""
        self._cloudformation.delete_stack(StackName=self._name)
        wait(self._cloudformation, self._name, "stack_delete_complete")

    def _do(self, what: str, action: Callable[Given, object], *arguments: Given.args, **named: Given.kwargs) -> None:
        self.found = True
        self._steps.do(what, action, *arguments, **named)

    def _buckets(self) -> list[str]:
        """Buckets that say they are the fleet's, and were not kept."""
        # By tags and not by name: a bucket's name holds digits of a stack that may be gone.
        names = {bucket["Name"] for bucket in self._s3.list_buckets()["Buckets"]}
        mine = {devices.FLEET_TAG: self._fleet}
        return sorted(
            name
            for name in names
            for tags in [storage.tags(self._s3, name)]
            if mine.items() <= tags.items() and _KEPT_TAG not in tags
        )

    def _model_groups(self) -> list[str]:
        """Model package groups that say they are the fleet's, and were not kept."""
        sagemaker = self._session.client("sagemaker")
        pages = sagemaker.get_paginator("list_model_package_groups").paginate(NameContains="fedgrass-")
        groups = [group for page in pages for group in page["ModelPackageGroupSummaryList"]]
        found = []
        for group in groups:
            tags = _tags(sagemaker, group["ModelPackageGroupArn"])
            if tags.get(devices.FLEET_TAG) == self._fleet and _KEPT_TAG not in tags:
                found.append(group["ModelPackageGroupName"])
        return sorted(found)

    def _model_components(self, bucket: str) -> list[str]:
        """ARNs of the component versions whose model lies in the bucket: without it no device could install them."""
        greengrass = self._session.client("greengrassv2")
        pages = greengrass.get_paginator("list_components").paginate(scope="PRIVATE")
        components = [entry for page in pages for entry in page["components"]]
        found = []
        for component in components:
            # Without a stack nobody knows the component's name, so each component's newest version is looked at.
            if self._component is None and not _lies_in(greengrass, component["latestVersion"]["arn"], bucket):
                continue
            if self._component in (None, component["componentName"]):
                versions = greengrass.get_paginator("list_component_versions").paginate(arn=component["arn"])
                arns = [entry["arn"] for page in versions for entry in page["componentVersions"]]
                found += [arn for arn in arns if _lies_in(greengrass, arn, bucket)]
        return found


def _tags(sagemaker: SageMakerClient, arn: str) -> dict[str, str]:
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
    try:
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
    except sagemaker.exceptions.ClientError as error:
        if is_gone(error):
            return {}
        raise


def _lies_in(greengrass: GreengrassV2Client, arn: str, bucket: str) -> bool:
    try:
        recipe = json.loads(greengrass.get_component(arn=arn, recipeOutputFormat="JSON")["recipe"])
    except greengrass.exceptions.ClientError as error:
        if is_gone(error):
            return False
        raise
    artifacts = [
        artifact["Uri"] for manifest in recipe.get("Manifests", []) for artifact in manifest.get("Artifacts", [])
    ]
    return any(uri.startswith(f"s3://{bucket}/") for uri in artifacts)


def _executions(step_functions: SFNClient, machine: str) -> list[str]:
    pages = step_functions.get_paginator("list_executions").paginate(stateMachineArn=machine, statusFilter="RUNNING")
    try:
        return [entry["executionArn"] for page in pages for entry in page["executions"]]
    except step_functions.exceptions.ClientError as error:
        if not is_gone(error):
            raise
        return []


def _streams(logs: CloudWatchLogsClient, prefix: str) -> list[str]:
    pages = logs.get_paginator("describe_log_streams").paginate(logGroupName=_JOB_LOGS, logStreamNamePrefix=prefix)
    try:
        return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    except logs.exceptions.ResourceNotFoundException:  # the account has run no job yet
        return []


def _groups(logs: CloudWatchLogsClient, name: str) -> list[str]:
    pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=name)
    # The API searches by prefix: another fleet's group may begin alike.
    return [group["logGroupName"] for page in pages for group in page["logGroups"] if group["logGroupName"] == name]


def _delete_models(sagemaker: SageMakerClient, group: str) -> None:
    pages = sagemaker.get_paginator("list_model_packages").paginate(ModelPackageGroupName=group)
    for arn in [package["ModelPackageArn"] for page in pages for package in page["ModelPackageSummaryList"]]:
        # SageMaker refuses to delete a group that still has packages.
        removed(sagemaker.delete_model_package, ModelPackageName=arn)
    removed(sagemaker.delete_model_package_group, ModelPackageGroupName=group)


def main(
    fleet: script.Fleet,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Leave the bucket with models and reports, and the model registry.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    dry_run: script.DryRun = False,
) -> None:
    """Remove a fleet from the AWS account of the environment: what runs, its devices' identities, its data, its stack.

    If it is interrupted, run it again to continue. The suite's components, and the buckets that components and
    deployments use, serve other fleets too: they stay.
    """
    check_fleet(fleet)
    session = script.own_session()
    caller = script.identify(session)
    if not (yes or dry_run):
        what = "but keep its models and reports" if keep_models else "with all its models, updates and reports"
        typer.confirm(f"Remove fleet {fleet} of account {caller.account}, {caller.region}, {what}?", abort=True)
    if not destroy(session, fleet=fleet, keep_models=keep_models, steps=script.Steps(dry_run=dry_run)):
        typer.echo(f"there is nothing of fleet {fleet} in account {caller.account}, {caller.region}")


if __name__ == "__main__":
    script.run(main)

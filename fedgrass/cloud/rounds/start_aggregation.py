"""End the collecting and start the Processing job, if there are updates enough."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from fedgrass.cloud.ending.outcome import end
from fedgrass.cloud.rounds.aggregation_ended import settle
from fedgrass.cloud.rounds.announcement import announce_round
from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.evaluation import record_evaluation
from fedgrass.cloud.rounds.services import Services, connect, own_services
from fedgrass.cloud.rounds.tokens import TokenRequest, succeed
from fedgrass.errors import OutOfMemoryError, RecordError
from fedgrass.logs import log_event
from fedgrass.protocol.at_hand import updates_at_hand
from fedgrass.protocol.names import job_prefix
from fedgrass.protocol.records import JobRun, RoundRecord

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.literals import ProcessingInstanceTypeType

_TWICE = {"medium": "large", "large": "xlarge", "xlarge": "2xlarge", "2xlarge": "4xlarge"}
"""Sizes of machines and those with twice the memory, as far as all families have them."""

connect("rounds", "iot_data", "sagemaker", "step_functions")


def handler(event: dict[str, object], _context: object) -> None:
    """Entry point."""
    start_aggregation(own_services(), TokenRequest.model_validate(event))


def start_aggregation(services: Services, request: TokenRequest) -> None:
    """Take no more updates, and start the job under the state machine's token.

    With fewer updates than ``min_updates`` no job is started: the round's outcome is ``insufficient_updates``. None is started
    either where devices evaluated only.

    Raises
    ------
    RecordError
        If the round is past its aggregation.
    OutOfMemoryError
        If the job is to be started on a larger machine, and may not be or there is none.
    """
    fleet = services.fleet
    # Aggregating is allowed, too: Step Functions repeats a task whose answer was lost, with a new token.
    record = change_round(
        services.rounds,
        fleet,
        request.round,
        put={"phase": "aggregating", "collected_at": services.now().isoformat(), "job_token": request.token},
        remove=["collect_token"],
        condition="#phase IN (:collecting, :aggregating)",
        values={":collecting": "collecting", ":aggregating": "aggregating"},
    )
    if record is None:
        raise RecordError(f"round {request.round} of fleet {fleet!r} is past its aggregation")
    # Nothing more is collected: devices that come back now must find no task.
    announce_round(services)
    if record.outcome is None and updates_at_hand(services.rounds, record) < record.settings.min_updates:
        reason = f"{record.uploaded} of {record.asked} devices sent an update, {record.settings.min_updates} are needed"
        if record.joined:
            reason += f"; {record.joined} that were not asked did"
        record = end(services.rounds, record, "insufficient_updates", reason)
    elif record.outcome is None and record.settings.task == "evaluate":
        record = record_evaluation(services, record)
    if record.outcome is not None:
        # Decided just now or by an earlier attempt; or somebody is ending the round.
        succeed(services.step_functions, request.token, {"job": "not_needed"})
        return
    machine = record.settings.aggregation.instance_type or services.setting("FEDGRASS_INSTANCE_TYPE")
    if request.larger:
        machine = _larger(record, machine)
    name = job_name(record, larger=request.larger)
    instances = _instances(services, record)
    begun = record.jobs
    # Of several attempts the first began the job.
    if all(job.name != name for job in begun):
        begun = (*begun, JobRun(name=name, machine=machine, machines=instances, began_at=services.now()))
    # Written first: the job may end before this function does.
    jobs = [job.model_dump(mode="json") for job in begun]
    record = change_round(services.rounds, fleet, record.round, put={"job": name, "jobs": jobs})
    if record is not None:
        _start(services, record, name, machine, instances)


def _larger(record: RoundRecord, machine: str) -> str:
    """Return the machine of twice the size."""
    said = f"job {record.job} ran out of memory on {machine}"
    if not record.settings.aggregation.retry_larger:
        raise OutOfMemoryError(f"{said}, and aggregation.retry_larger is false; set aggregation.instance_type")
    family, _, size = machine.rpartition(".")
    if size not in _TWICE:
        raise OutOfMemoryError(f"{said}, and there is no larger size to try; set aggregation.instance_type")
    log_event(
        "aggregation_repeated",
        fleet=record.fleet,
        round=record.round,
        before=machine,
        machine=f"{family}.{_TWICE[size]}",
    )
    return f"{family}.{_TWICE[size]}"


def job_name(record: RoundRecord, *, larger: bool = False) -> str:
    """Name of the round's job, at most 63 characters; the same for every attempt to start it on the same machine.

    SageMaker gives a name once and for all: the execution's digest keeps apart fleets that were removed and created again. The
    fleet's own name is there for people only: its prefix tells it from others.
    """
    shown = record.fleet.replace("_", "-").strip("-")[:18].strip("-")
    identity = f"{record.fleet} {record.execution}" + " larger" * larger
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    return f"{job_prefix(record.fleet)}{shown or 'fleet'}-{record.round:06d}-{digest}"


def _instances(services: Services, record: RoundRecord) -> int:
    # Strategies that need every update on one instance would leave the others idle, and paid for.
    if record.settings.strategy.uses_one_instance or record.settings.task == "statistics":
        return 1
    # A variable of the environment is a string; settings come first.
    return record.settings.aggregation.instance_count or int(services.setting("FEDGRASS_INSTANCE_COUNT"))


def _start(services: Services, record: RoundRecord, name: str, machine: str, instances: int) -> None:
    wanted = record.settings.aggregation
    image = services.setting("FEDGRASS_IMAGE")
    try:
        services.sagemaker.create_processing_job(
            ProcessingJobName=name,
            RoleArn=services.setting("FEDGRASS_JOB_ROLE_ARN"),
            AppSpecification={"ImageUri": image},  # its entry point is the aggregator
            Environment={
                "FEDGRASS_FLEET": record.fleet,
                "FEDGRASS_ROUND": str(record.round),
                "FEDGRASS_BUCKET": services.bucket,
                "FEDGRASS_ROUNDS_TABLE": services.rounds.name,
                "FEDGRASS_DEVICES_TABLE": services.setting("FEDGRASS_DEVICES_TABLE"),
                "FEDGRASS_THING_GROUP_ARN": services.setting("FEDGRASS_THING_GROUP_ARN"),
                "FEDGRASS_MODEL_COMPONENT": services.setting("FEDGRASS_MODEL_COMPONENT"),
                "FEDGRASS_MODEL_PACKAGE_GROUP": services.setting("FEDGRASS_MODEL_PACKAGE_GROUP"),
                "FEDGRASS_IMAGE": image,
                "FEDGRASS_INSTANCES": str(instances),
            },
            ProcessingResources={
                "ClusterConfig": {
                    "InstanceType": _instance_type(machine),
                    "InstanceCount": instances,
                    "VolumeSizeInGB": wanted.volume_gb,
                }
            },
            StoppingCondition={"MaxRuntimeInSeconds": wanted.timeout_seconds},
            **_network(services),
            Tags=[{"Key": "fedgrass:fleet", "Value": record.fleet}],
        )
    except ClientError as error:
        # The name is the same for every attempt, so a repetition meets its own job.
        if error.response["Error"]["Code"] != "ResourceInUse":
            raise
        # An earlier attempt started it, and its end may have passed before this attempt's token was known.
        settle(services, record, services.sagemaker.describe_processing_job(ProcessingJobName=name))
        return
    log_event(
        "aggregation_started",
        fleet=record.fleet,
        round=record.round,
        job=name,
        updates=record.contributed,
        instances=instances,
    )


def _instance_type(name: str) -> ProcessingInstanceTypeType:
    """Return the name as the stubs have it: SageMaker itself says which there are, and which of them in a region."""
    return name  # type: ignore[return-value]


def _network(services: Services) -> dict[str, Any]:
    subnets = services.names("FEDGRASS_SUBNETS")
    if not subnets:
        return {}
    groups = services.names("FEDGRASS_SECURITY_GROUPS")
    return {"NetworkConfig": {"VpcConfig": {"Subnets": subnets, "SecurityGroupIds": groups}}}

"""Silos' jobs, as the fleet's operator starts and watches them: by the one role that a silo's account has for it.

What a job is, that account's stack says (cloud/silo_account.yaml). Its names follow from the silo's.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedgrass.account import Account
from fedgrass.errors import ConfigurationError, InfrastructureError, RoundRefusedError
from fedgrass.protocol import tables

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_sagemaker import SageMakerClient

_NAME = re.compile(r"(?P<account>\d{12})-(?P<name>[a-zA-Z0-9](?:-?[a-zA-Z0-9])*)")
# So that names made of it stay within AWS's limits: that of a training job has at most 63 characters.
_LONGEST = 30
_IMAGE = re.compile(
    r"(?P<registry>\d{12}\.dkr\.ecr\.(?P<region>[^.]+)\.[^/]+)/(?P<repository>[^:@]+)(?::(?P<tag>[^@]+))?"
)
_NOT_STARTED = {"FAILED": "was refused", "ABORTED": "was stopped", "TIMED_OUT": "ran out of time"}
ENDED = frozenset({"Completed", "Failed", "Stopped", "refused"})
"""What `Job.status` is of a job that goes on no more."""


@dataclass(frozen=True)
class Job:
    """A silo's job: SageMaker's status of it, or ``starting``, or ``refused`` if there is none and never will be."""

    name: str
    started: datetime
    rounds: int | None
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Silo:
    """One silo, seen by the role that its account gives the fleet.

    Parameters
    ----------
    name
        ``<account>-<name>``, as the fleet knows it.
    session
        A boto3 session with that role's credentials, in the job's region.
    partition
        ``aws``, or another.
    """

    name: str
    session: Session
    partition: str = "aws"

    @classmethod
    def of(cls, account: Account, name: str, *, region: str | None = None) -> Silo:
        """Assume the silo's role.

        Parameters
        ----------
        account
            The fleet's account.
        name
            The silo, as ``ACCOUNT-NAME`` in the fleet's settings.
        region
            Region of the silo's jobs; the fleet's if not given.

        Returns
        -------
        Silo
            What starts and stops jobs in the silo's account.

        Raises
        ------
        ConfigurationError
            If it is not a silo's name, or not one that the fleet lists.
        InfrastructureError
            If the silo's account does not let this one in.
        """
        import boto3
        from botocore.exceptions import ClientError

        number, short = split_name(name)
        # Before a role is assumed: the mistake is in the fleet's own settings.
        if name not in tables.load_settings(account.rounds_table, account.fleet).silos:
            raise ConfigurationError(
                f"silo {name!r} is none of fleet {account.fleet!r}: list it with `fedgrass fleet settings --set silos=[...]`, "
                "else its updates do not count"
            )
        partition = account.stack.thing_group_arn.split(":")[1]
        role = f"arn:{partition}:iam::{number}:role/fedgrass-silo-{short}-start"
        try:
            given = account.session.client("sts").assume_role(RoleArn=role, RoleSessionName=f"fedgrass-{account.fleet}")
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"AccessDenied", "AccessDeniedException"}:
                raise
            raise InfrastructureError(
                f"silo {name!r}: {role} cannot be assumed. Its account deploys cloud/silo_account.yaml with "
                f"FleetAccount={account.stack.account}, and you need sts:AssumeRole on that role ({error})"
            ) from error
        found = given["Credentials"]
        session = boto3.Session(
            aws_access_key_id=found["AccessKeyId"],
            aws_secret_access_key=found["SecretAccessKey"],
            aws_session_token=found["SessionToken"],
            region_name=region or account.session.region_name,
        )
        return cls(name, session, partition)

    def start(self, rounds: int) -> Job:
        """Start the silo's job.

        Raises
        ------
        RoundRefusedError
            If the last one goes on: two would answer the same rounds.
        InfrastructureError
            If there is nothing to start in that region.
        """
        # Two jobs of one silo would answer the same rounds, and the later update replaces the earlier.
        going_on = next((job for job in self.jobs(1) if job.status not in ENDED), None)
        if going_on is not None:
            raise RoundRefusedError(
                f"silo {self.name!r}: its job {going_on.name} goes on ({going_on.status}); wait for it, or end it with "
                f"`fedgrass silo stop {self.name}`"
            )
        now = datetime.now(timezone.utc)
        # Time first, so that names sort; the rest tells two starts within a second apart.
        execution = f"{now:%y%m%d%H%M%S}-{secrets.token_hex(3)}"
        try:
            self._executions.start_execution(
                stateMachineArn=self._machine, name=execution, input=json.dumps({"rounds": rounds})
            )
        except self._executions.exceptions.StateMachineDoesNotExist as error:
            raise self._not_there() from error
        return Job(self._job_name(execution), now, rounds, "starting")

    def jobs(self, most: int = 10) -> Iterator[Job]:
        """Yield the last jobs, the newest first.

        Raises
        ------
        InfrastructureError
            If there is nothing to start in that region.
        """
        try:
            found = self._executions.list_executions(stateMachineArn=self._machine, maxResults=most)["executions"]
        except self._executions.exceptions.StateMachineDoesNotExist as error:
            raise self._not_there() from error
        for execution in found:
            yield self._job(execution)

    def stop(self, job: Job) -> None:
        """Have SageMaker end a job; the rounds go on without it."""
        self._sagemaker.stop_training_job(TrainingJobName=job.name)

    def _job(self, execution: dict[str, Any]) -> Job:
        name, status, reason = self._job_name(execution["name"]), "starting", ""
        described = self._executions.describe_execution(executionArn=execution["executionArn"])
        if execution["status"] == "SUCCEEDED":
            job = self._sagemaker.describe_training_job(TrainingJobName=name)
            status, reason = job["TrainingJobStatus"], job.get("FailureReason", "")
        elif execution["status"] in _NOT_STARTED:
            # The state machine ended without starting a job, so SageMaker knows of none.
            status, reason = "refused", described.get("cause") or _NOT_STARTED[execution["status"]]
        return Job(name, execution["startDate"], _rounds(described.get("input")), status, reason)

    def _job_name(self, execution: str) -> str:
        return f"fedgrass-{split_name(self.name)[1]}-{execution}"

    def _not_there(self) -> InfrastructureError:
        return InfrastructureError(
            f"silo {self.name!r}: there is no state machine {self._machine}; deploy cloud/silo_account.yaml "
            "there, or name its region (--region)"
        )

    @property
    def _machine(self) -> str:
        number, short = split_name(self.name)
        return f"arn:{self.partition}:states:{self.session.region_name}:{number}:stateMachine:fedgrass-silo-{short}"

    @cached_property
    def _executions(self) -> Any:
        return self.session.client("stepfunctions")

    @cached_property
    def _sagemaker(self) -> SageMakerClient:
        return self.session.client("sagemaker")


def split_name(name: str, kind: str = "silo") -> tuple[str, str]:
    """Return a silo's or a helper's account and its name there; raises `ConfigurationError` if it cannot be one's.

    >>> split_name("111111111111-clinic")
    ('111111111111', 'clinic')
    """
    match = _NAME.fullmatch(name)
    if match is None or len(match["name"]) > _LONGEST:
        raise ConfigurationError(
            f"{kind} {name!r}: expected <account>-<name>, 12 digits and 1 to {_LONGEST} letters, digits or single hyphens, such "
            "as 111111111111-clinic"
        )
    return match["account"], match["name"]


def pinned_image(account: Account) -> str:
    """Return the fleet's image by its digest, as a silo's stack asks for it.

    Raises
    ------
    InfrastructureError
        If the image is in no ECR repository, or not there.
    """
    image = account.stack.image
    if "@sha256:" in image:
        return image
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise InfrastructureError(f"image {image}: is in no ECR repository, which SageMaker asks for")
    # The image's region, which may be another than the fleet's.
    ecr = account.session.client("ecr", region_name=match["region"])
    registry = match["registry"]
    try:
        found = ecr.describe_images(
            registryId=registry.split(".")[0],
            repositoryName=match["repository"],
            imageIds=[{"imageTag": match["tag"] or "latest"}],
        )
    except (ecr.exceptions.ImageNotFoundException, ecr.exceptions.RepositoryNotFoundException) as error:
        raise InfrastructureError(f"image {image}: is not there; build it with scripts/deploy") from error
    return f"{registry}/{match['repository']}@{found['imageDetails'][0]['imageDigest']}"


def _rounds(given: str | None) -> int | None:
    try:
        rounds = json.loads(given or "{}").get("rounds")
    except (ValueError, AttributeError):
        return None
    return rounds if isinstance(rounds, int) else None

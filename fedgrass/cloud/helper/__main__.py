"""``python -m fedgrass.cloud.helper``: a SageMaker Processing job that is a helper of another account's fleet.

Its settings are the environment (`HelperJobSettings`), which the helper's own stack fixes (cloud/helper_account.yaml); its key
and what it has answered are in that account's table. Exit codes: 0 nothing was asked any more; 1 something failed; 2 the
environment is wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.cloud.aggregator.config import Container
from fedgrass.cloud.fleet_access import FleetAccess
from fedgrass.errors import ConfigurationError, FedgrassError, TransferError, first_problem
from fedgrass.logs import Log, configure
from fedgrass.protocol.names import FleetName, ThingName

log = Log("fedgrass.cloud.helper")

PREFIX = "FEDGRASS_HELPER_"
_STOPPED = 128 + signal.SIGTERM


class HelperJobSettings(BaseModel):
    """The job's environment, without the prefix ``FEDGRASS_HELPER_``."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    fleet: FleetName
    name: ThingName = Field(description="<this account's number>-<name of your choice>")
    role_arn: str = Field(pattern=r"^arn:[^:]+:iam::\d{12}:role/.+$", description="The fleet's role for helpers")
    region: str = Field(min_length=1, description="The fleet's region")
    table: str = Field(min_length=1, description="The helper's own table")
    kms_key: str = Field(min_length=1, description="KMS key that its private key is encrypted with")
    min_devices: int = Field(default=2, ge=2, description="Sum no set, and no group of one, of fewer devices")
    known_seconds: float = Field(default=0, ge=0, allow_inf_nan=False)
    stay_seconds: float = Field(default=900, ge=1, le=432_000, description="End when nothing was asked for so long")

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> HelperJobSettings:
        """Read the environment; raises `ConfigurationError` naming the first variable that is wrong."""
        given = {key.removeprefix(PREFIX).lower(): text for key, text in environment.items() if key.startswith(PREFIX)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(first_problem(error, "environment", prefix=PREFIX)) from error


def main(environment: Mapping[str, str]) -> int:
    """Help, and return the exit code."""
    configure()
    container = Container.of(environment)
    try:
        answered = run(HelperJobSettings.of(environment))
    except FedgrassError as error:
        log.log_event("job_failed", code=error.code, reason=str(error))
        container.say(f"{error.code}: {error}")
        return 2 if isinstance(error, ConfigurationError) else 1
    container.say(f"answered {answered} requests")
    return 0


def run(settings: HelperJobSettings) -> int:
    """Answer what the fleet asks until it asks nothing more.

    Returns
    -------
    int
        How many requests were answered.

    Raises
    ------
    TransferError
        If AWS refuses something, or does not answer.
    """
    # Imported late: a wrong environment is told at once.
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    from fedgrass.cloud.helper.host import HelperHost
    from fedgrass.cloud.helper.table import TableState
    from fedgrass.secure.helper import Helper, HelperLimits

    own = boto3.Session()
    try:
        state = TableState(
            own.client("dynamodb"), own.client("kms"), settings.table, settings.kms_key, settings.fleet, settings.name
        )
        # The key first: a job that can do no more has made it, and its public half can be pinned.
        helper = Helper(state, settings.fleet, HelperLimits(settings.min_devices, settings.known_seconds))
        log.log_event("helper_ready", fleet=settings.fleet, thing=settings.name, key=helper.public_key)
        access = FleetAccess.assume(settings.role_arn, tag="helper", name=settings.name, region=settings.region)
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as work:
            return HelperHost(access, helper, settings.fleet, settings.name, Path(work)).serve(settings.stay_seconds)
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise TransferError(f"AWS refused or did not answer: {error}") from error


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_STOPPED))  # a container's first process ignores it else
    sys.exit(main(os.environ))

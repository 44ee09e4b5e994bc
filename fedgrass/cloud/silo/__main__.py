"""``python -m fedgrass.cloud.silo``: a SageMaker training job that takes part in a fleet's rounds with its own account's data.

Its settings are hyperparameters (`SiloSettings`), which the silo's own stack fixes but for the number of rounds; its data are the
channel ``training``, its role may assume the fleet's silo role. Exit codes: 0 it took part in as many rounds as it was
to; 1 something failed; 2 the settings are wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.cloud.fleet_access import FleetAccess
from fedgrass.cloud.silo.participant import Participant
from fedgrass.data import DataSettings
from fedgrass.errors import ConfigurationError, FedgrassError, TransferError, first_problem
from fedgrass.logs import Log, configure
from fedgrass.protocol.names import FleetName, ThingName

log = Log("fedgrass.cloud.silo")

_STOPPED = 128 + signal.SIGTERM


class SiloSettings(BaseModel):
    """Hyperparameters of the job; SageMaker makes text of all of them."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    fleet: FleetName
    silo: ThingName = Field(description="<this account's number>-<name of your choice>")
    role_arn: str = Field(pattern=r"^arn:[^:]+:iam::\d{12}:role/.+$", description="The fleet's silo role")
    region: str = Field(min_length=1, description="The fleet's region")
    rounds: int = Field(default=1, ge=1, le=500, description="Rounds to take part in, then the job ends")
    wait_seconds: float = Field(default=3600, gt=0, description="Longest wait for a round")
    engine: str = Field(default="litert", min_length=1)
    builder: str = ""
    loader: str = "csv"
    file: str = Field(default="data.csv", min_length=1, description="Name of the data's file in the channel")
    label: str = ""
    validation_fraction: float = Field(default=0.2, ge=0, lt=1)
    min_noise_multiplier: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="Decline rounds whose updates carry less noise"
    )
    max_bundle_mb: int = Field(default=2048, ge=1, description="Largest model that is downloaded")


def read_settings(root: Path) -> SiloSettings:
    """Read ``input/config/hyperparameters.json``; raises `ConfigurationError` naming the first that is wrong."""
    path = root / "input" / "config" / "hyperparameters.json"
    try:
        return SiloSettings.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise ConfigurationError(first_problem(error, "hyperparameters", prefix="hyperparameter ")) from error
        raise ConfigurationError(f"{path}: cannot be read ({error})") from error


def main(environment: Mapping[str, str]) -> int:
    """Take part and return the exit code."""
    configure()
    root = Path(environment.get("FEDGRASS_ML_ROOT", "/opt/ml"))
    try:
        _run(read_settings(root), root)
    except FedgrassError as error:
        log.log_event("job_failed", code=error.code, reason=str(error))
        _say_failure(root, str(error))
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _run(settings: SiloSettings, root: Path) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    data = DataSettings(
        loader=settings.loader,
        path=str(root / "input" / "data" / "training" / settings.file),
        label=settings.label,
        validation_fraction=settings.validation_fraction,
    )
    try:
        access = FleetAccess.assume(settings.role_arn, tag="silo", name=settings.silo, region=settings.region)
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as work:
            participant = Participant(
                access,
                fleet=settings.fleet,
                silo=settings.silo,
                data=data,
                engine=settings.engine,
                builder=settings.builder,
                work=Path(work),
                min_noise_multiplier=settings.min_noise_multiplier,
                max_bundle_mb=settings.max_bundle_mb,
            )
            participant.take_part(rounds=settings.rounds, wait_seconds=settings.wait_seconds)
    except (ClientError, BotoCoreError) as error:
        raise TransferError(f"AWS refused or did not answer: {error}") from error


def _say_failure(root: Path, reason: str) -> None:
    """SageMaker shows this as the job's FailureReason."""
    path = root / "output" / "failure"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SageMaker shows the first 1,024 characters.
        path.write_text(reason[:1024])
    except OSError as error:
        log.log_event("exit_message_not_written", reason=str(error))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_STOPPED))  # a container's first process ignores it else
    sys.exit(main(os.environ))

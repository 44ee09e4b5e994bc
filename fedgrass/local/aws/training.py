"""SageMaker's training jobs, as far as silos use them: the container contract, run as one process.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from werkzeug import Request, Response

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import arn
from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.children import container_environment
from fedgrass.local.aws.processing.contract import Host
from fedgrass.local.aws.processing.job import Surroundings
from fedgrass.local.aws.processing.requests import Operations, answer
from fedgrass.local.processes import signal_group
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import type_defs as api

_MAX_FAILURE = 1024
_STOP_GRACE_S = 120.0  # what SageMaker gives a container between SIGTERM and SIGKILL


@dataclass
class _Job:
    request: api.CreateTrainingJobRequestTypeDef
    surroundings: Surroundings
    status: str = "InProgress"
    failure: str | None = None
    created: float = field(default_factory=time.time)
    ended: float | None = None
    process: subprocess.Popen[bytes] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    def describe(self) -> dict[str, object]:
        shown = {name: value for name, value in self.request.items() if name != "Tags"}
        shown |= {
            "TrainingJobArn": arn("sagemaker", f"training-job/{self.name}"),
            "TrainingJobStatus": self.status,
            "SecondaryStatus": "Training" if self.status == "InProgress" else self.status,
            "CreationTime": self.created,
            "TrainingEndTime": self.ended,
            "FailureReason": self.failure,
        }
        return {name: value for name, value in shown.items() if value is not None}

    def run(self) -> None:
        host = Host(self.surroundings.state / "training" / self.name, 0, 1)
        try:
            self._prepare(host)
            with self.lock:
                # Under the lock that `stop` takes: a job stopped while its data were fetched must not start a
                # container.
                self.process = self._launch(host) if self.status == "InProgress" else None
            code = self._wait() if self.process is not None else None
        except (FedgrassError, OSError) as error:
            self._end("Failed", f"ClientError: {error}")
            return
        if self.status == "Stopping" or code is None:
            self._end("Stopped", None)
        elif code:
            said = host.ml / "output" / "failure"
            # What a training container writes there is the reason that DescribeTrainingJob shows, up to 1024
            # characters.
            words = said.read_bytes()[:_MAX_FAILURE].decode(errors="replace") if said.is_file() else ""
            self._end("Failed", f"AlgorithmError: {words}, exit code: {code}")
        else:
            self._end("Completed", None)

    def stop(self) -> None:
        with self.lock:
            if self.status != "InProgress":
                raise ApiError(
                    "ValidationException", f"Training job {self.name} is {self.status}: it cannot be stopped."
                )
            self.status = "Stopping"
            if self.process is not None:
                signal_group(self.process.pid, signal.SIGTERM)

    def _prepare(self, host: Host) -> None:
        config = host.ml / "input" / "config"
        config.mkdir(parents=True)
        for folder in ("output", "model"):
            (host.ml / folder).mkdir()
        channels = self.request.get("InputDataConfig") or []
        (config / "hyperparameters.json").write_text(json.dumps(self.request.get("HyperParameters") or {}))
        (config / "resourceconfig.json").write_text(json.dumps({"current_host": host.name, "hosts": [host.name]}))
        (config / "inputdataconfig.json").write_text(json.dumps({one["ChannelName"]: {} for one in channels}))
        for channel in channels:
            source = channel["DataSource"]["S3DataSource"]
            where = f"/opt/ml/input/data/{channel['ChannelName']}"
            host.download(source, where, self.surroundings.objects)

    def _launch(self, host: Host) -> subprocess.Popen[bytes]:
        entry = list(self.request["AlgorithmSpecification"]["ContainerEntrypoint"])
        if entry[0] in {"python", "python3"}:
            entry[0] = sys.executable
        environment = {
            **container_environment(),
            **self.surroundings.environment,
            **(self.request.get("Environment") or {}),
            "FEDGRASS_ML_ROOT": str(host.ml),
        }
        log = self.surroundings.state / "logs" / f"training-{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            return self.surroundings.children.start(
                entry, env=environment, cwd=host.ml.parent, stdout=output, stderr=output
            )

    def _wait(self) -> int | None:
        """Return the exit code; None if the time ran out."""
        assert self.process is not None  # noqa: S101 - just launched
        try:
            return self.process.wait(self.request["StoppingCondition"].get("MaxRuntimeInSeconds", 86_400))
        except subprocess.TimeoutExpired:
            signal_group(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            signal_group(self.process.pid, signal.SIGKILL)
        return None

    def _end(self, status: str, failure: str | None) -> None:
        with self.lock:
            self.status, self.failure, self.ended = status, failure, time.time()
        log_event("training_job_ended", job=self.name, status=status, reason=failure)


class Training:
    """A `Layer` for Create-, Describe- and StopTrainingJob.

    Parameters
    ----------
    surroundings
        What jobs run in.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._operations: Operations = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": lambda parameters: self._find(parameters).describe(),
            "StopTrainingJob": self._stop,
        }

    def layer(self, request: Request) -> Response | None:
        """Answer the operations on training jobs."""
        return answer(self._operations, request)

    def _create(self, parameters: api.CreateTrainingJobRequestTypeDef) -> dict[str, object]:
        if not parameters["AlgorithmSpecification"].get("ContainerEntrypoint"):
            raise ApiError("ValidationException", "A training job without ContainerEntrypoint is not run here.")
        if parameters["ResourceConfig"].get("InstanceCount", 1) != 1:
            raise ApiError("ValidationException", "A training job of several instances is not run here.")
        with self._lock:
            name = parameters["TrainingJobName"]
            if name in self._jobs:
                raise ApiError("ResourceInUse", f"Training job names must be unique within an AWS account: {name}.")
            job = self._jobs[name] = _Job(parameters, self._surroundings)
        threading.Thread(target=job.run, name=f"training-{name}", daemon=True).start()
        return {"TrainingJobArn": arn("sagemaker", f"training-job/{name}")}

    def _stop(self, parameters: api.StopTrainingJobRequestTypeDef) -> dict[str, object]:
        self._find(parameters).stop()
        return {}

    def _find(self, parameters: api.StopTrainingJobRequestTypeDef | api.DescribeTrainingJobRequestTypeDef) -> _Job:
        name = parameters["TrainingJobName"]
        if name not in self._jobs:
            raise ApiError("ValidationException", "Requested resource not found.")
        return self._jobs[name]

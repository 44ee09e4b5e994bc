"""One Processing job from start to end."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import arn
from fedgrass.local.aws.children import Children, container_environment
from fedgrass.local.aws.processing.contract import Host, Objects
from fedgrass.local.processes import signal_group
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import type_defs as api

_STOP_GRACE_S = 120.0  # what SageMaker gives a container between SIGTERM and SIGKILL
_STOP = "stop"

FINAL = frozenset({"Completed", "Failed", "Stopped"})


@dataclass
class Surroundings:
    """What every job runs in.

    Attributes
    ----------
    state
        Folder for containers and logs.
    command
        What a job without an entry point runs.
    environment
        Variables of every container.
    """

    state: Path
    objects: Objects
    children: Children
    command: list[str]
    environment: Mapping[str, str]


@dataclass
class ProcessingJob:
    """A job as DescribeProcessingJob shows it, and the thread that runs it."""

    request: api.CreateProcessingJobRequestTypeDef
    surroundings: Surroundings
    changed: Callable[[ProcessingJob], None]
    status: str = "InProgress"
    created: float = field(default_factory=time.time)
    modified: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    exit_message: str | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[Host | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"processing-{self.name}", daemon=True)

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.request["ProcessingJobName"])

    @property
    def arn(self) -> str:
        """The job's ARN."""
        return arn("sagemaker", f"processing-job/{self.name}")

    def describe(self) -> dict[str, object]:
        """Return the job's description, times in seconds since the epoch."""
        shown = {name: value for name, value in self.request.items() if name != "Tags"}
        shown |= {
            "ProcessingJobArn": self.arn,
            "ProcessingJobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "ProcessingStartTime": self.started,
            "ProcessingEndTime": self.ended,
            "ExitMessage": self.exit_message,
            "FailureReason": self.failure,
        }
        return {name: value for name, value in shown.items() if value is not None}

    def start(self) -> None:
        """Run the job in a separate thread."""
        self.changed(self)
        self._thread.start()

    def stop(self) -> bool:
        """Ask the containers to end; `status` tells when they have. Return False if the job is over."""
        # First the status, which refuses a job that is over; the event alone would be read by nobody.
        if not self._become("Stopping"):
            return False
        self._events.put(_STOP)
        return True

    def _run(self) -> None:
        cluster = self.request["ProcessingResources"]["ClusterConfig"]
        folder = self.surroundings.state / "processing" / self.name
        count = int(cluster["InstanceCount"])
        hosts = [Host(folder / f"algo-{index + 1}", index, count) for index in range(count)]
        try:
            for host in hosts:
                host.write_configuration(self._configuration())
                for source in self.request.get("ProcessingInputs", []):
                    if not source.get("AppManaged"):
                        host.download(source["S3Input"], source["S3Input"]["LocalPath"], self.surroundings.objects)
        except (FedgrassError, OSError) as error:
            self._end("Failed", f"ClientError: Data download failed: {error}")
            return
        self.started = time.time()
        try:
            verdict, failure = self._execute({host: self._launch(host) for host in hosts})
            # The first host's that wrote one: the API has room for one message.
            self.exit_message = next((text for host in hosts if (text := host.exit_message())), None)
            self._upload(hosts, completed=verdict == "Completed")
        except (FedgrassError, OSError) as error:
            verdict, failure = "Failed", f"ClientError: {error}"
        self._end(verdict, failure)

    def _execute(self, running: dict[Host, subprocess.Popen[bytes]]) -> tuple[str, str | None]:
        for host, process in running.items():
            threading.Thread(target=self._watch, args=(host, process), daemon=True).start()
        limit = self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)
        # Until the verdict it is the job's limit, afterwards the end of the grace period; None once SIGKILL was sent.
        deadline: float | None = time.monotonic() + limit
        left = set(running)
        verdict: tuple[str, str | None] | None = None
        while left:
            event = self._next_event(deadline)
            if isinstance(event, Host):
                left.discard(event)
                code = running[event].returncode
                # After the verdict, hosts that end are only what was asked of them.
                if code == 0 or verdict:
                    continue
                # A shell's word for a signal, which is what a container's runtime says.
                verdict = ("Failed", f"AlgorithmError: , exit code: {code if code > 0 else 128 - code}")
            elif event is None and verdict:  # they were asked to end, and did not
                _signal(running, left, signal.SIGKILL)
                deadline = None
                continue
            else:
                late = f"The job ran longer than MaxRuntimeInSeconds ({limit})."
                verdict = verdict or ("Stopped", None if event == _STOP else late)
            # One host's failure ends the job, and so the others.
            _signal(running, left, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_GRACE_S
        return verdict or ("Completed", None)

    def _next_event(self, deadline: float | None) -> Host | str | None:
        """Return the host that ended, a request to stop, or None when the time is up."""
        try:
            return self._events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _watch(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._events.put(host)

    def _launch(self, host: Host) -> subprocess.Popen[bytes]:
        surroundings = self.surroundings
        application = self.request["AppSpecification"]
        entry = list(application.get("ContainerEntrypoint") or surroundings.command)
        if entry[0] in {"python", "python3"}:
            entry[0] = sys.executable
        environment = {
            **container_environment(),
            **surroundings.environment,
            **(self.request.get("Environment") or {}),
            "FEDGRASS_ML_ROOT": str(host.ml),
        }
        log = surroundings.state / "logs" / f"processing-{self.name}-{host.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            return surroundings.children.start(
                entry + list(application.get("ContainerArguments") or []),
                env=environment,
                cwd=host.ml.parent,
                stdout=output,
                stderr=output,
            )

    def _upload(self, hosts: list[Host], *, completed: bool) -> None:
        for output in self.request.get("ProcessingOutputConfig", {"Outputs": []})["Outputs"]:
            destination = output.get("S3Output")
            # Of a job that failed, AWS keeps what it sent while the job ran: outputs in the mode Continuous.
            if destination and (completed or destination.get("S3UploadMode") == "Continuous"):
                for host in hosts:
                    host.upload(destination, self.surroundings.objects)

    def _configuration(self) -> dict[str, object]:
        """Return ``processingjobconfig.json``: the request, whole."""
        shown = {name: value for name, value in self.describe().items() if name in _CONFIGURED}
        return {"Environment": {}, "ProcessingInputs": [], "ProcessingOutputConfig": {"Outputs": []}, **shown}

    def _end(self, status: str, failure: str | None) -> None:
        self.failure = failure
        self.ended = time.time()
        self._become(status)

    def _become(self, status: str) -> bool:
        with self._lock:
            if self.status in FINAL:
                return False
            changed = self.status != status
            self.status = status
            self.modified = time.time()
        if changed:
            log_event("processing_job_changed", job=self.name, status=status, reason=self.failure)
            self.changed(self)
        return True


_CONFIGURED = frozenset(
    {
        "ProcessingJobArn",
        "ProcessingJobName",
        "AppSpecification",
        "Environment",
        "NetworkConfig",
        "ProcessingInputs",
        "ProcessingOutputConfig",
        "ProcessingResources",
        "RoleArn",
        "StoppingCondition",
    }
)


def _signal(running: dict[Host, subprocess.Popen[bytes]], hosts: set[Host], number: int) -> None:
    for host in hosts:
        signal_group(running[host].pid, number)

"""IoT Jobs over MQTT, as far as Greengrass deployments use them.

Source: "AWS IoT Jobs MQTT API" in the IoT Core developer guide. A thing is offered one execution at a time: the one
in progress, else the oldest that is queued. Both nuclei use the topics with the namespace of Greengrass deployments, on
which nothing to do is no ``execution`` (nucleus lite refuses an empty one, and asks again). A thing that has used none of them
is served on those without; one that has, on them alone, for an answer that comes twice can stop nucleus lite's MQTT daemon.
``notify-next`` tells of another next execution, ``notify`` of another list of pending ones: nucleus lite listens to the first,
the classic nucleus to the second.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_NAMESPACE = "namespace-aws-gg-deployment"
_TOPIC = re.compile(
    r"\$aws/things/(?P<thing>[^/]+)/jobs/(?P<job>[^/]+)/" + f"(?P<space>{_NAMESPACE}/)?" + r"(?P<verb>get|update)"
)
_NEXT = "$next"

ReportedStatus = Literal["IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"]
_OPEN = {"QUEUED", "IN_PROGRESS"}
_SUMMARY = ("jobId", "queuedAt", "lastUpdatedAt", "startedAt", "executionNumber", "versionNumber")


class Publish(Protocol):
    """Sends a message to one topic."""

    def __call__(self, topic: str, payload: Mapping[str, object]) -> object:
        """Send ``payload`` as JSON, QoS 1."""


@dataclass
class Execution:
    """A job on one thing."""

    thing: str
    job_id: str
    order: int
    status: str = "QUEUED"
    version: int = 1
    queued_at: float = field(default_factory=time.time)
    started_at: float | None = None
    updated_at: float = field(default_factory=time.time)
    details: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """Return the fields that the MQTT API shows, times in whole seconds."""
        shown: dict[str, object] = {
            "jobId": self.job_id,
            "thingName": self.thing,
            "status": self.status,
            "statusDetails": self.details,
            "queuedAt": int(self.queued_at),
            "lastUpdatedAt": int(self.updated_at),
            "versionNumber": self.version,
            "executionNumber": 1,
        }
        if self.started_at is not None:
            shown["startedAt"] = int(self.started_at)
        return shown


@dataclass
class Job:
    """A document for every thing of a target, those that join later included."""

    job_id: str
    target_arn: str
    document: Mapping[str, object]
    open: bool = True
    executions: dict[str, Execution] = field(default_factory=dict)


class _Update(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: ReportedStatus
    details: dict[str, str] = Field(default_factory=dict, alias="statusDetails")
    expected_version: int | None = Field(default=None, alias="expectedVersion")
    token: str | None = Field(default=None, alias="clientToken")


class _Rejected(Exception):  # noqa: N818 - the wire's word
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Jobs:
    """Offers jobs to things and records what they report.

    Parameters
    ----------
    publish
        Sends a message to a thing.
    things_of
        The things of a target ARN at this moment.
    on_change
        Called when an execution's status changes.
    """

    def __init__(
        self,
        publish: Publish,
        things_of: Callable[[str], list[str]],
        on_change: Callable[[Job, Execution], None],
    ) -> None:
        self._publish = publish
        self._things_of = things_of
        self._on_change = on_change
        self._jobs: dict[str, Job] = {}
        # By thing: the job that it was last told is next, and the pending ones that it was last told of. `notify` and
        # `notify-next` come when these change and at no other time.
        self._offered: dict[str, str | None] = {}
        self._listed: dict[str, set[str]] = {}
        # Things that have used a topic with the namespace: see the module's docstring.
        self._with_namespace: set[str] = set()
        self._count = 0
        # Reentrant: `executions` takes it, and is also called with it held.
        self._lock = threading.RLock()

    def create(
        self, job_id: str, target_arn: str, document: Mapping[str, object], *, supersedes: str | None = None
    ) -> None:
        """Queue a job for its target.

        Parameters
        ----------
        job_id
            The job's id.
        target_arn
            ARN of a thing or a thing group.
        document
            What the devices get.
        supersedes
            Id of a job that is taken back where it has not begun.
        """
        with self._lock:
            self._jobs[job_id] = Job(job_id, target_arn, document)
            # Closed before the new one is queued, so that a thing is told of one change and not of two.
            changed = self._close(supersedes) if supersedes else set()
            self._queue(self._jobs[job_id], changed)
            self._offer(changed)

    def cancel(self, job_id: str) -> None:
        """Take a job back from the things that have not begun it."""
        # A separate block from the answer's: the thing has to hear that its update was accepted before it hears of
        # its next job.
        with self._lock:
            self._offer(self._close(job_id))

    def refresh(self) -> None:
        """Queue open jobs for things that have joined their targets."""
        with self._lock:
            changed: set[str] = set()
            for job in self._jobs.values():
                self._queue(job, changed)
            self._offer(changed)

    def forget(self, thing: str) -> None:
        """Drop the executions of a thing that is no longer a core device."""
        with self._lock:
            for job in self._jobs.values():
                # The job stays open: a thing that returns to the group is queued again.
                job.executions.pop(thing, None)
            self._offered.pop(thing, None)
            self._listed.pop(thing, None)

    def executions(self, *, job_id: str | None = None, thing: str | None = None) -> list[Execution]:
        """Return executions of a job, of a thing, or of both, newest first."""
        with self._lock:
            found = [
                execution
                for job in self._jobs.values()
                for execution in job.executions.values()
                if job_id in {None, job.job_id} and thing in {None, execution.thing}
            ]
        return sorted(found, key=lambda execution: execution.order, reverse=True)

    def handle(self, topic: str, payload: bytes) -> None:
        """Answer a thing's message, if ``topic`` is one of the Jobs API."""
        match = _TOPIC.fullmatch(topic)
        if match is None:
            return
        thing, job_id = match["thing"], match["job"]
        if match["space"]:
            self._with_namespace.add(thing)
        elif thing in self._with_namespace:
            return
        token: object = None
        try:
            body = _parse(payload)
            token = body.get("clientToken")
            with self._lock:
                get = match["verb"] == "get"
                answer = self._get(thing, job_id) if get else self._update(thing, job_id, body)
            self._publish(f"{topic}/accepted", _answer(_said(answer) if match["space"] else answer, token))
        except _Rejected as error:
            self._publish(f"{topic}/rejected", _answer({"code": error.code, "message": str(error)}, token))
            return
        with self._lock:
            self._offer({thing})

    def _get(self, thing: str, job_id: str) -> dict[str, object]:
        if job_id == _NEXT:
            # Whoever asks is served at once, though it joined the group a moment ago and `refresh` has not run.
            self._queue_for(thing)
            execution = self._next(thing)
            # It knows now: no notification is due for what it was just told.
            self._offered[thing] = execution.job_id if execution else None
            return {"execution": self._shown(execution)}
        return {"execution": self._shown(self._execution(thing, job_id))}

    def _update(self, thing: str, job_id: str, body: dict[str, object]) -> dict[str, object]:
        try:
            update = _Update.model_validate(body)
        except ValidationError as error:
            raise _Rejected(
                "InvalidRequest", f"status must be one of {get_args(ReportedStatus)}: {error.errors()[0]['msg']}"
            ) from error
        execution = self._execution(thing, job_id)
        if execution.status not in _OPEN:
            raise _Rejected("InvalidStateTransition", f"Job {job_id} on {thing} is already {execution.status}.")
        # Optimistic locking, as IoT Jobs have it: an update made on an old version is refused.
        if update.expected_version not in {None, execution.version}:
            raise _Rejected("VersionMismatch", f"Job {job_id} on {thing} is at version {execution.version}.")
        changed = execution.status != update.status
        execution.status = update.status
        execution.details.update(update.details)
        execution.version += 1
        execution.updated_at = time.time()
        execution.started_at = execution.started_at or execution.updated_at
        if changed:
            self._on_change(self._jobs[job_id], execution)
        return {"executionState": {"status": execution.status, "versionNumber": execution.version}}

    def _execution(self, thing: str, job_id: str) -> Execution:
        job = self._jobs.get(job_id)
        if job is None or thing not in job.executions:
            raise _Rejected("ResourceNotFound", f"Thing {thing} has no job {job_id}.")
        return job.executions[thing]

    def _shown(self, execution: Execution | None) -> dict[str, object]:
        if execution is None:
            return {}
        return {**execution.document(), "jobDocument": self._jobs[execution.job_id].document}

    def _next(self, thing: str) -> Execution | None:
        # What is in progress comes before all that wait: a device resumes it after a restart.
        waiting = [one for one in self.executions(thing=thing) if one.status in _OPEN]
        return min(waiting, key=lambda one: (one.status == "QUEUED", one.order), default=None)

    def _queue_for(self, thing: str) -> None:
        for job in self._jobs.values():
            if job.open and thing not in job.executions and thing in self._things_of(job.target_arn):
                self._add(job, thing)

    def _queue(self, job: Job, changed: set[str]) -> None:
        for thing in self._things_of(job.target_arn) if job.open else ():
            if thing not in job.executions:
                self._add(job, thing)
                changed.add(thing)

    def _add(self, job: Job, thing: str) -> None:
        self._count += 1
        job.executions[thing] = Execution(thing, job.job_id, self._count)
        self._on_change(job, job.executions[thing])

    def _close(self, job_id: str) -> set[str]:
        job = self._jobs[job_id]
        job.open = False
        changed = set()
        for execution in job.executions.values():
            if execution.status == "QUEUED":
                execution.status = "CANCELED"
                execution.updated_at = time.time()
                changed.add(execution.thing)
                self._on_change(job, execution)
        return changed

    def _offer(self, things: set[str]) -> None:
        for thing in sorted(things):
            execution = self._next(thing)
            job_id = execution.job_id if execution else None
            if self._offered.get(thing) != job_id:
                self._offered[thing] = job_id
                self._notify(thing, "notify-next", {"execution": self._shown(execution)})
            pending = [one for one in self.executions(thing=thing) if one.status in _OPEN]
            listed = {one.job_id for one in pending}
            if self._listed.get(thing, set()) != listed:
                self._listed[thing] = listed
                self._notify(thing, "notify", {"jobs": _by_status(pending)})

    def _notify(self, thing: str, name: str, body: dict[str, Any]) -> None:
        topic = f"$aws/things/{thing}/jobs/{name}"
        if thing not in self._with_namespace:
            self._publish(topic, _answer(body, None))
        self._publish(f"{topic}-{_NAMESPACE}", _answer(_said(body), None))


def _by_status(executions: list[Execution]) -> dict[str, list[dict[str, Any]]]:
    """Return what ``notify`` tells of pending executions, oldest first."""
    listed: dict[str, list[dict[str, Any]]] = {}
    for execution in reversed(executions):
        shown = execution.document()
        summary = {key: shown[key] for key in _SUMMARY if key in shown}
        listed.setdefault(execution.status, []).append(summary)
    return listed


def _parse(payload: bytes) -> dict[str, object]:
    try:
        body = json.loads(payload or b"{}")
    except ValueError as error:
        raise _Rejected("InvalidJson", f"The message is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise _Rejected("InvalidJson", "The message is not a JSON object.")
    return body


def _said(answer: Mapping[str, object]) -> Mapping[str, object]:
    """Leave an execution out that is none."""
    return {key: value for key, value in answer.items() if key != "execution" or value}


def _answer(body: Mapping[str, object], token: object) -> dict[str, object]:
    answer = {"timestamp": int(time.time()), **body}
    return answer if token is None else {**answer, "clientToken": token}

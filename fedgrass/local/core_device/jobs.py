"""Deployments arrive as IoT Jobs over MQTT, and their results go back the same way.

Source: "Jobs device MQTT API operations" of AWS IoT Core, and IotJobsHelper of the nucleus.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from fedgrass.local.core_device.deployment import Deployer, DeploymentDocument, Result
from fedgrass.local.core_device.mqtt import Delivery, IotCore
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.logs import log_event

_NAMESPACE = "namespace-aws-gg-deployment"
_FIRST_LINK_SECONDS = 1.0


class JobChannel:
    """Takes the next job, runs it through the deployer, reports, and asks for the next."""

    def __init__(
        self,
        thing: str,
        iot_core: IotCore,
        deployer: Deployer,
        *,
        finished: Callable[[str], None],
        nucleus: Nucleus = CLASSIC,
    ) -> None:
        self._prefix = f"$aws/things/{thing}/jobs/"
        self._next = f"{self._prefix}$next/{_NAMESPACE}/get"
        self._iot_core = iot_core
        self._deployer = deployer
        self._finished = finished
        self._nucleus = nucleus
        self._subscribing: asyncio.Task[None] | None = None
        self._unconfirmed: dict[str, bytes] = {}
        self._running: tuple[str, asyncio.Task[None]] | None = None
        self._offered: dict[str, Any] | None = None

    def start(self) -> None:
        """Listen for jobs, and ask for a pending one at each connection; late, if there is no link now."""
        if self._nucleus.subscribes_again:
            self._subscribing = asyncio.get_running_loop().create_task(self._subscribe_with_a_link(), name="jobs")
        else:
            self._subscribe()

    async def _subscribe_with_a_link(self) -> None:
        linked = self._iot_core.connected
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(linked.wait(), _FIRST_LINK_SECONDS)
        while not linked.is_set():
            await asyncio.sleep(self._nucleus.subscribes_again)
        self._subscribe()
        self._on_connected()

    def _subscribe(self) -> None:
        self._iot_core.subscribe(f"{self._prefix}notify-next-{_NAMESPACE}", self._on_next)
        self._iot_core.subscribe(f"{self._next}/accepted", self._on_next)
        self._iot_core.subscribe(f"{self._prefix}+/{_NAMESPACE}/update/accepted", self._on_confirmed)
        self._iot_core.subscribe(f"{self._prefix}+/{_NAMESPACE}/update/rejected", self._on_confirmed)
        self._iot_core.on_connected(self._on_connected)

    async def stop(self) -> None:
        """Give up the job at hand; the cloud offers it again."""
        self._offered = None
        if self._subscribing is not None:
            self._subscribing.cancel()
        if self._running is not None:
            self._running[1].cancel()
            await asyncio.wait({self._running[1]})

    def _on_connected(self) -> None:
        # Reports first, so that the cloud's next job is not the one that was just finished.
        for job, report in self._unconfirmed.items():
            self._iot_core.publish(self._update(job), report)
        self._iot_core.publish(self._next, json.dumps({"clientToken": "next"}).encode())

    def _on_confirmed(self, delivery: Delivery) -> None:
        self._unconfirmed.pop(delivery.topic.removeprefix(self._prefix).split("/")[0], None)

    def _on_next(self, delivery: Delivery) -> None:
        try:
            execution = json.loads(delivery.payload).get("execution") or {}
            job = execution.get("jobId")
        except (ValueError, AttributeError) as error:
            log_event("job_malformed", topic=delivery.topic, error=str(error))
            return
        self._offered = execution if job else None
        if self._running is None:
            self._take()
        # Until it changes the device, a job gives way to a newer one; afterwards the newer one waits.
        elif self._running[0] != job and not self._deployer.applying:
            log_event("job_superseded", job=self._running[0], by=job)
            self._running[1].cancel()

    def _take(self) -> None:
        """Begin the offered job, unless it was done already and only its report got lost."""
        execution, self._offered = self._offered, None
        if execution is None:
            return
        job, document = str(execution["jobId"]), execution.get("jobDocument", {})
        # Done before a restart or a lost report: doing it again would restart every component.
        done = self._deployer.active.results.get(str(document.get("deploymentId", "")))
        if done is not None:
            self._report(job, done)
            return
        task = asyncio.get_running_loop().create_task(self._run(job, document), name=f"job-{job}")
        self._running = (job, task)
        task.add_done_callback(self._ran)

    async def _run(self, job: str, content: Any) -> None:
        try:
            document = DeploymentDocument.model_validate(content)
        except ValidationError as error:
            self._report(job, Result(status="REJECTED", detail="REJECTED", cause=str(error)))
            return
        # Before IN_PROGRESS: a job that is superseded in this time was never begun.
        await asyncio.sleep(self._nucleus.looks_for_deployments)
        self._publish(job, {"status": "IN_PROGRESS", "statusDetails": {"detailed-deployment-status": "IN_PROGRESS"}})
        result = await self._deployer.deploy(document)
        self._report(job, result)
        self._finished(document.deployment_id)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("job_crashed", job=task.get_name(), error=error)
            cause = f"the device failed: {error!r}"
            job = task.get_name().removeprefix("job-")
            self._report(job, Result(status="FAILED", detail="FAILED_NO_STATE_CHANGE", cause=cause))
        with contextlib.suppress(RuntimeError):  # the loop is closing
            self._take()

    def _report(self, job: str, result: Result) -> None:
        details = {"detailed-deployment-status": result.detail, "deployment-failure-cause": result.cause[:1024]}
        if not result.detail:
            details = {}  # nucleus lite says no more than how it ended
        self._unconfirmed[job] = self._publish(job, {"status": result.status, "statusDetails": details})

    def _publish(self, job: str, update: dict[str, Any]) -> bytes:
        payload = json.dumps({**update, "clientToken": job}).encode()
        self._iot_core.publish(self._update(job), payload)
        return payload

    def _update(self, job: str) -> str:
        return f"{self._prefix}{job}/{_NAMESPACE}/update"

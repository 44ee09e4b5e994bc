"""What components tell and ask about lifecycles: states, restarts, and whether an update may begin."""

from __future__ import annotations

import asyncio
from functools import partial

from fedgrass.local.core_device.component import Request, State
from fedgrass.local.core_device.configuration import ConfigurationStore
from fedgrass.local.core_device.ipc.errors import InvalidArgumentsError, ResourceNotFoundError, ServiceError
from fedgrass.local.core_device.ipc.server import Operation, Payload, Stream
from fedgrass.local.core_device.supervisor import Supervisor
from fedgrass.logs import log_event

_REPORTS = {"RUNNING": Request.REPORT_RUNNING, "ERRORED": Request.REPORT_ERRORED}


class ComponentUpdates:
    """SubscribeToComponentUpdates and DeferComponentUpdate: components are asked before a deployment changes anything."""

    def __init__(self) -> None:
        self._subscribers: list[Stream] = []
        self._answers: dict[tuple[str, str], asyncio.Future[float]] = {}

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "SubscribeToComponentUpdates": Operation(self._subscribe, events="ComponentUpdatePolicyEvents"),
            "DeferComponentUpdate": Operation(self._defer),
        }

    async def consent(self, deployment: str, timeout: float) -> None:
        """Return once no subscribed component defers the deployment.

        Each time, components have ``timeout`` seconds to answer; silence is consent. The longest deferral is waited for,
        and all are asked again after it.
        """
        # Asked again after each deferral: a component may not be ready even then.
        while (deferral := await self._ask(deployment, timeout)) > 0:
            log_event("deployment_deferred", deployment=deployment, seconds=deferral)
            await asyncio.sleep(deferral)

    def announce_done(self, deployment: str) -> None:
        """Tell the subscribed components that the deployment is over."""
        for stream in list(self._subscribers):
            stream.send({"postUpdateEvent": {"deploymentId": deployment}})

    async def _ask(self, deployment: str, timeout: float) -> float:
        loop = asyncio.get_running_loop()
        # One answer for each component, however many of its streams are subscribed.
        self._answers = {(stream.component, deployment): loop.create_future() for stream in self._subscribers}
        if not self._answers:
            return 0.0
        for stream in list(self._subscribers):
            stream.send({"preUpdateEvent": {"deploymentId": deployment, "isGgcRestarting": False}})
        answers = list(self._answers.values())
        await asyncio.wait(answers, timeout=timeout)
        self._answers = {}
        return max((answer.result() for answer in answers if answer.done() and not answer.cancelled()), default=0.0)

    async def _subscribe(self, stream: Stream, request: Payload) -> Payload:
        del request
        self._subscribers.append(stream)
        stream.on_close.append(partial(self._unsubscribe, stream))
        return {}

    def _unsubscribe(self, stream: Stream) -> None:
        self._subscribers.remove(stream)
        if all(other.component != stream.component for other in self._subscribers):
            for (component, _), answer in self._answers.items():
                if component == stream.component and not answer.done():
                    answer.set_result(0.0)  # it is gone: nothing to wait for

    async def _defer(self, stream: Stream, request: Payload) -> Payload:
        if all(subscriber.component != stream.component for subscriber in self._subscribers):
            raise InvalidArgumentsError("Component is not subscribed to component update events")
        deployment, milliseconds = request.get("deploymentId"), request.get("recheckAfterMs", 0)
        if not isinstance(deployment, str) or not isinstance(milliseconds, (int, float)):
            raise InvalidArgumentsError("Cannot defer the update: deploymentId is required, recheckAfterMs is a number")
        answer = self._answers.get((stream.component, deployment))
        if answer is None or answer.done():
            raise ServiceError("Time limit to respond to PreComponentUpdateEvent exceeded")
        answer.set_result(max(0.0, milliseconds / 1000))
        return {}


class LifecycleService:
    """UpdateState, StopComponent, RestartComponent, GetComponentDetails and ListComponents."""

    def __init__(self, supervisor: Supervisor, store: ConfigurationStore) -> None:
        self._supervisor = supervisor
        self._store = store

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "UpdateState": Operation(self._update_state),
            "StopComponent": Operation(self._stop),
            "RestartComponent": Operation(self._restart),
            "GetComponentDetails": Operation(self._details),
            "ListComponents": Operation(self._list),
        }

    async def _update_state(self, stream: Stream, request: Payload) -> Payload:
        report = _REPORTS.get(str(request.get("state")))
        if report is None:
            raise InvalidArgumentsError(f"state must be one of {sorted(_REPORTS)}, found {request.get('state')!r}")
        if not self._supervisor.request(stream.component, report):
            raise _not_found(stream.component)
        return {}

    async def _stop(self, stream: Stream, request: Payload) -> Payload:
        """As ``greengrass-cli component stop`` has it: the answer says that it was asked for, not that it is done."""
        del stream
        name = str(request.get("componentName"))
        if not self._supervisor.request(name, Request.FINISH):
            raise _not_found(name)
        return {"stopStatus": "SUCCEEDED"}

    async def _restart(self, stream: Stream, request: Payload) -> Payload:
        del stream
        name = str(request.get("componentName"))
        if not self._supervisor.request(name, Request.RESTART):
            raise _not_found(name)
        return {"restartStatus": "SUCCEEDED"}

    async def _details(self, stream: Stream, request: Payload) -> Payload:
        del stream
        return {"componentDetails": self._describe(str(request.get("componentName")))}

    async def _list(self, stream: Stream, request: Payload) -> Payload:
        del stream, request
        return {"components": [self._describe(name) for name in sorted(self._supervisor.components)]}

    def _describe(self, name: str) -> Payload:
        component = self._supervisor.components.get(name)
        if component is None:
            raise _not_found(name)
        return {
            "componentName": name,
            "version": component.specification.version,
            "state": State(component.state).value,
            "configuration": self._store.get(name),
        }


def _not_found(name: str) -> ResourceNotFoundError:
    return ResourceNotFoundError(
        f"Component {name} is not on this device", resource_type="Component", resource_name=name
    )

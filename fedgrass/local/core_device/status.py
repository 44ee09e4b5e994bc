"""Fleet status: what runs on the device, told to the cloud when it changes."""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections.abc import Callable

from fedgrass.local.core_device.component import State
from fedgrass.local.core_device.deployment import Active
from fedgrass.local.core_device.mqtt import IotCore, SpoolError
from fedgrass.local.core_device.nucleus import Nucleus
from fedgrass.local.core_device.recipe import platform_attributes
from fedgrass.local.core_device.supervisor import Supervisor

_SETTLED = {State.RUNNING, State.FINISHED, State.ERRORED, State.BROKEN}
_QUIET_SECONDS = 0.2


class FleetStatus:
    """Publishes to ``$aws/things/<thing>/greengrassv2/health/json``; changes that follow closely share a message."""

    def __init__(
        self,
        thing: str,
        iot_core: IotCore,
        supervisor: Supervisor,
        *,
        nucleus: Nucleus,
        active: Callable[[], Active],
    ) -> None:
        self._nucleus = nucleus
        self._thing = thing
        self._iot_core = iot_core
        self._supervisor = supervisor
        self._active = active
        self._reported: dict[str, State] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Report everything at each connection."""
        self._iot_core.on_connected(lambda: self.complete("NUCLEUS_LAUNCH"))

    def stop(self) -> None:
        """Report no more."""
        if self._timer is not None:
            self._timer.cancel()

    def changed(self) -> None:
        """Note that some component's state changed."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._partial)

    def complete(self, trigger: str, deployment: str | None = None) -> None:
        """Report every component."""
        states = {name: component.state for name, component in self._supervisor.components.items()}
        self._publish("COMPLETE", trigger, states, deployment)

    def _partial(self) -> None:
        self._timer = None
        states = {name: component.state for name, component in self._supervisor.components.items()}
        # States on the way are not told: a fleet of components in STARTING would be all that the cloud sees during a
        # deployment.
        moved = {
            name: state for name, state in states.items() if state in _SETTLED and self._reported.get(name) != state
        }
        if moved and self._iot_core.connected.is_set():
            self._publish("PARTIAL", "COMPONENT_STATUS_CHANGE", moved, None)

    def _publish(self, kind: str, trigger: str, states: dict[str, State], deployment: str | None) -> None:
        self._reported |= states
        components = self._supervisor.components
        roots = self._active().roots()
        attributes = platform_attributes(self._nucleus.runtime)
        healthy = all(component.state is not State.BROKEN for component in components.values())
        message: dict[str, object] = {
            "ggcVersion": self._nucleus.version,
            "platform": attributes["os"],
            "architecture": attributes["architecture"],
            "osVersion": platform.release(),
            "thing": self._thing,
            "overallDeviceStatus": "HEALTHY" if healthy else "UNHEALTHY",
            "timestamp": int(time.time() * 1000),
            "messageType": kind,
            "trigger": trigger,
            "components": [
                {
                    "componentName": name,
                    "version": components[name].specification.version,
                    "status": state.value,
                    "statusDetails": {"statusReason": components[name].reason},
                    "fleetConfigArns": sorted(roots.get(name, {})),
                    "isRoot": name in roots,
                }
                for name, state in sorted(states.items())
            ],
        }
        if deployment is not None:
            message["deploymentInformation"] = {"deploymentId": deployment}
        try:
            self._iot_core.publish(f"$aws/things/{self._thing}/greengrassv2/health/json", json.dumps(message).encode())
        except SpoolError:
            self._reported = {}  # told again in full at the next connection

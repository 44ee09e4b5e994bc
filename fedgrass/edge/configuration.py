"""A component's settings while it runs: read at the start, taken over when a deployment changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from fedgrass.edge import settings
from fedgrass.edge.component import Device
from fedgrass.edge.ipc import EXIT_RELAUNCH
from fedgrass.edge.settings import RuntimeSettings, Settings
from fedgrass.errors import ConfigurationError, IpcError
from fedgrass.protocol.names import RUNTIME

S = TypeVar("S", bound=Settings)


class Configuration(Generic[S]):
    """The shared settings as ``runtime``, and the component's own as ``own``; both always valid.

    Raises
    ------
    ConfigurationError
        If they are not valid at the start.
    IpcError
        If they cannot be read.
    """

    def __init__(self, device: Device, component: str, model: type[S]) -> None:
        self._device = device
        self._component = component
        self._model = model
        self.runtime, self.own = self._read()

    def follow(self, changed: Callable[[], None] = lambda: None) -> None:
        """Take changes over from now on, on the device's loop, and call ``changed`` after each.

        What is not valid is logged and not taken over. Another fleet means other topics: the process leaves to be
        relaunched.
        """

        def reload() -> None:
            if self._reload():
                changed()

        # Posted to the loop, because this runs on the SDK's network thread, where another IPC call would deadlock.
        for component in (RUNTIME, self._component):
            self._device.ipc.on_configuration(component, lambda: self._device.loop.post(reload))

    def _reload(self) -> bool:
        try:
            runtime, own = self._read()
        except (ConfigurationError, IpcError) as error:
            self._device.log.log_event("configuration_not_updated", reason=str(error))
            return False
        # Nucleus lite sends one event for each leaf, so a deployment of ten keys comes as ten events.
        if (runtime, own) == (self.runtime, self.own):
            return False
        if runtime.fleet != self.runtime.fleet:
            self._device.log.log_event("fleet_changed", to=runtime.fleet)
            self._device.loop.stop(EXIT_RELAUNCH)
            return False
        # Both at once, so that no reader sees a new value of one beside an old value of the other.
        self.runtime, self.own = runtime, own
        self._device.log.log_event("configuration_updated")
        return True

    def _read(self) -> tuple[RuntimeSettings, S]:
        return (
            settings.read(self._device.ipc, RUNTIME, RuntimeSettings),
            settings.read(self._device.ipc, self._component, self._model),
        )

"""The local core device, so that it can be disturbed for long.

SIGUSR1 drops every IPC connection. A component that ends in RUNNING is started again however often that is: the nucleus gives
up at the third time in an hour, and a hundred kills an hour is what these tests are for.
"""

from __future__ import annotations

import asyncio
import signal

import typer

from fedgrass.local.core_device import device
from fedgrass.local.core_device.__main__ import main
from fedgrass.local.core_device.component import Component, State
from fedgrass.local.core_device.ipc.server import IpcServer


class _Droppable(IpcServer):
    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._drop)

    def _drop(self) -> None:
        for connection in list(self._connections):
            connection.abort()


_recover = Component._recover


async def _patient(component: Component, failed_in: State, reason: str) -> bool:
    if failed_in is State.RUNNING:
        component._errors.pop(State.RUNNING, None)
    return await _recover(component, failed_in, reason)


if __name__ == "__main__":
    for place, name, replacement in ((device, "IpcServer", _Droppable), (Component, "_recover", _patient)):
        setattr(place, name, replacement)
    typer.run(main)

"""Components that are part of the device: Stream Manager runs as a separate process, and is started again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from fedgrass.local import processes
from fedgrass.local.core_device.component import State
from fedgrass.logs import log_event

STREAM_MANAGER = "aws.greengrass.StreamManager"
TOKEN_EXCHANGE = "aws.greengrass.TokenExchangeService"  # noqa: S105 - a component's name

_RESTART_SECONDS = 0.5
_PROBE_SECONDS = 0.05


class StreamManagerProcess:
    """Keeps ``python -m fedgrass.local.core_device.stream_manager`` running on one port."""

    def __init__(
        self,
        directory: Path,
        log: Path,
        *,
        environment: Callable[[], Mapping[str, str]],
        changed: Callable[[], None],
    ) -> None:
        self.port = 0
        self.state: State | None = None
        self._directory = directory
        self._log_file = log
        self._environment = environment
        self._changed = changed
        self._keeper: asyncio.Task[None] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start it, if it is not, and return when it accepts connections."""
        if self._keeper is None:
            self.port = _free_port()
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=STREAM_MANAGER)
        # The components that need it are started when this returns.
        while self.state is not State.RUNNING:
            await asyncio.sleep(_PROBE_SECONDS)

    async def stop(self) -> None:
        """Stop it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._child is not None:
            await asyncio.to_thread(processes.stop, self._child, grace=3.0)

    async def _keep(self) -> None:
        while True:
            self._enter(State.STARTING)
            exited = self._spawn()
            while not exited.done() and not await self._accepts():
                await asyncio.sleep(_PROBE_SECONDS)
            if not exited.done():
                log_event("stream_manager_running", port=self.port, pid=self.pid)
                self._enter(State.RUNNING)
            # Shielded: cancelling the keeper must not cancel the future that the waiting thread resolves.
            code = await asyncio.shield(exited)
            if self._child is not None:
                # Whatever is left of its group might hold the port that the next one needs.
                processes.signal_group(self._child.pid, signal.SIGKILL)
            log_event("stream_manager_exited", code=code)
            self._enter(State.ERRORED)
            await asyncio.sleep(_RESTART_SECONDS)

    def _spawn(self) -> asyncio.Future[int]:
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()
        command = [
            sys.executable,
            "-m",
            "fedgrass.local.core_device.stream_manager",
            "--directory",
            str(self._directory),
        ]
        with self._log_file.open("ab") as output:
            child = processes.spawn(
                [*command, "--port", str(self.port)],
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._child = child

        def wait() -> None:
            code = child.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(exited.set_result, code)

        threading.Thread(target=wait, name="wait-stream-manager", daemon=True).start()
        return exited

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return True

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

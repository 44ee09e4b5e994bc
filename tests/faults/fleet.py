"""A local fleet whose processes and links can be disturbed; half of its devices run nucleus lite."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from fedgrass.local.fleet import LocalDevice, LocalFleet
from fedgrass.protocol.names import HEARTBEAT, MODEL_DEPLOYER, TRAINER
from tests.faults.proxy import Proxy
from tests.fixtures.waiting import eventually

MODULES = {
    TRAINER: "components.trainer",
    MODEL_DEPLOYER: "components.model_deployer",
    HEARTBEAT: "components.heartbeat",
    "Stream Manager": "fedgrass.local.core_device.stream_manager",
}
_HEARTBEAT_SECONDS = 30.0  # a device that is only slow must not pass for a dead one
_TOLERANCE = "0.4"  # no honest round makes a model so much worse, on whatever processor; one that knows nothing is


class FaultyFleet(LocalFleet):
    """Every device reaches the account through proxies of its own; the second, fourth, … runs nucleus lite."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.endpoint_of: dict[str, Proxy] = {}
        self.broker_of: dict[str, Proxy] = {}
        # A child ends with the thread that started it, so that must be one that lives as long as the fleet.
        self._starter = ThreadPoolExecutor(1)

    def device_command(self, thing: str) -> list[str]:
        if thing not in self.endpoint_of:
            self.endpoint_of[thing] = Proxy(_address(self.aws.endpoint_url.removeprefix("http://")))
            self.broker_of[thing] = Proxy(_address(self.aws.mqtt))
        nucleus = "lite" if len(self.endpoint_of) % 2 == 0 else "classic"
        where = ["--endpoint-url", f"http://127.0.0.1:{self.endpoint_of[thing].port}"]
        where += ["--mqtt", f"127.0.0.1:{self.broker_of[thing].port}", "--nucleus", self._nucleus(thing, nucleus)]
        return [sys.executable, "-m", "tests.faults.core_device", *where]

    def deploy_suite(
        self,
        *,
        data: str,
        heartbeat_seconds: float,
        more: dict[str, dict[str, Any]] | None = None,
    ) -> str:
        deployer = {
            "componentVersion": "1.0.0",
            "configurationUpdate": {"merge": json.dumps({"tolerance": _TOLERANCE})},
        }
        return super().deploy_suite(
            data=data, heartbeat_seconds=_HEARTBEAT_SECONDS, more={MODEL_DEPLOYER: deployer, **(more or {})}
        )

    def nucleus_components(self) -> dict[str, dict[str, Any]]:
        return {}  # half of the devices are nucleus lite

    def _nucleus(self, thing: str, wanted: str) -> str:
        """The same one at every start of a device."""
        file = self.folder / "devices" / thing / "nucleus"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted)
        return file.read_text()

    def process(self, thing: str, name: str) -> psutil.Process | None:
        """The process of one of `MODULES` on a device."""
        folder = str(self.devices[thing].folder)
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if MODULES[name] in words and any(folder in word for word in words) and not words[0].endswith("sh"):
                return process
        return None

    def running(self, thing: str, name: str, *, other_than: int | None = None) -> psutil.Process:
        """Wait for it to run."""
        return (
            eventually(lambda: found if (found := self.process(thing, name)) and found.pid != other_than else None)
            or psutil.Process()
        )

    def kill(self, thing: str, name: str) -> None:
        """kill -9, and wait until it runs again."""
        process = self.running(thing, name)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        self.running(thing, name, other_than=process.pid)

    def kill_device(self, thing: str) -> LocalDevice:
        """kill -9 of the core device, with all that it runs, as a power cut; then start it again."""
        device = self.devices[thing]
        device.process.kill()
        device.process.wait()
        return self._starter.submit(self.start_device, thing).result()

    def drop_ipc(self, thing: str) -> None:
        os.kill(self.devices[thing].process.pid, signal.SIGUSR1)

    def stop(self) -> None:
        super().stop()
        self._starter.shutdown()
        for proxy in (*self.endpoint_of.values(), *self.broker_of.values()):
            proxy.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rstrip("/").rpartition(":")
    return host, int(port)

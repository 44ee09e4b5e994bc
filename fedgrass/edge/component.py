"""How each component of a device starts and ends.

Exit codes: 0 stopped by the nucleus; `EXIT_RELAUNCH` (75) IPC is gone for good, or a setting that needs a fresh start
changed; 78 the configuration is wrong; 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fedgrass
from fedgrass import logs
from fedgrass.edge.ipc import EXIT_RELAUNCH, GreengrassIpc, Ipc
from fedgrass.edge.loop import Loop
from fedgrass.edge.settings import EXIT_CONFIGURATION
from fedgrass.errors import ConfigurationError, FedgrassError, IpcError
from fedgrass.logs import Log


@dataclass(frozen=True)
class Device:
    """What a component works with: its place on the device, and the means to talk to the rest."""

    thing: str
    work: Path
    store: Path
    ipc: Ipc
    loop: Loop
    log: Log


class Component(Protocol):
    """A component that has started."""

    def stop(self) -> None:
        """Leave everything so that the next start can go on; must be quick."""
        ...


def main(name: str, description: str, start: Callable[[Device], Component]) -> None:
    """Run a component until the nucleus stops it; ends the process."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--work", type=Path, required=True, help="this component's work folder")
    parser.add_argument(
        "--store", type=Path, required=True, help="the model store (work folder of com.fedgrass.ModelDeployer)"
    )
    arguments = parser.parse_args()
    logs.configure()
    log = Log(name, thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    code = _run(arguments.work, arguments.store, log, start)
    log.info("stopped", exit_code=code)
    sys.stdout.flush()
    # Not sys.exit: a training thread inside the interpreter's native code must not hold the process.
    os._exit(code)


def _run(work: Path, store: Path, log: Log, start: Callable[[Device], Component]) -> int:
    loop = Loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: loop.stop())
    try:
        thing = os.environ.get("AWS_IOT_THING_NAME")
        if not thing:
            raise IpcError("AWS_IOT_THING_NAME is not set; start this as a Greengrass component")
        ipc = GreengrassIpc(log, lost=lambda: loop.stop(EXIT_RELAUNCH))
        work.mkdir(parents=True, exist_ok=True)
        component = start(Device(thing, work, store, ipc, loop, log))
        log.info("started", fedgrass=fedgrass.__version__)
        code = loop.run()
        component.stop()
        ipc.close()
    except FedgrassError as error:
        log.error(str(error), code=error.code)
        if isinstance(error, ConfigurationError):
            return EXIT_CONFIGURATION
        return EXIT_RELAUNCH if isinstance(error, IpcError) else 1
    except Exception:  # noqa: BLE001 - the last resort; the trace is in the log
        log.error("unexpected failure", trace=True)
        return 1
    return code


def version_of(component: str, file: str) -> str:
    """Version of a component, from where the nucleus unpacked ``file``; the library's version elsewhere."""
    match = re.search(rf"/{re.escape(component)}/(\d+\.\d+\.\d+[^/]*)/", file)
    return match.group(1) if match else fedgrass.__version__

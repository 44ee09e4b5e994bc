"""How each component of a device starts and ends.

Exit codes: 0 stopped by the nucleus; `EXIT_RELAUNCH` (75) Runtime's library is another, IPC is gone for good, or a setting
that needs a fresh start changed; 78 the configuration is wrong; 1 anything else.

A nucleus starts a component a few times an hour only. Once those are used up, a process that would leave with 75 starts over
in its own place instead (``execv``), and leaves the rest to the crashes that it cannot help.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fedgrass
from fedgrass import logs
from fedgrass.edge import library
from fedgrass.edge.ipc import EXIT_RELAUNCH, GreengrassIpc, Ipc
from fedgrass.edge.life import Life
from fedgrass.edge.loop import Loop
from fedgrass.edge.settings import EXIT_CONFIGURATION
from fedgrass.errors import ConfigurationError, FedgrassError, IpcError
from fedgrass.logs import Log

# Between two looks for another library; a process that ended sooner than this after its start has not begun well.
_LOOK_SECONDS = 2.0
# Upper end of the descriptors that are closed before `execv`; components use a few dozen.
_MOST_FILES = 1 << 16


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
    """Run a component until the nucleus stops it; ends the process.

    Parameters
    ----------
    name
        Module that is run, for ``--help`` and the log.
    description
        What the component does, for ``--help``.
    start
        Makes and starts the component on a device's loop.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--work", type=Path, required=True, help="this component's work folder")
    parser.add_argument(
        "--store", type=Path, required=True, help="the model store (work folder of com.fedgrass.ModelDeployer)"
    )
    arguments = parser.parse_args()
    logs.configure()
    log = Log(name, thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    # Before all that may take long: from here on the heartbeat sees this process.
    began, life = time.monotonic(), _live(arguments.work, log)
    code = _run(arguments.work, arguments.store, log, start)
    if life is not None:
        life.ends(code)
    # What could not even begin is left to the nucleus, which does not try for ever.
    began_well = time.monotonic() - began > _LOOK_SECONDS
    in_place = code == EXIT_RELAUNCH and began_well and life is not None and not life.may_leave
    log.log_event("component_restarting" if in_place else "component_stopped", exit_code=code)
    sys.stdout.flush()
    if in_place:
        # The IPC library's sockets would stay open: nucleus lite then waits for ever to write to a connection that nobody reads.
        os.closerange(3, _MOST_FILES)
        os.execv(sys.orig_argv[0], sys.orig_argv)  # noqa: S606 - the command line that started this process
    # Not sys.exit: a training thread inside the interpreter's native code must not hold the process.
    os._exit(code)


def _live(work: Path, log: Log) -> Life | None:
    """Write what the heartbeat looks at; where the disk takes no files, do without."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        return Life(work)
    except OSError as error:
        log.log_event("work_folder_not_writable", folder=str(work), reason=error.strerror)
        return None


def _run(work: Path, store: Path, log: Log, start: Callable[[Device], Component]) -> int:
    # First of all: a library that is replaced while the component starts is noticed too.
    installed = library.present()
    loop = Loop()
    # Nucleus lite knows no `shutdown` step: the signal is all the notice that there is.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: loop.stop())

    def look() -> None:
        if library.present() != installed:
            log.log_event("library_changed")
            loop.stop(EXIT_RELAUNCH)

    try:
        thing = os.environ.get("AWS_IOT_THING_NAME")
        if not thing:
            raise IpcError("AWS_IOT_THING_NAME is not set; start this as a Greengrass component")
        # Both nuclei name the work folder after the component.
        ipc = GreengrassIpc(log, component=work.name, lost=lambda: loop.stop(EXIT_RELAUNCH))
        component = start(Device(thing, work, store, ipc, loop, log))
        log.log_event("component_started", fedgrass=fedgrass.__version__)
        loop.every(lambda: _LOOK_SECONDS, look)
        code = loop.run()
        # The component first: what it hands on in its last moments still needs IPC.
        component.stop()
        ipc.close()
    except FedgrassError as error:
        log.log_event("component_failed", code=error.code, reason=str(error))
        if isinstance(error, ConfigurationError):
            return EXIT_CONFIGURATION
        # Without IPC a new process may get a new token. A wrong configuration stays wrong, hence the code of its own
        # above.
        return EXIT_RELAUNCH if isinstance(error, IpcError) else 1
    except Exception:  # noqa: BLE001 - the last resort; the trace is in the log
        log.log_event("component_crashed")
        return 1
    return code


def version_of(component: str, file: str) -> str:
    """Version of a component, from where the nucleus unpacked ``file``; the library's version elsewhere."""
    # The nucleus unpacks into `…/<component>/<version>/…`.
    match = re.search(rf"/{re.escape(component)}/(\d+\.\d+\.\d+[^/]*)/", file)
    return match.group(1) if match else fedgrass.__version__

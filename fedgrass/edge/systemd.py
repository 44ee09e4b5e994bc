"""What can be seen of nucleus lite from a component's process: its units. Nothing of it is there on the classic nucleus."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The daemon's process id, without asking systemd: cgroup v2, hybrid and v1 mount it at different places.
_GROUPS = tuple(
    Path(root) / "system.slice/ggl.core.iotcored.service/cgroup.procs"
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
)
# For `systemctl`, which hangs when systemd's bus does.
_SECONDS = 5.0
_KILLED = {"2", "3"}  # CLD_KILLED, CLD_DUMPED
OUT_OF_MEMORY = "memory"


def mqtt_daemon() -> str:
    """Return what tells one MQTT daemon of nucleus lite from the next; "" where there is none, or it cannot be seen."""
    for group in _GROUPS:
        with suppress(OSError):
            return group.read_text()
    return ""


@dataclass(frozen=True)
class Unit:
    """How a component's unit is: whether systemd has given it up, and what its process last died of, in words.

    `OUT_OF_MEMORY` is any process of it that was killed as memory ran out.
    """

    given_up: bool
    died_of: str


def unit(component: str) -> Unit | None:
    """Ask systemd about a component; None where it has no such unit.

    Nucleus lite gives a unit three starts an hour; then it stays down until the next deployment.
    """
    properties = "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus"
    try:
        shown = subprocess.run(  # noqa: S603 - the component's name is our own
            ["systemctl", "show", f"--property={properties}", f"ggl.{component}.service"],  # noqa: S607 - the host's
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_unit(shown.stdout)


def read_unit(text: str) -> Unit | None:
    """Read what ``systemctl show`` says."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    # `systemctl show` ends with 0 and prints defaults for a unit that does not exist.
    if found.get("LoadState") != "loaded":
        return None
    status = found.get("ExecMainStatus", "0")
    died_of = ""
    # The kernel killed a process of the unit, and systemd then stopped the others (OOMPolicy=stop): that of ours ended by itself.
    if found.get("Result") == "oom-kill":
        died_of = OUT_OF_MEMORY
    elif found.get("ExecMainCode") in _KILLED:
        died_of = f"signal {status}"
        with suppress(ValueError):
            died_of += f" ({signal.Signals(int(status)).name})"
    elif status != "0":
        died_of = f"exit code {status}"
    return Unit(found.get("ActiveState") == "failed", died_of)

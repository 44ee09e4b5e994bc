"""Lifecycle scripts as processes: each is a shell in a group of its own, with its output in the component's log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedgrass.local import processes
from fedgrass.local.core_device.nucleus import CLASSIC, Nucleus
from fedgrass.local.recipe import RecipeError

ROOT_MARK = "FEDGRASS_CORE_DEVICE_ROOT"
# Seconds, the classic nucleus's own; `run` has no limit.
DEFAULT_TIMEOUTS = {"install": 120.0, "startup": 120.0, "shutdown": 15.0, "recover": 60.0}
_KILL_AFTER = 5.0


@dataclass(frozen=True)
class Script:
    """What a component does in one phase of its lifecycle; ``timeout`` is in seconds, ``None`` for no limit."""

    phase: str
    command: str
    timeout: float | None
    environment: Mapping[str, str] = field(default_factory=dict)
    skip_if: str = ""

    def skipped(self) -> bool:
        """Evaluate ``skipif``: ``onpath <program>`` or ``exists <file>``."""
        kind, _, operand = self.skip_if.partition(" ")
        if kind == "onpath":
            return shutil.which(operand.strip()) is not None
        return kind == "exists" and Path(operand.strip()).exists()


def read_lifecycle(lifecycle: Mapping[str, Any], nucleus: Nucleus = CLASSIC) -> dict[str, Script]:
    """Return the scripts of an interpolated lifecycle by phase.

    Phases that exist, but not in this nucleus, are left out; it also decides whether keys may be in any case.

    Raises
    ------
    RecipeError
        Both ``run`` and ``startup``; a phase that this device lacks; or a phase without a script.
    """
    phases = {key.lower() if nucleus.keys_in_any_case else key: value for key, value in lifecycle.items()}
    common = _environment(phases.pop("setenv", None))
    if unknown := phases.keys() - CLASSIC.phases:
        known = ", ".join(sorted(CLASSIC.phases))
        raise RecipeError(f"lifecycle: this device has {known}; the recipe asks for {sorted(unknown)}")
    if "run" in phases and "startup" in phases:
        raise RecipeError("lifecycle: a recipe has either run or startup; found both, keep one")
    return {
        phase: _script(phase, value, common) for phase, value in phases.items() if value and phase in nucleus.phases
    }


class ScriptProcess:
    """A running script; ``exited`` resolves to its exit code.

    The process is left unreaped until :meth:`stop`, so that its group's id cannot become another's in between.
    """

    def __init__(self, script: Script, *, environment: Mapping[str, str], directory: Path, log: Path) -> None:
        with log.open("ab") as output:
            self._child = processes.spawn(
                ["/bin/sh", "-c", script.command],
                env={**environment, **script.environment},
                cwd=directory,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        threading.Thread(target=self._wait, args=(loop,), name=f"wait-{self._child.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, which is the group's id too."""
        return self._child.pid

    async def stop(self) -> None:
        """Ask the group to end, and insist after some seconds."""
        if not self.exited.done():
            processes.signal_group(self.pid, signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=_KILL_AFTER)
        processes.signal_group(self.pid, signal.SIGKILL)  # also what the script left behind
        await self.exited
        self._child.wait()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # WNOWAIT leaves the zombie, whose number keeps the group's from being given to others.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        status = ended.si_status if ended is not None else 0
        code = status if ended is None or ended.si_code == os.CLD_EXITED else -status
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._resolve, code)

    def _resolve(self, code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(code)


def kill_leftovers(root: Path) -> int:
    """Kill what a killed device on the same root left running, and return how many processes that was."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(ROOT_MARK) == str(root):
                process.kill()
                killed += 1
    return killed


def _script(phase: str, value: Any, common: Mapping[str, str]) -> Script:
    fields = {key.lower(): item for key, item in value.items()} if isinstance(value, Mapping) else {"script": value}
    command, timeout = fields.get("script"), fields.get("timeout", DEFAULT_TIMEOUTS.get(phase))
    if not isinstance(command, str):
        raise RecipeError(f"lifecycle: {phase} needs a script, found {command!r}")
    try:
        seconds = None if timeout is None else float(timeout)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lifecycle: the timeout of {phase} must be seconds, found {timeout!r}") from error
    environment = {**common, **_environment(fields.get("setenv"))}
    return Script(phase, command, seconds, environment, str(fields.get("skipif") or ""))


def _environment(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, Mapping) else {}

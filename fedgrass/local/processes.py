"""Child processes that never outlive their parent.

Each child leads its own process group, so that stopping it stops what it started. On Linux the kernel also ends
the child when the thread that started it dies, which covers ``kill -9`` of the parent: start children from a thread
that lives as long as the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def _die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child must not allocate

    def set_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return set_signal


def wait_until(condition: Callable[[], bool], *, seconds: float, pause: float = 0.05) -> bool:
    """Wait until a condition holds.

    Parameters
    ----------
    condition
        Called again and again.
    seconds
        How long at most.
    pause
        Seconds between two calls.

    Returns
    -------
    bool
        False if it did not hold in time.
    """
    wait = Retrying(
        retry=retry_if_result(lambda holds: not holds),
        wait=wait_fixed(pause),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda _: False,
    )
    return bool(wait(condition))


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process as the leader of a new process group that ends with this process.

    Parameters
    ----------
    argv
        The command; no shell reads it.
    env
        Its whole environment; this process's if not given.
    cwd
        Its working folder.
    stdin, stdout, stderr
        As of `subprocess.Popen`.

    Returns
    -------
    Popen
        The process.
    """
    return subprocess.Popen(  # noqa: S603 - argv lists only, never a shell string
        list(argv),
        env=dict(env) if env is not None else None,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the whole group that ``pid`` leads; a group that is gone is not an error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


class Child(Protocol):
    """What is needed of `subprocess.Popen` to end a process; another class may stand for one that is not this one's own child."""

    @property
    def pid(self) -> int:
        """Its number, which is its group's."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended; raises `subprocess.TimeoutExpired`."""


def stop(child: Child, *, grace: float = 10.0) -> int:
    """Ask the child's group to end, insist after ``grace`` seconds, and return the exit code."""
    if child.poll() is None:
        signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    signal_group(child.pid, signal.SIGKILL)  # also what the child left behind in its group
    return child.wait()

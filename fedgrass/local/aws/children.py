"""The processes that the local AWS starts: Lambda workers and Processing hosts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from fedgrass.local.processes import Child, signal_group, spawn

_OF_THE_HOST = ("PATH", "HOME", "LANG", "TMPDIR")
_OF_THE_IMAGE = ("PYTHONPATH", "FEDGRASS_EVALUATION_ENGINE", "FEDGRASS_EVALUATION_BUILDER")


def container_environment() -> dict[str, str]:
    """Return the variables of a job's container: of this process' what a host has, and what an image of one's own sets."""
    return {name: os.environ[name] for name in (*_OF_THE_HOST, *_OF_THE_IMAGE) if name in os.environ}


class Children:
    """Starts processes and ends them all.

    The kernel ends a child with the *thread* that started it, and request threads are short-lived: one thread of
    this object starts them all.
    """

    def __init__(self) -> None:
        self._starter = ThreadPoolExecutor(1, "children")
        self._running: set[Child] = set()
        self._lock = threading.Lock()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
    ) -> subprocess.Popen[bytes]:
        """Start a process that leads a group of processes, and ends with this one.

        Parameters
        ----------
        argv
            The command; no shell reads it.
        env
            Its whole environment.
        cwd
            Its working folder.
        stdin, stdout, stderr
            As of `subprocess.Popen`.

        Returns
        -------
        Popen
            The process.
        """
        starting = self._starter.submit(spawn, argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
        child = starting.result()
        self.add(child)
        return child

    def add(self, child: Child) -> None:
        """Count a process among the children that another one of them has started."""
        with self._lock:
            self._running = {one for one in self._running if one.poll() is None} | {child}

    def stop_all(self, grace: float = 0.5) -> None:
        """Ask every child to end, and insist after ``grace`` seconds in all."""
        with self._lock:
            running = [child for child in self._running if child.poll() is None]
        for child in running:
            signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            # The whole group: what the child had started would stay otherwise.
            signal_group(child.pid, signal.SIGKILL)
            child.wait()
        # Only now: the kernel kills what is left when this thread ends (PR_SET_PDEATHSIG), grace or not.
        self._starter.shutdown(wait=False)

"""Has workers forked by a process that has imported what most functions import, and stands for each of them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from fedgrass.local.aws.children import Children

_WORKER = Path(__file__).with_name("worker.py")
_KILLED = -9


class Forked:
    """A worker's process, as `subprocess.Popen` stands for one; the process that forked it tells of its end.

    Parameters
    ----------
    stdin, stdout
        This side's ends of the worker's pipes.
    status
        Where its number is read, and its exit code when it has ended.

    Raises
    ------
    OSError
        If it was not forked.
    """

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes], status: IO[bytes]) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()
        # First the number, then much later the code: the pipe ends without either if what forks was killed.
        number = status.readline()
        if not number:
            raise OSError("without a process: what forks workers has ended")
        self.pid = int(number)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended.

        Raises
        ------
        subprocess.TimeoutExpired
            If it still runs after ``timeout`` seconds.
        """
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([str(_WORKER)], timeout or 0.0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        with self._lock:
            # Once: the code comes a single time, and whoever asks later gets the one that was read.
            if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
                code = self._status.readline()
                self.returncode = int(code) if code else _KILLED  # by the kernel, with what had forked it
                self._status.close()
            return self.returncode


class ForkServer:
    """The process that forks workers: started for the first one, and again if it has ended.

    Parameters
    ----------
    children
        Starts it.
    environment
        Its whole environment; a worker gets another.
    state
        Folder for its log.
    """

    def __init__(self, children: Children, environment: Mapping[str, str], state: Path) -> None:
        self._children = children
        self._environment = environment
        self._log = state / "logs" / "lambda.log"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, *, env: Mapping[str, str], cwd: Path, stderr: IO[bytes]) -> Forked:
        """Return a worker's process, which leads a group of processes and ends with this one.

        Parameters
        ----------
        env
            Its whole environment.
        cwd
            Its working folder.
        stderr
            Its log.
        """
        line = json.dumps({"env": dict(env), "cwd": str(cwd)}).encode() + b"\n"
        with contextlib.ExitStack() as theirs:
            (stdin, writes), (reads, stdout), (said, status) = os.pipe(), os.pipe(), os.pipe()
            for end in (stdin, stdout, status):
                # Ours must go, or this side would hold the worker's pipes open and never see its end.
                theirs.callback(os.close, end)
            # One order at a time: descriptors and line travel together, and the next order waits for the answer to
            # this one.
            with self._lock:
                control = self._running()
                socket.send_fds(control, [line], [stdin, stdout, stderr.fileno(), status])
                # Before the answer is awaited: while we hold the writing end, a fork server's death would look like
                # silence.
                theirs.close()
                child = Forked(os.fdopen(writes, "wb"), os.fdopen(reads, "rb"), os.fdopen(said, "rb"))
        self._children.add(child)
        return child

    def _running(self) -> socket.socket:
        """Return where orders go; the process is started if there is none."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._control, theirs = socket.socketpair()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log.open("ab") as log:
            self._process = self._children.start(
                # The folder is for who looks at processes: a fork's environment is not to be seen from outside.
                [sys.executable, "-u", str(_WORKER), str(self._log.parent)],
                env=self._environment,
                cwd=self._log.parent,
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
            )
        return self._control

"""A component's child process, for work that may kill whoever does it: an engine's native code, or memory that runs out.

A fresh interpreter: what the component holds stays its own (the IPC library's sockets and threads, the lock of
`fedgrass.edge.life`). A script that holds nothing yet may fork it, which spares an interpreter's start and its imports. The child
is told what to do by lines on its standard input, and answers by lines on its standard output; what it prints besides goes to the
component's standard output. It ends with the component, whatever that ends of.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, cast

# Longest line of a child: reports are small, and a child gone wrong must not fill the component's memory.
MAX_LINE_BYTES = 1 << 16
EXIT_MEMORY = 71
"""Exit code of a child that was refused memory, and could still say so: EX_OSERR of sysexits.h."""

# From <linux/prctl.h>: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
# For oom_score_adj, which goes from -1000 to 1000: well above what an application has by default (0).
_FIRST_TO_BE_KILLED = 500
_STANDARD_OUTPUT = 1
_LEAVING = {signal.SIGTERM, signal.SIGINT}
# How long a child whose input was closed may take to end before it is killed.
_LEAVING_SECONDS = 5.0
# Between two looks whether a fork has ended; its answers are not waited for so.
_LOOK_SECONDS = 0.01


class Running(Protocol):
    """A child that was started."""

    def tell(self, line: bytes) -> bool:
        """Give it a line; returns whether it was taken."""
        ...

    def read(self, timeout: float) -> bytes | None:
        """Return some of what it answers; None if nothing came in time, nothing once no more can come."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...

    def died_of(self) -> str:
        """Wait for its end, and say in words what it died of; nothing if it ended well."""
        ...


class Child:
    """Starts ``python -m module arguments…``.

    Signals that ask a component to leave reach all its processes where a nucleus knows them. They are kept from the child, as
    its parent tells it when to leave. (A mask is inherited, so there is no moment in which it could be ended by one.)
    """

    def __init__(self, module: str, *arguments: str) -> None:
        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=_STANDARD_OUTPUT,
                # Unbuffered, so that `select` and `read` see the same bytes.
                bufsize=0,
            )

        self._begin(start)

    def _begin(self, start: Callable[[], subprocess.Popen[bytes] | _Fork]) -> None:
        # Counted before and after: SIGKILL alone does not say that memory was the reason.
        self._kills = _out_of_memory_kills()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEAVING)
        try:
            self._process = start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._in, self._out = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        # A child that hangs in native code does not read, and its full pipe must not block the component's loop.
        os.set_blocking(self._in.fileno(), False)
        # The rest of a line that is longer than the pipe holds (64 kB): `read` passes it on.
        self._untold = b""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def tell(self, line: bytes) -> bool:
        """Give it a line, of any length; returns whether it was taken: a child that hangs or is dead takes none.

        What the pipe does not hold yet follows as the child reads, and no other line is taken before it.
        """
        self._pass_on()
        if self._untold:
            return False
        try:
            taken = self._in.write(line)
        except OSError:
            return False
        self._untold = line[taken:] if taken else b""
        return bool(taken)

    def _pass_on(self) -> None:
        if not self._untold:
            return
        try:
            self._untold = self._untold[self._in.write(self._untold) or 0 :]
        except OSError:
            # Nobody reads any more; its end tells why.
            self._untold = b""

    def read(self, timeout: float) -> bytes | None:
        """Return some of what it answers; see `Running`. Its end counts, though a separate process may hold the pipe."""
        over = self._process.poll() is not None
        # What a dead child wrote last is read before its end counts.
        waiting = [self._in] if self._untold and not over else []
        ready, open_, _ = select.select([self._out], waiting, [], 0 if over else timeout)
        if open_:
            self._pass_on()
        if ready:
            return os.read(self._out.fileno(), MAX_LINE_BYTES)
        return b"" if over else None

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def died_of(self) -> str:
        """Wait for its end, and say in words what it died of; nothing if it ended well."""
        # The end of its input asks the child to leave.
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            code = self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._out.close()
        return _in_words(code, out_of_memory=_out_of_memory_kills() > self._kills)


class ForkedChild(Child):
    """A child that is a fork of this process: of a script that has no thread and nothing open yet that is its own.

    Parameters
    ----------
    run
        What the child does, given this process's number; it begins with `become_child`, and returns the exit code.
    """

    def __init__(self, run: Callable[[int], int]) -> None:
        self._begin(lambda: _Fork(run))


class _Fork:
    """What `Child` needs of a `subprocess.Popen`."""

    def __init__(self, run: Callable[[int], int]) -> None:
        # What is buffered here would be written by both.
        sys.stdout.flush()
        parent, (orders, ours), (theirs, answers) = os.getpid(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                # As the fresh interpreter has them; the pipes' other ends, left open, would hide the parent's.
                for source, target in ((_STANDARD_OUTPUT, 2), (orders, 0), (answers, _STANDARD_OUTPUT)):
                    os.dup2(source, target)
                for descriptor in (orders, ours, theirs, answers):
                    os.close(descriptor)
                code = run(parent)
                sys.stdout.flush()
            except SystemExit as leaving:
                code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            except BaseException:  # noqa: BLE001 - as an interpreter ends: nothing may return to the parent's code
                traceback.print_exc()
            finally:
                # Not sys.exit, for that ends what is the parent's, and unloading LiteRT takes longer than much of the rest.
                os._exit(code)
        os.close(orders)
        os.close(answers)
        self.stdin, self.stdout = os.fdopen(ours, "wb", buffering=0), os.fdopen(theirs, "rb", buffering=0)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # whoever started this process has SIGCHLD ignored: no child's end is told
                self._code = 0
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork", cast("float", timeout))
            time.sleep(_LOOK_SECONDS)
        return code

    def kill(self) -> None:
        # One that was waited for has given its number back.
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _in_words(code: int, *, out_of_memory: bool) -> str:
    # `subprocess` gives the exit code, or the signal's number negated.
    if code >= 0:
        return {0: "", EXIT_MEMORY: "as there was no more memory"}.get(code, f"with exit code {code}")
    number = -code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unnamed"
    memory = ", as the device ran out of memory" if number == signal.SIGKILL and out_of_memory else ""
    return f"by signal {number} ({name}){memory}"


def _out_of_memory_kills() -> int:
    """Return how often the kernel has killed a process for memory since the boot."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        # Since Linux 4.13; without it a kill for memory is reported as a plain SIGKILL.
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0


def become_child(parent: int) -> tuple[int, int]:
    """Be a child of the process ``parent``; returns the descriptors to read its lines from, and to answer on.

    What this process prints from here on goes where the component's own output goes. When memory runs out the kernel takes
    this process before the component and the application.
    """
    with contextlib.suppress(AttributeError, OSError):  # not Linux: the pipe that closes is left
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the line above: then no signal will come.
    if os.getppid() != parent:
        os._exit(1)
    for number in _LEAVING:
        signal.signal(number, signal.SIG_IGN)
    # A mask is inherited: the component may have been started with one.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVING)
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(max(int(score.read_text()), _FIRST_TO_BE_KILLED)))
    # Both pipes move to descriptors that no library knows of.
    orders, answers = os.dup(0), os.dup(_STANDARD_OUTPUT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    # Whatever reads standard input, an engine's debugger say, must not take an order.
    os.dup2(nothing, 0)
    os.close(nothing)
    # And what an engine prints must not be taken for a report.
    os.dup2(2, _STANDARD_OUTPUT)
    return orders, answers

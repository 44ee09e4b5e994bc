"""Runs one Lambda handler in a separate process: an event per line in, an answer per line out.

Started by path, so it uses the standard library only. It imports what most functions import, and is forked for each worker:
so a cold start takes the time of the handler's own import. A worker has the function's own environment; what its handler prints
goes to standard error, which is the function's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, TypedDict

SHARED = ("boto3", "boto3.dynamodb.types", "pydantic")
"""What a real function takes a third of a second of processor time to import."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_MOST_BYTES = 1 << 20
_DESCRIPTORS = 4


class Request(TypedDict):
    """One invocation, as `fedgrass.local.aws.functions.process` writes it."""

    event: object
    arn: str
    request_id: str
    deadline: float


class Context:
    """What a handler is told about its invocation (the Lambda developer guide, "Python context object")."""

    def __init__(self, request: Request) -> None:
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = "$LATEST"
        self.invoked_function_arn = request["arn"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.aws_request_id = request["request_id"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        self.identity = None
        self.client_context = None
        self._deadline = request["deadline"]

    def get_remaining_time_in_millis(self) -> int:
        """Return the time left before the function's timeout."""
        return max(0, int((self._deadline - time.time()) * 1000))


Handler = Callable[[object, Context], object]


def load(name: str) -> Handler:
    """Import ``module.function``, where the module may be written with slashes."""
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(module.replace("/", ".")), function)
    if not callable(found):
        raise TypeError(f"{name} is not callable")
    return found  # type: ignore[no-any-return]


def failure(error: BaseException, kind: str | None = None) -> dict[str, object]:
    """Describe an error as Lambda's Python runtime does."""
    return {
        "error": {
            "errorMessage": str(error),
            "errorType": kind or type(error).__name__,
            "stackTrace": traceback.format_tb(error.__traceback__),
        }
    }


def answer(handler: Handler, request: Request) -> dict[str, object]:
    """Invoke the handler with one event."""
    try:
        result = handler(request["event"], Context(request))
    except BaseException as error:  # noqa: BLE001 - sys.exit included: the runtime answers for its handler
        traceback.print_exc()
        return failure(error)
    try:
        return {"result": json.dumps(result)}
    except (TypeError, ValueError) as error:
        return failure(error, "Runtime.MarshalError")


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Say that the handler is loaded, then answer until the input ends."""

    def write(message: dict[str, object]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    handler: Handler | None = None
    broken: dict[str, object] = {}
    try:
        handler = load(os.environ["_HANDLER"])
    except BaseException as error:  # noqa: BLE001 - whatever the module raises on import
        traceback.print_exc()
        broken = failure(error, "Runtime.ImportModuleError" if isinstance(error, ImportError) else None)
    # A broken handler says so as well: Lambda reports a failed import as the answer to an event.
    write({"ready": handler is not None})
    for line in requests:
        request: Request = json.loads(line)
        began = time.perf_counter()
        reply = answer(handler, request) if handler else broken
        took = (time.perf_counter() - began) * 1000
        sys.stderr.write(f"REPORT RequestId: {request['request_id']} Duration: {took:.2f} ms\n")
        sys.stderr.flush()
        write(reply)


class Order(TypedDict):
    """Which worker to fork, as `fedgrass.local.aws.functions.forks` writes it."""

    env: dict[str, str]
    cwd: str


class Forks:
    """Forks a worker for each order, and says when one has ended.

    With an order come four descriptors: the worker's input, output and log, and a pipe on which its process's number is written,
    and its exit code when it has ended.

    Parameters
    ----------
    control
        Where orders come from: a line each, the next when the one before is answered.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pipes: dict[int, int] = {}
        self._deaths, wake = os.pipe()
        self._own = [self._deaths, wake]
        # The wake-up descriptor may not block, and reading must not wait when select was woken for nothing.
        for end in self._own:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # An empty handler, or Python would not write to the wake-up descriptor: SIGCHLD is ignored by default.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def serve(self) -> None:
        """Fork until there are no more orders, which ends the process; returns in each worker."""
        sources: list[socket.socket | int] = [self._control, self._deaths]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._deaths in ready:
                os.read(self._deaths, 1 << 16)
                self._tell_of_the_dead()
            if self._control in ready and self._fork():
                return

    def _fork(self) -> bool:
        """Fork once; true in the worker."""
        # The descriptors come with the first bytes; a long environment may need more than one reading.
        line, descriptors, _, _ = socket.recv_fds(self._control, _MOST_BYTES, _DESCRIPTORS)
        while line and not line.endswith(b"\n"):
            line += self._control.recv(_MOST_BYTES)
        if not line:
            sys.exit()
        order: Order = json.loads(line)
        *streams, status = descriptors
        # Taken before the fork: the child compares it, to see whether its parent died before PDEATHSIG was set.
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(order, streams, status, parent)
            return True
        # The worker has its own copies. Held here too, its pipes would never end.
        for stream in streams:
            os.close(stream)
        self._pipes[pid] = status
        os.write(status, f"{pid}\n".encode())
        return False

    def _become(self, order: Order, streams: list[int], status: int, parent: int) -> None:
        # What it inherited of the forking process: its wake-up descriptor, handler and session.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent ended between the fork and prctl: no signal will come.
        if os.getppid() != parent:
            os._exit(0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # Else the pipes of other workers would stay open for as long as this one lives.
        for descriptor in (*streams, status, *self._own, *self._pipes.values()):
            os.close(descriptor)
        self._control.close()
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])

    def _tell_of_the_dead(self) -> None:
        with contextlib.suppress(ChildProcessError):
            # Until there is none: several deaths may come as a single SIGCHLD.
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                pipe = self._pipes.pop(pid)
                with contextlib.suppress(OSError):  # whoever ordered it may be gone
                    os.write(pipe, f"{os.waitstatus_to_exitcode(status)}\n".encode())
                os.close(pipe)


def main() -> None:
    """Import what is shared, fork, and in each fork run the handler that its environment names."""
    for name in SHARED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what the forks share is not written to
    Forks(socket.socket(fileno=os.dup(0))).serve()
    # The answers' descriptor is kept from the handler: what it prints must not be taken for one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # In place of this file's own folder, whose modules a handler must not find.
    sys.path[0] = os.environ["LAMBDA_TASK_ROOT"]
    logging.getLogger().addHandler(logging.StreamHandler())  # Lambda's root logger has one too
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

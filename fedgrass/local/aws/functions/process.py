"""A Lambda function's process: kept warm, one event at a time, replaced when it fails to answer."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import selectors
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.functions.forks import Forked, ForkServer
from fedgrass.local.processes import stop

_INIT_S = (
    10.0  # Lambda's limit for a handler's import; one that takes longer begins again, within the function's timeout
)


@dataclass(frozen=True)
class Function:
    """What a worker needs to know of a function; another value means another worker."""

    name: str
    arn: str
    handler: str
    timeout: float
    memory: int
    environment: tuple[tuple[str, str], ...]
    code_sha256: str


@dataclass(frozen=True)
class Outcome:
    """A handler's answer: JSON, and ``Unhandled`` if it is an error; and what it wrote into its log meanwhile."""

    payload: bytes
    error: str | None = None
    written: bytes = b""


class Reply(TypedDict, total=False):
    """A line that the worker writes: that it is ready, or an answer."""

    ready: bool
    result: str
    error: dict[str, object]


class Worker:
    """A process that runs one function's handler, one event at a time.

    Parameters
    ----------
    function
        What to run.
    code
        Zip archive; third-party libraries come from this interpreter's own.
    state
        Folder for the log and the unpacked code, which functions of the same code share.
    forks
        Starts the process.
    environment
        Variables that every function gets.

    Raises
    ------
    ApiError
        ``InvalidZipFileException`` if ``code`` is not an archive.
    """

    def __init__(
        self, function: Function, code: bytes, state: Path, forks: ForkServer, environment: Mapping[str, str]
    ) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._log = state / "logs" / f"lambda-{function.name}.log"
        self._root = _unpacked(function.name, code, state / "functions")
        self._forks = forks
        self._environment = {
            **environment,
            "_HANDLER": function.handler,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            # A new one for each worker, as each of Lambda's sandboxes has.
            "AWS_LAMBDA_LOG_STREAM_NAME": f"{function.name}-{uuid.uuid4().hex[:8]}",
            "LAMBDA_TASK_ROOT": str(self._root),
            **dict(function.environment),
        }
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._ready = False
        self._stopped = False
        self._process = self._start()

    def invoke(self, event: bytes, request_id: str) -> Outcome | None:
        """Run the handler, in turn; start a new process if it does not answer within the function's timeout.

        Return None if the worker was stopped meanwhile: the function has another one, or is gone.
        """
        with self._lock:
            if self._stopped:
                return None
            began = self._log.stat().st_size if self._log.exists() else 0
            outcome = self._answer(event, request_id)
            return replace(outcome, written=self._written_since(began))

    def stop(self) -> None:
        """End the process when the event under way, if any, is answered."""
        with self._lock:
            self._stopped = True
            stop(self._process, grace=0.5)

    def _answer(self, event: bytes, request_id: str) -> Outcome:
        # It may have died between two events, which Lambda makes nothing of either.
        if self._process.poll() is not None:
            self._process = self._start()
        try:
            # The import has a limit apart from the event's, as Lambda's init phase has.
            if not self._ready:
                self._read(_INIT_S + self.function.timeout)
                self._ready = True
            reply = self._ask(event, request_id)
        except TimeoutError:
            message = f"RequestId: {request_id} Error: Task timed out after {self.function.timeout:.2f} seconds"
            return self._replace("Sandbox.Timedout", message)
        except OSError as error:
            return self._replace("Runtime.ExitError", f"RequestId: {request_id} Error: Runtime exited {error}")
        if "error" in reply:
            return Outcome(json.dumps(reply["error"]).encode(), "Unhandled")
        return Outcome(reply["result"].encode())

    def _written_since(self, began: int) -> bytes:
        # Whoever tidies up the logs loses the figures in them, and nothing else.
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(began)
            return log.read()
        return b""

    def _ask(self, event: bytes, request_id: str) -> Reply:
        deadline = time.time() + self.function.timeout
        # A line each way. The event is parsed and written again because a client's JSON may have line breaks.
        head = json.dumps({"request_id": request_id, "arn": self.function.arn, "deadline": deadline})
        line = f'{head[:-1]}, "event": {json.dumps(json.loads(event or b"{}"))}}}\n'
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        return self._read(self.function.timeout)

    def _read(self, timeout: float) -> Reply:
        stdout = self._process.stdout
        limit = time.monotonic() + timeout
        parts: list[bytes] = []
        # Past the file object's buffer: the selector sees the descriptor only, and bytes in the buffer would look
        # like silence.
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(0.0, limit - time.monotonic())):
                    raise TimeoutError
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    raise OSError(f"with code {self._process.wait()}")
                parts.append(part)
        reply: Reply = json.loads(b"".join(parts))
        return reply

    def _replace(self, kind: str, message: str) -> Outcome:
        stop(self._process, grace=0.1)
        self._process = self._start()
        return Outcome(json.dumps({"errorType": kind, "errorMessage": message}).encode(), "Unhandled")

    def _start(self) -> Forked:
        self._ready = False
        with self._log.open("ab") as log:
            return self._forks.fork(env=self._environment, cwd=self._root, stderr=log)


def _unpacked(name: str, code: bytes, folder: Path) -> Path:
    """Return the folder of this code: the functions of one archive compile its modules once."""
    root = folder / hashlib.sha256(code).hexdigest()[:32]
    if not root.exists():
        # Renamed when complete: a folder of this name is taken for the whole archive.
        partial = root.with_name(f"{root.name}.partial")
        try:
            with zipfile.ZipFile(io.BytesIO(code)) as archive:
                archive.extractall(partial)
        except zipfile.BadZipFile as error:
            message = f"The code of function {name} is not a zip archive: {error}."
            raise ApiError("InvalidZipFileException", message, status=502) from error
        partial.rename(root)
    return root

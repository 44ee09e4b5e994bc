"""Runs one Lambda handler in a separate process: an event per line in, an answer per line out.

Started by path with the function's own environment, so it uses the standard library only. What the handler prints
goes to standard error, which is the function's log.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import IO, TypedDict


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
    write({"ready": handler is not None})
    for line in requests:
        request: Request = json.loads(line)
        began = time.perf_counter()
        reply = answer(handler, request) if handler else broken
        took = (time.perf_counter() - began) * 1000
        sys.stderr.write(f"REPORT RequestId: {request['request_id']} Duration: {took:.2f} ms\n")
        sys.stderr.flush()
        write(reply)


if __name__ == "__main__":
    # The answers' descriptor is kept from the handler: what it prints must not be taken for one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[0] = os.environ["LAMBDA_TASK_ROOT"]
    logging.getLogger().addHandler(logging.StreamHandler())  # Lambda's root logger has one too
    serve(sys.stdin.buffer, answers)

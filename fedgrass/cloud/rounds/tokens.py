"""Answers to the state machine's waiting tasks. One that waits no longer (timed out, answered, stopped) is no error."""

from __future__ import annotations

import json
from typing import Any

from botocore.exceptions import ClientError

_GONE = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}


def succeed(step_functions: Any, token: str, output: dict[str, Any]) -> bool:
    """Let the state machine go on; returns whether it was still waiting."""
    return _answered(step_functions.send_task_success, taskToken=token, output=json.dumps(output))


def fail(step_functions: Any, token: str, *, error: str, cause: str) -> bool:
    """Fail the waiting task; returns whether it was still waiting."""
    return _answered(step_functions.send_task_failure, taskToken=token, error=error[:256], cause=cause[:32_000])


def _answered(send: Any, **arguments: Any) -> bool:
    try:
        send(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] in _GONE:
            return False
        raise
    return True

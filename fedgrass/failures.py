"""What went wrong where nobody waits: executions that opened no round, and events that functions failed at for good.

Both are asked of AWS itself, so that they are found too when no function of the fleet works.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.account import Account
from fedgrass.cloudformation import stack_output
from fedgrass.errors import RoundRefusedError
from fedgrass.polling import poll
from fedgrass.protocol import tables

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef
    from mypy_boto3_stepfunctions import SFNClient

_MOST = 10  # messages that one look at a queue brings
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class LostEvent:
    """An event that a function failed at three times, or that could not be delivered to anything."""

    at: str
    function: str
    error: str
    event: str


@dataclass(frozen=True)
class FailedExecution:
    """An execution that ended badly: its name, its status, and the reason in words."""

    name: str
    status: str
    reason: str


def in_words(cause: str | None) -> str:
    """Return the message of a function's error, which comes as JSON; any other text as it is."""
    try:
        found = json.loads(cause or "")
    except ValueError:
        return cause or "no cause was given"
    if isinstance(found, dict) and "errorMessage" in found:
        return f"{found.get('errorType', 'error')}: {found['errorMessage']}"
    return str(cause)


def last_failure(account: Account) -> FailedExecution | None:
    """Return the newest execution if it has failed, timed out or been stopped; None otherwise."""
    client = account.step_functions
    listed = client.list_executions(stateMachineArn=account.stack.state_machine_arn, maxResults=1)["executions"]
    # PENDING_REDRIVE is an execution that somebody has asked Step Functions to take up again.
    if not listed or listed[0]["status"] in {"RUNNING", "SUCCEEDED", "PENDING_REDRIVE"}:
        return None
    return _described(client, listed[0]["executionArn"])


def _described(client: SFNClient, execution: str) -> FailedExecution:
    found = client.describe_execution(executionArn=execution)
    error = f"{found['error']}: " if found.get("error") else ""
    reason = in_words(found.get("cause"))
    return FailedExecution(found["name"], found["status"], reason if reason.startswith(error) else f"{error}{reason}")


def lost_events(account: Account) -> list[LostEvent]:
    """Return up to ten of the events that functions failed at; they stay in the queue. None from a stack without one."""
    queue = stack_output(account.session, account.fleet, "Failures")
    if queue is None:
        return []
    answer = account.session.client("sqs").receive_message(
        QueueUrl=queue, MaxNumberOfMessages=_MOST, VisibilityTimeout=0, AttributeNames=["SentTimestamp"]
    )
    # With a visibility timeout of 0 one answer may hold a message twice.
    seen = {message["MessageId"]: message for message in answer.get("Messages", [])}
    return sorted((_read(message) for message in seen.values()), key=lambda event: event.at)


def _read(message: MessageTypeDef) -> LostEvent:
    sent = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(message["Attributes"]["SentTimestamp"]) / 1000))
    try:
        record = json.loads(message["Body"])
        arn = record["requestContext"]["functionArn"].split(":")
        error = in_words(json.dumps(record.get("responsePayload") or {}))
        return LostEvent(sent, arn[6], error, json.dumps(record.get("requestPayload"))[:500])
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ):  # a dead letter of EventBridge is the event itself
        return LostEvent(sent, "EventBridge", "the event could not be delivered", message["Body"][:500])


def require_begun(
    account: Account,
    execution: str,
    *,
    patience: float = _PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until an execution that was just started has opened its round.

    Parameters
    ----------
    account
        The fleet's account.
    execution
        ARN of the execution.
    patience
        Seconds to wait at most.
    clock
        Seconds that only go up.
    sleep
        Waits so many seconds.

    Returns
    -------
    bool
        False if it takes longer than that.

    Raises
    ------
    RoundRefusedError
        If it ended without one: the round was refused, or the fleet's functions do not work. The message has the reason.
    """
    client, until = account.step_functions, clock() + patience

    def begun() -> bool:
        # The lock, not the execution's history: it is what a round that opened leaves, and reading it is cheap.
        lock = tables.load_state(account.rounds_table, account.fleet).open
        if lock is not None and lock.execution == execution:
            return True
        status = client.describe_execution(executionArn=execution)["status"]
        if status == "SUCCEEDED":
            return True
        if status != "RUNNING":
            failed = _described(client, execution)
            raise RoundRefusedError(f"no round was opened, the execution ended as {status}: {failed.reason}")
        return False

    return poll(begun, bool, until=lambda: until, pause=0.3, sleep=sleep, clock=clock)

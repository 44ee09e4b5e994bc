"""Answers to the state machine's waiting tasks. One that waits no longer (timed out, answered, stopped) is not an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from pydantic import BaseModel

from fedgrass.cloud.rounds.changes import change_round
from fedgrass.cloud.rounds.services import Services
from fedgrass.errors import RecordError
from fedgrass.protocol.names import RoundNumber
from fedgrass.protocol.records import RoundRecord

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

# InvalidToken, too: an execution that was stopped long ago has tokens that Step Functions no longer knows.
_GONE = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}


class TokenRequest(BaseModel, defer_build=True):
    """What the state machine passes to a task that waits; ``larger`` if the round's job ran out of memory before."""

    round: RoundNumber
    token: str
    larger: bool = False


def keep_token(services: Services, request: TokenRequest, *, phase: str, name: str, otherwise: str) -> RoundRecord:
    """Keep the token of a task that waits in the round's record, for whoever finds that the waiting is over.

    Parameters
    ----------
    phase
        Phase that the round must be in.
    name
        Attribute of the record that holds the token.
    otherwise
        What is said of a round in another phase.

    Returns
    -------
    RoundRecord
        The record with the token. The caller looks at once whether the waiting is over: token and counts are in one item, so
        whichever is written last sees the other.

    Raises
    ------
    RecordError
        If the round is in another phase.
    """
    record = change_round(
        services.rounds,
        services.fleet,
        request.round,
        # The condition: a round that was cancelled meanwhile must not get a token that nobody would answer.
        put={name: request.token},
        condition="#phase = :phase",
        values={":phase": phase},
    )
    if record is None:
        raise RecordError(f"round {request.round} of fleet {services.fleet!r} {otherwise}")
    return record


def succeed(step_functions: SFNClient, token: str, output: Mapping[str, object]) -> bool:
    """Let the state machine go on; returns whether it was still waiting.

    Parameters
    ----------
    step_functions
        The boto3 client.
    token
        The waiting task's.
    output
        What the state machine goes on with; JSON.

    Returns
    -------
    bool
        Whether the task was still waiting.
    """
    return _answered(step_functions.send_task_success, taskToken=token, output=json.dumps(output))


def fail(step_functions: SFNClient, token: str, *, error: str, cause: str) -> bool:
    """Fail the waiting task; returns whether it was still waiting.

    Parameters
    ----------
    step_functions
        The boto3 client.
    token
        The waiting task's.
    error
        Name that the state machine catches; cut to 256 characters, Step Functions' bound.
    cause
        The reason in words; cut to 32,000 characters.

    Returns
    -------
    bool
        Whether the task was still waiting.
    """
    return _answered(step_functions.send_task_failure, taskToken=token, error=error[:256], cause=cause[:32_000])


def _answered(send: Callable[..., object], **arguments: object) -> bool:
    try:
        send(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] in _GONE:
            return False
        raise
    return True

"""Step Functions: moto interprets the state machines; this repairs how executions are named and stopped."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING

import boto3
from moto.core.responses import EmptyResult
from moto.stepfunctions.parser.asl.eval.environment import Environment
from moto.stepfunctions.parser.asl.eval.program_state import ProgramStopped
from moto.stepfunctions.parser.asl.utils import boto_client
from moto.stepfunctions.parser.backend.execution import BaseExecutionWorkerCommunication, Execution
from moto.stepfunctions.parser.models import stepfunctions_parser_backends
from moto.stepfunctions.responses import StepFunctionResponse
from werkzeug import Request, Response

from fedgrass.local.aws.account import ACCOUNT, REGION, Keys
from fedgrass.local.aws.api import json_response
from fedgrass.local.aws.events import Emit
from fedgrass.local.aws.overrides import override

if TYPE_CHECKING:
    from moto.stepfunctions.parser.api import ExecutionFailedEventDetails
    from mypy_boto3_stepfunctions import SFNClient


def layer(request: Request) -> Response | None:
    """Answer StopExecution and complete StartExecution; the rest is moto's."""
    match request.headers.get("X-Amz-Target"):
        case "AWSStepFunctions.StartExecution":
            _name_execution(request)
        case "AWSStepFunctions.StopExecution":
            return _stop_execution(request)
    return None


def repair(emit: Emit, keys: Keys) -> None:
    """Make moto's interpreter report how executions end as the service does.

    A stopped execution stays stopped when the task that was under way then fails; each start and end is an event; a task
    that is failed by its token keeps the cause. What it asks of other services it signs with the account's own keys.
    """
    signed = {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
    # moto's interpreter signs with made-up keys, which the endpoint refuses.
    override(boto_client, "boto3", SimpleNamespace(client=lambda **options: boto3.client(**{**options, **signed})))
    set_error = Environment.set_error
    run, terminated = Execution.start, BaseExecutionWorkerCommunication.terminated

    def set_error_unless_stopped(environment: Environment, error: ExecutionFailedEventDetails) -> None:
        # The interrupted task fails a moment after the stop: its error would turn an aborted execution into a failed
        # one.
        if not isinstance(environment._program_state, ProgramStopped):
            set_error(environment, error)

    def start_and_tell(execution: Execution) -> None:
        # The start itself may be refused; only one that was made is told.
        run(execution)
        _tell(emit, execution, "RUNNING")

    def terminate_and_tell(communication: BaseExecutionWorkerCommunication) -> None:
        terminated(communication)
        _tell(emit, communication.execution, _status(communication.execution))

    def fail_with_cause(response: StepFunctionResponse) -> EmptyResult:
        # moto drops the cause on the way from the request to its backend.
        given = {name: response._get_param(name) for name in ("error", "cause")}
        response.stepfunction_backend.send_task_failure(response._get_param("taskToken"), **given)
        return EmptyResult()

    override(StepFunctionResponse, "send_task_failure", fail_with_cause)
    override(Environment, "set_error", set_error_unless_stopped)
    override(Execution, "start", start_and_tell)
    override(BaseExecutionWorkerCommunication, "terminated", terminate_and_tell)


def _status(execution: Execution) -> str:
    return "" if execution.exec_status is None else str(execution.exec_status.value)


def _tell(emit: Emit, execution: Execution, status: str) -> None:
    """Send "Step Functions Execution Status Change", with the fields that the developer guide shows."""
    stopped = execution.stop_date
    detail = {
        "executionArn": execution.exec_arn,
        "stateMachineArn": execution.state_machine.arn,
        "name": execution.name,
        "status": status,
        "startDate": int(execution.start_date.timestamp() * 1000),
        "stopDate": int(stopped.timestamp() * 1000) if stopped else None,
        "input": json.dumps(execution.input_data),
        "output": json.dumps(execution.output) if status == "SUCCEEDED" else None,
        "error": execution.error,
        "cause": execution.cause,
    }
    emit("aws.states", "Step Functions Execution Status Change", [execution.exec_arn], detail)


def starter(step_functions: SFNClient) -> Callable[[str, bytes], None]:
    """Return a function that starts an execution of a state machine, given its ARN and the input."""

    def start(machine_arn: str, execution_input: bytes) -> None:
        step_functions.start_execution(stateMachineArn=machine_arn, input=execution_input.decode())

    return start


def _name_execution(request: Request) -> None:
    """Give an unnamed execution a name, as the service does: moto calls each ``None`` and refuses the second."""
    body = json.loads(request.get_data())
    if not body.get("name"):
        body["name"] = str(uuid.uuid4())
    data = json.dumps(body).encode()
    request.environ["wsgi.input"] = io.BytesIO(data)
    # The body is longer now; moto reads as many bytes as this says.
    request.environ["CONTENT_LENGTH"] = str(len(data))


def _stop_execution(request: Request) -> Response | None:
    """Abort an execution at once: moto would wait for the task under way, for hours if it waits for a token."""
    data = request.get_data()
    request.environ["wsgi.input"] = io.BytesIO(data)
    body = json.loads(data)
    execution = _find(body.get("executionArn", ""))
    if execution is None or execution.exec_worker is None or execution.exec_worker.env is None:
        return None
    environment = execution.exec_worker.env
    if environment.is_running():
        execution.error, execution.cause = body.get("error"), body.get("cause")
        now = datetime.now(timezone.utc)
        environment.set_stop(stop_date=now, error=execution.error or "", cause=execution.cause or "")
        # A task that waits for a token would hold the execution open until its own timeout.
        for endpoint in list(environment.callback_pool_manager._pool.values()):
            endpoint.interrupt_all()
    return json_response({"stopDate": time.time()}, content_type="application/x-amz-json-1.0")


def _find(execution_arn: str) -> Execution | None:
    machines = stepfunctions_parser_backends[ACCOUNT][REGION].state_machines
    every = (one for machine in machines for one in machine.executions)
    found: object = next((one for one in every if one.execution_arn == execution_arn), None)
    return found if isinstance(found, Execution) else None

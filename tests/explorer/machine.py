"""The repository's state machine, interpreted: what Step Functions does with its definition, one event after the other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.explorer.dynamo import exceptions, refusal
from tests.explorer.scheduler import Scheduler, Task, Timer

DEFINITION = json.loads((Path(__file__).parents[2] / "cloud/state_machine.asl.json").read_text())
_CRASHED = "Sandbox.Timedout"

Invoke = Callable[[str, dict[str, Any], Callable[[Any, BaseException | None], None]], Task]


class Execution:
    """One execution: its state, its pending task, its attempts."""

    def __init__(self, machine: Machine, arn: str, given: dict[str, Any]) -> None:
        self._machine = machine
        self.arn = arn
        self.input = given
        self.status = "RUNNING"
        self.state = ""
        self.data: Any = copy.deepcopy(given)
        self.output: Any = None
        self.error: str | None = None
        self.cause: str | None = None
        self._visit = 0
        self._attempts: dict[int, int] = {}
        self._timer: Timer | None = None
        self.token: str | None = None

    def begin(self) -> None:
        self._enter(DEFINITION["StartAt"])

    def stop(self, cause: str = "by hand") -> None:
        """StopExecution: what runs goes on running, and nobody hears of it."""
        if self.status == "RUNNING":
            self._end("ABORTED", "Cancelled", cause)

    def time_out(self) -> bool:
        """Let the time of the task run out, if it has any."""
        state = DEFINITION["States"].get(self.state, {})
        if self.status != "RUNNING" or "TimeoutSecondsPath" not in state:
            return False
        self._failed("States.Timeout", "")
        return True

    def answer(self, output: Any) -> None:
        self._succeeded(output)

    def fail(self, error: str, cause: str) -> None:
        self._failed(error, cause)

    def _enter(self, name: str) -> None:
        self.state = name
        state = DEFINITION["States"][name]
        kind = state["Type"]
        self._attempts = {}
        if kind == "Pass":
            if "Result" in state:
                self.data = copy.deepcopy(state["Result"])
            if "Parameters" in state:
                self.data = self._filled(state["Parameters"], self.data)
            self._leave(state)
        elif kind == "Choice":
            self._enter(self._chosen(state))
        elif kind == "Fail":
            self._end("FAILED", _at(self.data, state["ErrorPath"]), _at(self.data, state["CausePath"]))
        elif kind == "Task":
            self._attempt(state)
        else:
            raise NotImplementedError(kind)

    def _attempt(self, state: dict[str, Any]) -> None:
        self._visit += 1
        visit = self._visit
        waits = state["Resource"].endswith(".waitForTaskToken")
        self.token = f"{self.arn}/{visit}" if waits else None
        self._machine.tokens.update({self.token: (self, visit)} if self.token else {})
        payload = self._filled(state["Parameters"]["Payload"], self.data)
        if "TimeoutSecondsPath" in state:
            seconds = float(_at(self.data, state["TimeoutSecondsPath"]))
            self._timer = self._machine.scheduler.later(seconds, lambda: self._overdue(visit))

        def done(result: Any, error: BaseException | None) -> None:
            if visit != self._visit or self.status != "RUNNING":
                return
            if error is not None:
                name, cause = _as_lambda_tells(error)
                self._failed(name, cause)
            elif not waits:
                self._succeeded({"Payload": json.loads(json.dumps(result))})

        self._machine.invoke(state["Parameters"]["FunctionName"].strip("${}"), payload, done)

    def _overdue(self, visit: int) -> None:
        if visit == self._visit and self.status == "RUNNING":
            self._failed("States.Timeout", "")

    def _succeeded(self, output: Any) -> None:
        state = DEFINITION["States"][self.state]
        if "ResultSelector" in state:
            output = self._filled(state["ResultSelector"], output)
        path = state.get("ResultPath", "$")
        if path == "$":
            self.data = output
        elif path is not None:
            self.data = {**self.data, path.removeprefix("$."): output}
        if "OutputPath" in state:
            self.data = _at(self.data, state["OutputPath"])
        self._leave(state)

    def _failed(self, error: str, cause: str) -> None:
        state = DEFINITION["States"][self.state]
        self._over()
        for number, retrier in enumerate(state.get("Retry", ())):
            if not _matches(error, retrier["ErrorEquals"]):
                continue
            done = self._attempts.get(number, 0)
            if done < retrier["MaxAttempts"]:
                self._attempts[number] = done + 1
                wait = retrier["IntervalSeconds"] * retrier["BackoffRate"] ** done
                self._timer = self._machine.scheduler.later(wait, partial(self._again, self._visit, state))
                return
        for catcher in state.get("Catch", ()):
            if _matches(error, catcher["ErrorEquals"]):
                name = catcher["ResultPath"].removeprefix("$.")
                self.data = {**self.data, name: {"Error": error, "Cause": cause}}
                self._enter(catcher["Next"])
                return
        self._end("FAILED", error, cause)

    def _again(self, visit: int, state: dict[str, Any]) -> None:
        if visit == self._visit and self.status == "RUNNING":
            self._attempt(state)

    def _over(self) -> None:
        """What was pending is heard no more."""
        self._visit += 1
        self.token = None
        if self._timer is not None:
            self._timer.live = False

    def _leave(self, state: dict[str, Any]) -> None:
        self._over()
        if state.get("End"):
            self.output = self.data
            self._end("SUCCEEDED")
        else:
            self._enter(state["Next"])

    def _end(self, status: str, error: str | None = None, cause: str | None = None) -> None:
        self._over()
        self.status, self.error, self.cause = status, error, cause
        self._machine.ended(self)

    def _chosen(self, state: dict[str, Any]) -> str:
        for choice in state["Choices"]:
            if "IsPresent" in choice:
                if choice["Variable"].removeprefix("$.") in self.data:
                    return str(choice["Next"])
                continue
            value = _at(self.data, choice["Variable"])
            [wanted] = [choice[name] for name in ("StringEquals", "BooleanEquals") if name in choice]
            if value == wanted:
                return str(choice["Next"])
        return str(state["Default"])

    def _filled(self, template: dict[str, Any], data: Any) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        for name, value in template.items():
            if not name.endswith(".$"):
                filled[name] = self._filled(value, data) if isinstance(value, dict) else value
            elif value.startswith("$$."):
                context = {"$$.Execution.Id": self.arn, "$$.Execution.Input": self.input, "$$.Task.Token": self.token}
                filled[name.removesuffix(".$")] = context[value]
            else:
                filled[name.removesuffix(".$")] = _at(data, value)
        return filled


class Machine:
    """Step Functions with one state machine."""

    def __init__(self, scheduler: Scheduler, invoke: Invoke, ended: Callable[[Execution], None]) -> None:
        self.scheduler = scheduler
        self.invoke = invoke
        self.ended = ended
        self.executions: dict[str, Execution] = {}
        self.tokens: dict[str, tuple[Execution, int]] = {}
        self.exceptions = SimpleNamespace(ExecutionDoesNotExist=exceptions().ClientError)

    def start(self, name: str, given: dict[str, Any]) -> Execution:
        arn = f"arn:aws:states:us-east-1:123456789012:execution:fedgrass-mill-round:{name}"
        execution = self.executions[arn] = Execution(self, arn, given)
        execution.begin()
        return execution

    # What boto3's client is asked.

    def describe_execution(self, *, executionArn: str) -> dict[str, str]:  # noqa: N803 - boto3's names
        if executionArn not in self.executions:
            raise refusal("ExecutionDoesNotExist")
        found = self.executions[executionArn]
        return {"status": found.status, "input": json.dumps(found.input), "output": json.dumps(found.output)}

    def start_execution(self, *, stateMachineArn: str, input: str, name: str = "") -> dict[str, str]:  # noqa: A002, N803
        """A name is taken once; asked for again while it runs, with the same input, it is the one that runs."""
        name = name or f"unnamed-{len(self.executions)}"
        arn = f"{stateMachineArn.replace(':stateMachine:', ':execution:')}:{name}"
        before = self.executions.get(arn)
        if before is None:
            self.start(name, json.loads(input))
        elif before.status != "RUNNING" or before.input != json.loads(input):
            raise refusal("ExecutionAlreadyExists")
        return {"executionArn": arn}

    def send_task_success(self, *, taskToken: str, output: str) -> None:  # noqa: N803
        self._waiting(taskToken).answer(json.loads(output))

    def send_task_failure(self, *, taskToken: str, error: str, cause: str) -> None:  # noqa: N803
        self._waiting(taskToken).fail(error, cause)

    def stop_execution(self, *, executionArn: str, error: str = "", cause: str = "") -> None:  # noqa: N803
        self.executions[executionArn].stop(cause or error)

    def _waiting(self, token: str) -> Execution:
        execution, _ = self.tokens[token]
        if execution.token != token or execution.status != "RUNNING":
            raise refusal("TaskTimedOut")
        return execution


def _at(data: Any, path: str) -> Any:
    for name in path.removeprefix("$").strip(".").split("."):
        data = data[name] if name else data
    return data


def _matches(error: str, names: list[str]) -> bool:
    everything = "States.ALL" in names
    return error in names or everything or (error != "States.Timeout" and "States.TaskFailed" in names)


def _as_lambda_tells(error: BaseException) -> tuple[str, str]:
    """The name is that of the exception's class, and nothing of its bases."""
    if not isinstance(error, Exception):
        return _CRASHED, "the function ended"
    name = type(error).__name__
    return name, json.dumps({"errorMessage": str(error), "errorType": name})

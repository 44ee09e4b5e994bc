"""Lambda's Invoke: real handlers of the functions that moto stores, each in a warm process of its own."""

from __future__ import annotations

import base64
import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.children import Children
from fedgrass.local.aws.functions.forks import ForkServer
from fedgrass.local.aws.functions.process import Function, Outcome, Worker
from fedgrass.local.aws.rest_json import RestJsonService, blob
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_lambda.type_defs import InvocationRequestTypeDef

_RETRY_DELAYS_S = (1.0, 2.0)  # Lambda retries an asynchronous event twice, after one and two minutes
# Bytes of an event, Lambda's own limit.
_MAX_PAYLOAD = 6 * 1024 * 1024


class LambdaRuntime:
    """Invoke, as a `Layer` and for the other services.

    Parameters
    ----------
    functions
        Every function there is at this moment, with its code as a zip archive.
    state
        Folder for logs and unpacked code.
    children
        Starts the workers.
    environment
        Variables that every function gets, such as the endpoint's.
    lost
        Told of an event that a function failed at for good: the function's name, and the record that goes to its failure
        destination.
    told
        Told of each event that a function was at: the function's name, and what came of it.
    """

    def __init__(
        self,
        *,
        functions: Callable[[], Mapping[str, tuple[Function, bytes]]],
        state: Path,
        children: Children,
        environment: Mapping[str, str],
        lost: Callable[[str, Mapping[str, object]], None] = lambda _name, _record: None,
        told: Callable[[str, Outcome], None] = lambda _name, _outcome: None,
    ) -> None:
        self._lost = lost
        self._told = told
        self._functions = functions
        self._state = state
        # Nothing else of this process's variables: a function that needs one has to fail here as it does on Lambda.
        host = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        self._forks = ForkServer(children, host, state)
        self._environment = {**host, **environment}
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._events = ThreadPoolExecutor(8, "lambda-events")
        self.layer = RestJsonService("lambda", {"Invoke": self._invoke})

    def refresh(self) -> None:
        """End the workers of deleted functions; one starts with its function's first event."""
        if not self._stopping.is_set():
            self._events.submit(self._refresh)

    def invoke(self, name_or_arn: str, event: bytes) -> Outcome:
        """Invoke a function and wait for its answer.

        Raises
        ------
        ApiError
            ``ResourceNotFoundException`` if there is no such function.
        """
        outcome = None
        # The worker may be replaced between being found and being asked; its successor takes the event.
        while outcome is None:
            outcome = self._worker(_name(name_or_arn)).invoke(event, str(uuid.uuid4()))
        self._told(_name(name_or_arn), outcome)
        return outcome

    def send(self, name_or_arn: str, event: bytes) -> None:
        """Invoke a function asynchronously, as Lambda does for events: on an error, twice more.

        Raises
        ------
        ApiError
            ``ResourceNotFoundException`` if there is no such function.
        """
        name = _name(name_or_arn)
        # At once, while the caller can still be told: afterwards an event is only dropped.
        self._find(name)
        self._events.submit(self._deliver, name, event)

    def stop(self) -> None:
        """Take no more events; the workers end with the other children."""
        self._stopping.set()
        self._events.shutdown(wait=False, cancel_futures=True)

    def _invoke(self, parameters: InvocationRequestTypeDef) -> dict[str, object]:
        payload = blob(parameters.get("Payload") or b"{}")
        if len(payload) > _MAX_PAYLOAD:
            raise ApiError("RequestTooLargeException", f"The event has {len(payload)} bytes.", status=413)
        try:
            json.loads(payload)
        except ValueError as error:
            raise ApiError("InvalidRequestContentException", f"The event is not JSON: {error}.") from error
        kind = parameters.get("InvocationType") or "RequestResponse"
        if kind == "Event":
            self.send(parameters["FunctionName"], payload)
            return {"StatusCode": 202}
        if kind == "DryRun":
            self._find(_name(parameters["FunctionName"]))
            return {"StatusCode": 204}
        outcome = self.invoke(parameters["FunctionName"], payload)
        answer = {
            "StatusCode": 200,
            "Payload": outcome.payload,
            "FunctionError": outcome.error,
            "ExecutedVersion": "$LATEST",
        }
        if parameters.get("LogType") == "Tail":
            answer["LogResult"] = base64.b64encode(self._log_tail(_name(parameters["FunctionName"]))).decode()
        return answer

    def _deliver(self, name: str, event: bytes) -> None:
        # None marks the last of three tries.
        for delay in (*_RETRY_DELAYS_S, None):
            try:
                outcome = self.invoke(name, event)
            except ApiError as error:  # deleted meanwhile
                log_event("function_event_dropped", function=name, reason=str(error))
                return
            if outcome.error is None:
                return
            log_event("function_event_failed", function=name, answer=outcome.payload[:500])
            if delay is None:
                self._lost(name, _record(self._find(name)[0].arn, event, outcome))
            elif self._stopping.wait(delay):
                return

    def _refresh(self) -> None:
        functions = self._functions()
        with self._lock:
            gone = [self._workers.pop(name) for name in list(self._workers) if name not in functions]
        for worker in gone:
            worker.stop()

    def _worker(self, name: str) -> Worker:
        function, code = self._find(name)
        with self._lock:
            worker = self._workers.get(name)
            if worker is not None and worker.function == function:
                return worker
            self._workers[name] = Worker(function, code, self._state, self._forks, self._environment)
        if worker is not None:
            # In the background: it waits for the event that the old code is busy with.
            self._events.submit(worker.stop)
        return self._workers[name]

    def _find(self, name: str) -> tuple[Function, bytes]:
        found = self._functions().get(name)
        if found is None:
            raise ApiError("ResourceNotFoundException", f"Function not found: {name}", status=404, Type="User")
        return found

    def _log_tail(self, name: str) -> bytes:
        return (self._state / "logs" / f"lambda-{name}.log").read_bytes()[-4096:]


def _record(arn: str, event: bytes, outcome: Outcome) -> dict[str, object]:
    """Return what Lambda tells a failure destination.

    https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
    """
    return {
        "version": "1.0",
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "requestContext": {
            "requestId": str(uuid.uuid4()),
            "functionArn": f"{arn}:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": len(_RETRY_DELAYS_S) + 1,
        },
        "requestPayload": json.loads(event),
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": outcome.error},
        "responsePayload": json.loads(outcome.payload),
    }


def _name(name_or_arn: str) -> str:
    """Return the function's name from a name, a partial ARN or an ARN, with or without a version."""
    # arn:aws:lambda:REGION:ACCOUNT:function:NAME:VERSION, or ACCOUNT:function:NAME.
    parts = name_or_arn.split(":")
    if "function" in parts:
        return parts[parts.index("function") + 1]
    return parts[0]

"""What a busy account answers now and then, and moto never does: throttling, transactions that meet, deletions that lag.

Off unless asked for (``--busy``, ``--lag``). Which requests are met is a matter of the seed alone, for the order in which they
come. https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html (transaction conflicts)
"""

from __future__ import annotations

import io
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote

from werkzeug import Request, Response

from fedgrass.local.aws.api import ApiError

_IN_A_ROW = 2
"""How often the same operation is refused before it gets through: fewer than any SDK tries."""
_SINGLE_WRITES = {"PutItem", "UpdateItem", "DeleteItem"}
_THROTTLED = {"iot", "greengrass", "sagemaker", "states", "lambda", "events", "logs"}
_SLOW_DOWN = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    "<Message>Please reduce your request rate.</Message></Error>"
)


class Contention:
    """Refuses a share of the requests, as a service does whose quota is used up.

    Parameters
    ----------
    share
        Of the requests, from 0 (none) to below 1.
    """

    def __init__(self, share: float, *, seed: int = 0) -> None:
        self._share = share
        self._random = random.Random(seed)  # noqa: S311 - keeps no secret
        self._random_repeats = random.Random(seed)  # noqa: S311 - apart, so that repeats do not change who is refused
        self._lock = threading.Lock()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()

    def refusal(self, service: str, request: Request) -> Response | None:
        """Return the answer to a request that meets others, and None to one that gets through."""
        # JSON services name the operation in this header, REST services by method and path.
        operation = (request.headers.get("X-Amz-Target") or f"{request.method} {request.path}").rpartition(".")[2]
        if self._share == 0 or not self._meets(service, operation):
            return None
        if service == "dynamodb":
            return _dynamodb(operation, request)
        if service == "s3":
            return Response(_SLOW_DOWN, status=503, content_type="application/xml")
        if service in _THROTTLED:
            return ApiError(
                "ThrottlingException", "Rate exceeded", status=429 if service == "lambda" else 400
            ).response()
        return None

    def repeats(self) -> bool:
        """Whether a service delivers a second time what it promises to deliver at least once."""
        return self._random_repeats.random() < self._share

    def _meets(self, service: str, operation: str) -> bool:
        # One draw a request, in the order in which they come: with the same order a seed refuses the same ones.
        with self._lock:
            met = self._random.random() < self._share and self._in_a_row[service, operation] < _IN_A_ROW
            self._in_a_row[service, operation] = self._in_a_row[service, operation] + 1 if met else 0
            self.refused[service] += met
            return met


def _dynamodb(operation: str, request: Request) -> Response:
    if operation == "TransactWriteItems":
        actions = (request.get_json(force=True, silent=True) or {}).get("TransactItems", [])
        conflict = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
        # A reason for each action, in the transaction's order; DynamoDB says "None" of those that were not at fault.
        reasons = [conflict, *({"Code": "None"} for _ in actions[1:])]
        return ApiError(
            "TransactionCanceledException",
            "Transaction cancelled, please refer cancellation reasons for specific reasons "
            f"[{', '.join(reason['Code'] for reason in reasons)}]",
            CancellationReasons=reasons,
        ).response()
    if operation in _SINGLE_WRITES:
        return ApiError("TransactionConflictException", "Transaction is ongoing for the item").response()
    return ApiError("ThrottlingException", "Throughput exceeds the current capacity").response()


class Lag:
    """IoT Core's deletions: what was detached is still held for some seconds, and a deletion refused meanwhile.

    Parameters
    ----------
    seconds
        For which a policy, a thing or a certificate counts as attached after it was detached.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: dict[str, float] = {}

    def layer(self, request: Request) -> Response | None:
        """Refuse a deletion that comes too early, and note what is detached; the rest is moto's."""
        if self._seconds == 0:
            return None
        for method, pattern, names in _DETACHING:
            if request.method == method and (found := re.fullmatch(pattern, request.path)):
                for name in names(found, request):
                    self._until[name] = self._clock() + self._seconds
                return None
        for pattern, kind, error in _DELETING:
            if request.method == "DELETE" and (found := re.fullmatch(pattern, request.path)):
                name = f"{kind}/{unquote(found[1])}"
                if self._clock() < self._until.get(name, 0.0):
                    return ApiError(
                        error, f"{name}: it is still attached to something", status=409 if "Conflict" in error else 400
                    ).response()
        return None


def _target(request: Request) -> str:
    body = request.get_data()
    request.environ["wsgi.input"] = io.BytesIO(body)  # moto reads it after us
    try:
        return str(json.loads(body).get("target", ""))
    except (ValueError, AttributeError):
        return ""


def _certificate(arn: str) -> str:
    return f"certificate/{arn.rpartition('/')[2]}"


_Names = Callable[[re.Match[str], Request], list[str]]
_DETACHING: list[tuple[str, str, _Names]] = [
    (
        "POST",
        r"/target-policies/([^/]+)",
        lambda found, request: [
            f"policy/{unquote(found[1])}",
            _certificate(_target(request)),
        ],
    ),
    (
        "DELETE",
        r"/things/([^/]+)/principals",
        lambda found, request: [
            f"thing/{unquote(found[1])}",
            _certificate(request.headers.get("x-amzn-principal", "")),
        ],
    ),
]
_DELETING = [
    (r"/policies/([^/]+)", "policy", "DeleteConflictException"),
    (r"/things/([^/]+)", "thing", "InvalidRequestException"),
    (r"/certificates/([^/]+)", "certificate", "DeleteConflictException"),
]

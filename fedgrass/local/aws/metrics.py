"""What the account's services tell CloudWatch, as far as the stack's alarms look at it; moto's own tell nothing.

Figures that functions write as log lines (the embedded metric format), failed functions, executions and deliveries, and how many
messages wait in queues. As the service does, it keeps one entry for each minute of a metric.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from moto.cloudwatch.models import CloudWatchBackend, MetricAggregatedDatum, cloudwatch_backends
from moto.events.models import Rule
from moto.sqs.models import sqs_backends
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.events import Emit
from fedgrass.local.aws.overrides import override
from fedgrass.logs import log_event

_KEPT = timedelta(days=15)
"""For as long the service keeps what it has by the minute."""
_EXECUTIONS = {"FAILED": "ExecutionsFailed", "TIMED_OUT": "ExecutionsTimedOut"}


class _Model(BaseModel):
    model_config = ConfigDict(defer_build=True)


class _Metric(_Model):
    name: str = Field(alias="Name")
    unit: str = Field(default="None", alias="Unit")


class _Directive(_Model):
    namespace: str = Field(alias="Namespace")
    dimensions: list[list[str]] = Field(alias="Dimensions")
    metrics: list[_Metric] = Field(alias="Metrics")


class _Metadata(_Model):
    timestamp: int = Field(alias="Timestamp", ge=0, le=10**14)
    directives: list[_Directive] = Field(alias="CloudWatchMetrics")


def repair(now: Callable[[], datetime]) -> None:
    """Have moto take figures that come without a time for ones of the account's present."""
    put_metric_data = CloudWatchBackend.put_metric_data

    def put_with_time(backend: CloudWatchBackend, namespace: str, metric_data: list[dict[str, Any]]) -> None:
        put_metric_data(backend, namespace, [{"Timestamp": naive(now()), **figure} for figure in metric_data])

    override(CloudWatchBackend, "put_metric_data", put_with_time)


def naive(time: datetime) -> datetime:
    """Return a time in UTC as moto has most of them, without a time zone; one without is one already."""
    return time if time.tzinfo is None else time.astimezone(timezone.utc).replace(tzinfo=None)


class Metrics:
    """Adds figures to those that moto keeps.

    Parameters
    ----------
    now
        The account's time.
    shown
        The account's time at a moment of the machine's, by which functions stamp their figures.
    """

    def __init__(self, *, now: Callable[[], datetime], shown: Callable[[datetime], datetime]) -> None:
        self._now = now
        self._shown = shown
        self._lock = threading.Lock()
        # The newest entry of each metric.
        self._last: dict[tuple[object, ...], MetricAggregatedDatum] = {}

    def add(
        self,
        namespace: str,
        name: str,
        dimensions: Mapping[str, str],
        *values: float,
        unit: str = "Count",
        at: datetime | None = None,
    ) -> None:
        """Add values of one metric.

        Parameters
        ----------
        namespace, name, dimensions
            Which metric.
        values
            One or more.
        unit
            Of the values.
        at
            Time in the account; None for now.
        """
        minute = naive((at or self._now()).replace(second=0, microsecond=0))
        key = (namespace, name, unit, *sorted(dimensions.items()))
        with self._lock:
            last = self._last.get(key)
            if last is None or last.timestamp != minute:
                last = self._last[key] = MetricAggregatedDatum(
                    namespace,
                    name,
                    min_stat=min(values),
                    max_stat=max(values),
                    sample_count=0,
                    sum_stat=0,
                    dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
                    timestamp=minute,
                    unit=unit,
                )
                _backend().metric_data.append(last)
            last.min, last.max = min(last.min, *values), max(last.max, *values)
            last.sum += sum(values)
            last.sample_count += len(values)

    def of_function(self, name: str, written: bytes, *, failed: bool) -> None:
        """Take what a function wrote while it was at an event, and whether it failed at that."""
        self.add("AWS/Lambda", "Errors", {"FunctionName": name}, int(failed))
        for line in written.splitlines():
            if line.startswith(b"{") and b'"_aws"' in line:
                self._embedded(name, line)

    def of_queues(self) -> None:
        """Take how many messages wait in each queue."""
        for queue in list(sqs_backends[ACCOUNT][REGION].queues.values()):
            waiting = queue.approximate_number_of_messages
            self.add("AWS/SQS", "ApproximateNumberOfMessagesVisible", {"QueueName": queue.name}, waiting)

    def of_executions(self, emit: Emit) -> Emit:
        """Return an ``emit`` that also takes which executions failed."""

        def emit_and_count(source: str, kind: str, resources: list[str], detail: Mapping[str, object]) -> None:
            name = _EXECUTIONS.get(str(detail.get("status")))
            if source == "aws.states" and name is not None:
                self.add("AWS/States", name, {"StateMachineArn": str(detail["stateMachineArn"])}, 1)
            emit(source, kind, resources, detail)

        return emit_and_count

    def of_failed_delivery(self, rule: Rule, *_: object) -> None:
        """Take that a rule's target did not take an event."""
        self.add("AWS/Events", "FailedInvocations", {"RuleName": rule.name}, 1)

    def forget(self) -> None:
        """Drop what the service would no longer have."""
        backend, first = _backend(), naive(self._now() - _KEPT)
        with self._lock:
            if backend.metric_data and naive(backend.metric_data[0].timestamp) < first:
                backend.metric_data[:] = [one for one in backend.metric_data if naive(one.timestamp) >= first]

    def _embedded(self, function: str, line: bytes) -> None:
        try:
            document = json.loads(line)
            metadata = _Metadata.model_validate(document["_aws"])
        except (ValueError, ValidationError) as error:
            log_event("embedded_metrics_ignored", function=function, reason=str(error))
            return
        at = self._shown(datetime.fromtimestamp(metadata.timestamp / 1000, timezone.utc))
        for directive in metadata.directives:
            for metric in directive.metrics:
                values = _numbers(document.get(metric.name))
                for names in directive.dimensions if values else ():
                    dimensions = {name: str(document[name]) for name in names if name in document}
                    self.add(directive.namespace, metric.name, dimensions, *values, unit=metric.unit, at=at)


def _numbers(found: object) -> list[float]:
    """Return a metric's values, of which a line may have one or a list."""
    values = found if isinstance(found, list) else [found]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return [value for value in numbers if math.isfinite(value)]


def _backend() -> CloudWatchBackend:
    return cloudwatch_backends[ACCOUNT][REGION]

"""EventBridge: moto stores the rules and matches them; this delivers to Lambda and Step Functions too."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from moto.events.models import Rule, events_backends
from moto.events.utils import EventMessageType, EventTemplateParser

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.api import ApiError
from fedgrass.local.aws.overrides import override
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef

Emit = Callable[[str, str, list[str], Mapping[str, object]], None]
"""Sends an event: source, detail type, resources, detail."""

Send = Callable[[str, bytes], None]
"""Called with a target's ARN and its input."""

Target = dict[str, Any]
"""A rule's target, as PutTargets has it."""

Failed = Callable[[Rule, Target, EventMessageType, Exception], None]
"""Told of an event that a rule's target did not take."""


def emit(source: str, detail_type: str, resources: list[str], detail: Mapping[str, object]) -> None:
    """Put an event of one of AWS's services on the default bus.

    Parameters
    ----------
    detail
        JSON values only.
    """
    event = {"Source": source, "DetailType": detail_type, "Resources": resources, "Detail": json.dumps(detail)}
    events_backends[ACCOUNT][REGION].put_events([event])


class Delivery:
    """Makes moto's rules deliver to ``targets`` as well, until it is stopped.

    moto itself delivers to log groups, queues and buses, and raises on everything else. It also takes a rule with a
    schedule for one that matches every event. Delivery is in the background, as on AWS: whoever causes an event may
    hold locks that a target needs.

    Parameters
    ----------
    targets
        By service name in the target's ARN.
    failed
        Who are told of what could not be delivered.
    """

    def __init__(self, targets: Mapping[str, Send], failed: Sequence[Failed]) -> None:
        self._targets = targets
        self._failed = failed
        # One thread, so that targets are told in the order in which things happened.
        self._worker = ThreadPoolExecutor(1, "events")
        self._send_to_others = Rule.send_to_targets
        override(Rule, "send_to_targets", lambda rule, event, transform=True: self._matched(rule, event, transform))

    def send(self, rule: Rule, event: EventMessageType, transform_input: bool = True) -> None:
        """Deliver an event to the targets of a rule, whatever its pattern."""
        # An ARN is arn:aws:SERVICE:region:account:resource.
        ours = [target for target in rule.targets if target["Arn"].split(":")[2] in self._targets]
        for target in ours:
            with contextlib.suppress(RuntimeError):  # the account is stopping
                self._worker.submit(self._deliver, rule, target, event)
        # Of a copy, for moto's own targets: the rule itself must keep all of them.
        others = copy.copy(rule)
        others.targets = [target for target in rule.targets if target not in ours]
        if others.targets:
            self._send_to_others(others, event, transform_input)

    def stop(self) -> None:
        """Deliver nothing any more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _matched(self, rule: Rule, event: EventMessageType, transform_input: bool) -> None:
        # moto's own checks, which this replaces, and one that it lacks: a schedule alone is no pattern to match.
        has_pattern = bool(rule.event_pattern.get_pattern())
        if rule.state != "ENABLED" or (rule.scheduled_expression and not has_pattern):
            return
        if rule.event_pattern.matches_event(event):
            self.send(rule, event, transform_input)

    def _deliver(self, rule: Rule, target: Target, event: EventMessageType) -> None:
        try:
            self._targets[target["Arn"].split(":")[2]](target["Arn"], json.dumps(_input(target, event)).encode())
        except (BotoCoreError, ClientError, FedgrassError) as error:
            log_event("event_not_delivered", detail_type=event["detail-type"], target=target["Arn"], error=str(error))
            for told in self._failed:
                told(rule, target, event, error)


def to_queue(sqs: SQSClient, destination: Callable[[str], str | None]) -> Callable[[str, Mapping[str, object]], None]:
    """Return what puts a record for a function into the queue that is its failure destination, if it has one."""

    def put(function: str, record: Mapping[str, object]) -> None:
        arn = destination(function)
        if arn is not None:
            url = sqs.get_queue_url(QueueName=arn.rpartition(":")[2])["QueueUrl"]
            sqs.send_message(QueueUrl=url, MessageBody=json.dumps(record))

    return put


def to_dead_letters(sqs: SQSClient) -> Failed:
    """Return what puts an event that was not delivered into the queue that its target names for it, if it names one.

    https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html
    """

    def put(rule: Rule, target: Target, event: EventMessageType, error: Exception) -> None:
        queue = target.get("DeadLetterConfig", {}).get("Arn")
        if not queue:
            return
        said = {
            "RULE_ARN": rule.arn,
            "TARGET_ARN": target["Arn"],
            "ERROR_CODE": _code(error),
            "ERROR_MESSAGE": str(error) or _code(error),
        }
        attributes: dict[str, MessageAttributeValueTypeDef] = {
            name: {"DataType": "String", "StringValue": text[:1000]} for name, text in said.items()
        }
        body = json.dumps(_shown(event))
        try:
            url = sqs.get_queue_url(QueueName=queue.rpartition(":")[2])["QueueUrl"]
            sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=attributes)
        except (BotoCoreError, ClientError) as lost:
            log_event("event_not_delivered", detail_type=event["detail-type"], target=queue, error=str(lost))

    return put


def _code(error: Exception) -> str:
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"]
    return error.name if isinstance(error, ApiError) else type(error).__name__


def _input(target: Target, event: EventMessageType) -> object:
    if "Input" in target:
        return json.loads(target["Input"])
    shown = _shown(event)
    transformer = target.get("InputTransformer")
    if transformer:
        timed: EventMessageType = {**shown, "ingestion-time": shown["time"]}  # type: ignore[typeddict-item]  # moto puts it into the text as it is
        return EventTemplateParser.parse(transformer["InputTemplate"], transformer.get("InputPathsMap", {}), timed)
    value: object = shown
    for name in target.get("InputPath", "$").split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _shown(event: EventMessageType) -> EventMessageType:
    """Return an event as targets see it."""
    # The event is every target's: what is left out and spelled differently for this one must not reach the others.
    shown = copy.copy(event)
    shown.pop("ingestion-time", None)
    shown["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(event["time"])))
    return shown

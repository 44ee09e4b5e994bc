"""EventBridge: moto stores the rules and matches them; this delivers to Lambda and Step Functions too."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from moto.events.models import Rule, events_backends
from moto.events.utils import EventMessageType, EventTemplateParser

from fedgrass.errors import FedgrassError
from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.overrides import override
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

Emit = Callable[[str, str, list[str], Mapping[str, object]], None]
"""Sends an event: source, detail type, resources, detail."""

Target = Callable[[str, bytes], None]
"""Called with the target's ARN and its input."""


def emit(source: str, detail_type: str, resources: list[str], detail: Mapping[str, object]) -> None:
    """Put an event of one of AWS's services on the default bus.

    Parameters
    ----------
    detail
        JSON values only.
    """
    event = {"Source": source, "DetailType": detail_type, "Resources": resources, "Detail": json.dumps(detail)}
    events_backends[ACCOUNT][REGION].put_events([event])


def deliver_to(targets: dict[str, Target]) -> Callable[[], None]:
    """Make moto's rules deliver to ``targets`` as well, by service name in the target's ARN, until the result is called.

    moto itself delivers to log groups, queues and buses, and raises on everything else. It also takes a rule with a
    schedule for one that matches every event. Delivery is in the background, as on AWS: whoever causes an event may
    hold locks that a target needs.
    """
    # One thread, so that targets are told in the order in which things happened.
    worker = ThreadPoolExecutor(1, "events")
    send_to_others = Rule.send_to_targets

    def send_to_targets(rule: Rule, event: EventMessageType, transform_input: bool = True) -> None:
        # moto's own checks, which this replaces, and one that it lacks: a schedule has no pattern to match.
        if rule.state != "ENABLED" or rule.scheduled_expression or not rule.event_pattern.matches_event(event):
            return
        # An ARN is arn:aws:SERVICE:region:account:resource.
        ours = [target for target in rule.targets if target["Arn"].split(":")[2] in targets]
        for target in ours:
            with contextlib.suppress(RuntimeError):  # the account is stopping
                worker.submit(_deliver, targets[target["Arn"].split(":")[2]], target, event)
        # Of a copy, for moto's own targets: the rule itself must keep all of them.
        others = copy.copy(rule)
        others.targets = [target for target in rule.targets if target not in ours]
        if others.targets:
            send_to_others(others, event, transform_input)

    override(Rule, "send_to_targets", send_to_targets)
    return partial(worker.shutdown, wait=False, cancel_futures=True)


def to_queue(sqs: SQSClient, destination: Callable[[str], str | None]) -> Callable[[str, Mapping[str, object]], None]:
    """Return what puts a record for a function into the queue that is its failure destination, if it has one."""

    def put(function: str, record: Mapping[str, object]) -> None:
        arn = destination(function)
        if arn is not None:
            url = sqs.get_queue_url(QueueName=arn.rpartition(":")[2])["QueueUrl"]
            sqs.send_message(QueueUrl=url, MessageBody=json.dumps(record))

    return put


def _deliver(send: Target, target: Mapping[str, Any], event: EventMessageType) -> None:
    try:
        send(target["Arn"], json.dumps(_input(target, event)).encode())
    except (BotoCoreError, ClientError, FedgrassError) as error:
        log_event("event_not_delivered", detail_type=event["detail-type"], target=target["Arn"], error=str(error))


def _input(target: Mapping[str, Any], event: EventMessageType) -> object:
    if "Input" in target:
        return json.loads(target["Input"])
    # The event is every target's: what is left out and spelled differently for this one must not reach the others.
    shown = copy.copy(event)
    shown.pop("ingestion-time", None)
    shown["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(float(event["time"])))
    transformer = target.get("InputTransformer")
    if transformer:
        timed: EventMessageType = {**shown, "ingestion-time": shown["time"]}  # type: ignore[typeddict-item]  # moto puts it into the text as it is
        return EventTemplateParser.parse(transformer["InputTemplate"], transformer.get("InputPathsMap", {}), timed)
    value: object = shown
    for name in target.get("InputPath", "$").split(".")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value

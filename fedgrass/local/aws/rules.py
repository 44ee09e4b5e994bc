"""IoT topic rules: those that moto stores, executed on every message of the account."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from fedgrass.errors import ConfigurationError, FedgrassError, MessageError
from fedgrass.local.aws import sql
from fedgrass.local.aws.bus import Bus
from fedgrass.local.aws.sql_values import Message
from fedgrass.logs import log_event

if TYPE_CHECKING:
    from moto.iot.models import FakeRule
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import InputLogEventTypeDef

Parameters: TypeAlias = Mapping[str, Any]
"""An action's own, as the rule has them."""

Action = Callable[[Parameters, Mapping[str, object], Message], None]
"""Called with the action's parameters, what the rule selected, and the message."""

# By the text: a rule is parsed once, not once a message.
_parse = lru_cache(maxsize=256)(sql.parse)


class RuleEngine:
    """Matches messages against the rules and runs their actions, one message after the other.

    Parameters
    ----------
    rules
        The enabled rules at this moment, with ``rule_name``, ``sql``, ``actions`` and ``error_action``.
    actions
        By the name that the IoT API has for them, such as ``dynamoDBv2``.
    """

    def __init__(self, rules: Callable[[], list[FakeRule]], actions: Mapping[str, Action]) -> None:
        self._rules = rules
        self._actions = actions
        # One thread: a device's messages reach their actions in the order in which they were sent. And not the bus's
        # own, on which an action could not wait for the broker.
        self._worker = ThreadPoolExecutor(1, "iot-rules")

    def stop(self) -> None:
        """Drop what has not been executed."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def handle(self, topic: str, payload: bytes) -> None:
        """Execute the rules for a message, soon."""
        # The bus's own markers.
        if not topic.startswith("$aws/local/"):
            self._worker.submit(self._execute, topic, payload)

    def _execute(self, topic: str, payload: bytes) -> None:
        message = Message(topic, payload)
        for rule in self._rules():
            self._try(rule, message)

    def _try(self, rule: FakeRule, message: Message) -> None:
        try:
            self._apply(rule, message)
        except Exception:  # noqa: BLE001 - one rule's fault must not stop the others
            log_event("rule_crashed", rule=rule.rule_name, topic=message.topic)

    def _apply(self, rule: FakeRule, message: Message) -> None:
        query = _parse(rule.sql)
        if not query.fires(message):
            return
        try:
            selected = query.select(message)
        except MessageError as error:
            self._fail(rule, message, [("select", str(error))])
            return
        failures = []
        for action in rule.actions:
            for kind, parameters in action.items():
                reason = self._run(kind, parameters, selected, message)
                if reason:
                    failures.append((kind, reason))
        if failures:
            self._fail(rule, message, failures)

    def _run(self, kind: str, parameters: Parameters, selected: Mapping[str, object], message: Message) -> str | None:
        action = self._actions.get(kind)
        if action is None:
            return f"Action {kind} is not executed here; these are: {', '.join(sorted(self._actions))}"
        try:
            action(parameters, selected, message)
        except (BotoCoreError, ClientError, FedgrassError) as error:
            return str(error)
        return None

    def _fail(self, rule: FakeRule, message: Message, failures: list[tuple[str, str]]) -> None:
        log_event("rule_failed", rule=rule.rule_name, topic=message.topic, failures=failures)
        report = {
            "ruleName": rule.rule_name,
            "topic": message.topic,
            "base64OriginalPayload": base64.b64encode(message.raw).decode(),
            "failures": [{"failedAction": kind, "errorMessage": reason} for kind, reason in failures],
        }
        for kind, parameters in (rule.error_action or {}).items():
            reason = self._run(kind, parameters, report, message)
            if reason:
                log_event("rule_error_action_failed", rule=rule.rule_name, reason=reason)


def put_item(dynamodb: DynamoDBClient) -> Action:
    """Return the ``dynamoDBv2`` action: each selected attribute becomes one of the item."""
    serialize = TypeSerializer().serialize

    def act(parameters: Parameters, selected: Mapping[str, object], message: Message) -> None:
        table = sql.substitute(parameters["putItem"]["tableName"], message)
        # By way of JSON: DynamoDB refuses floats, and a decimal made of the text has the digits that the device sent.
        item = json.loads(json.dumps(selected), parse_float=Decimal)
        dynamodb.put_item(TableName=table, Item={name: serialize(value) for name, value in item.items()})

    return act


def invoke_function(send: Callable[[str, bytes], None]) -> Action:
    """Return the ``lambda`` action: an asynchronous invocation."""

    def act(parameters: Parameters, selected: Mapping[str, object], message: Message) -> None:
        send(sql.substitute(parameters["functionArn"], message), json.dumps(selected).encode())

    return act


def republish(bus: Bus) -> Action:
    """Return the ``republish`` action; ``$$`` begins a topic of AWS's own."""

    def act(parameters: Parameters, selected: Mapping[str, object], message: Message) -> None:
        topic = sql.substitute(parameters["topic"].replace("$$", "$", 1), message)
        if "Undefined" in topic.split("/"):
            raise ConfigurationError(f"Topic {parameters['topic']} has a part that the message does not define.")
        bus.publish(topic, selected, qos=int(parameters.get("qos", 0)))

    return act


def put_log_event(logs: CloudWatchLogsClient) -> Action:
    """Return the ``cloudwatchLogs`` action: what was selected becomes one log event."""

    def act(parameters: Parameters, selected: Mapping[str, object], _message: Message) -> None:
        group, stream = parameters["logGroupName"], str(uuid.uuid4())
        event: InputLogEventTypeDef = {"timestamp": int(time.time() * 1000), "message": json.dumps(selected)}
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])

    return act

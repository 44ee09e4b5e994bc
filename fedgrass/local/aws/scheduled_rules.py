"""EventBridge's rules with a schedule: moto keeps them, and nothing there ever lets one happen."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from moto.cloudformation.exceptions import ValidationError
from moto.events.exceptions import ValidationException
from moto.events.models import EventsBackend, Rule, events_backends
from moto.events.utils import EventMessageType

from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.clock import let
from fedgrass.local.aws.overrides import override
from fedgrass.local.aws.schedules import parse

_REFUSAL = "Parameter ScheduleExpression is not valid."


def repair() -> None:
    """Have moto refuse a schedule that the service refuses; it takes ``rate(1 minutes)`` and any ``cron(…)``."""
    put_rule = EventsBackend.put_rule
    create, update = Rule.create_from_cloudformation_json, Rule.update_from_cloudformation_json

    def put_checked(backend: EventsBackend, *names: Any, **options: Any) -> Rule:
        if not _is_sound(options.get("scheduled_expression")):
            raise ValidationException(_REFUSAL)
        return put_rule(backend, *names, **options)

    # moto deletes a rule that a stack changes before it puts the new one, and answers with what CloudFormation's clients cannot
    # read.
    def create_checked(name: str, described: dict[str, Any], *account: str, **options: Any) -> Rule:
        _require_sound(described)
        return create(name, described, *account, **options)

    def update_checked(**options: Any) -> Rule:
        _require_sound(options["cloudformation_json"])
        return update(**options)

    override(EventsBackend, "put_rule", put_checked)
    override(Rule, "create_from_cloudformation_json", create_checked)
    override(Rule, "update_from_cloudformation_json", update_checked)


class ScheduledRules:
    """When each enabled rule with a schedule is due: a part of the account's clock.

    A rate counts from when its rule is made, changed or enabled. (AWS's pages say that it starts when the rule is
    created, and not whether it is due at once; here it is after the first interval.)

    Parameters
    ----------
    now
        The account's time.
    send
        Delivers an event to a rule's targets.
    repeats
        Whether the service delivers twice what it delivers now: at least once is what it promises.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        send: Callable[[Rule, EventMessageType], None],
        repeats: Callable[[], bool] = lambda: False,
    ) -> None:
        self._now = now
        self._send = send
        self._repeats = repeats
        # Expression and next time, by the rule's name; one that is never due any more has None.
        self._next: dict[str, tuple[str, datetime | None]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Take up rules that are new, changed or enabled; forget those that are gone or disabled."""
        with self._lock:
            rules = _enabled()
            kept = {name: self._next[name] for name in self._next.keys() & rules.keys()}
            for name, rule in rules.items():
                expression = rule.scheduled_expression or ""
                if name not in kept or kept[name][0] != expression:
                    kept[name] = expression, parse(expression).after(self._now())
            self._next = kept

    def due(self) -> datetime | None:
        """Return when the next of them is due."""
        with self._lock:
            return min((due for _, due in self._next.values() if due is not None), default=None)

    def happen(self, now: datetime) -> None:
        """Send the event of each rule that is due by ``now``."""
        with self._lock:
            found = [(due, name, expression) for name, (expression, due) in self._next.items() if due and due <= now]
            for due, name, expression in found:
                # Counted from when it was due. What was missed meanwhile, as while the machine slept, is not made up for.
                after = parse(expression).after(due)
                while after is not None and after <= now:
                    after = parse(expression).after(after)
                self._next[name] = expression, after
            rules = _enabled()
        for due, name, _ in sorted(found):
            if name in rules:
                event = _event(rules[name], due)
                for _ in range(1 + self._repeats()):
                    let(name, self._send, rules[name], event)


def _is_sound(expression: str | None) -> bool:
    try:
        return not expression or bool(parse(expression))
    except ValueError:
        return False


def _require_sound(described: dict[str, Any]) -> None:
    if not _is_sound(described["Properties"].get("ScheduleExpression")):
        raise ValidationError(message=_REFUSAL)


def _enabled() -> dict[str, Rule]:
    # A schedule is on the default bus alone. A copy, for moto changes its dictionary on other threads.
    rules = dict(events_backends[ACCOUNT][REGION].event_buses["default"].rules)
    return {name: rule for name, rule in rules.items() if rule.scheduled_expression and rule.state == "ENABLED"}


def _event(rule: Rule, due: datetime) -> EventMessageType:
    """Return the event, as the user guide shows it ("Scheduled Event")."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": ACCOUNT,
        "time": due.timestamp(),
        "region": REGION,
        "resources": [rule.arn],
        "detail": {},
    }

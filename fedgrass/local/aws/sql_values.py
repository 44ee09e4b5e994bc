"""What IoT SQL computes with: a message's values, operators and functions."""

from __future__ import annotations

import json
import math
import operator
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

UNDEFINED: object = object()
"""The value of an attribute that a message does not have."""

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
SUMS: dict[str, Callable[[object, object], object]] = {"+": operator.add, "-": operator.sub}
PRODUCTS: dict[str, Callable[[object, object], object]] = {"*": operator.mul, "/": operator.truediv, "%": operator.mod}
"""Operators by sign, in the order of their binding: `COMPARISONS` least, then `SUMS`, then these."""


@dataclass(frozen=True)
class Message:
    """A publication: its topic, and its payload as it came."""

    topic: str
    raw: bytes

    @cached_property
    def payload(self) -> object:
        """The payload as parsed JSON, `UNDEFINED` if it is none."""
        try:
            return json.loads(self.raw)
        except ValueError:
            return UNDEFINED


Expression = Callable[[Message], object]
"""A value yet to be computed from a message; `UNDEFINED` if the message lacks what it needs."""


LITERALS = {"true": True, "false": False, "null": None}
"""Words that are values, in lower case."""


def either(left: Expression, right: Expression) -> Expression:
    """Hold if one of the two does."""
    return lambda message: left(message) is True or right(message) is True


def both(left: Expression, right: Expression) -> Expression:
    """Hold if both do."""
    return lambda message: left(message) is True and right(message) is True


def compare(test: Callable[[Any, Any], bool], left: Expression, right: Expression) -> Expression:
    """Make the comparison of two expressions; with Undefined, or in order across types, its value is Undefined.

    Parameters
    ----------
    test
        One of `operator`'s comparisons.
    left, right
        What is compared.

    Returns
    -------
    Expression
        Its value is a bool or Undefined.
    """

    def compare(message: Message) -> object:
        a, b = left(message), right(message)
        if a is UNDEFINED or b is UNDEFINED:
            return UNDEFINED
        # Python would raise a TypeError for an order between a text and a number.
        if test not in {operator.eq, operator.ne} and not _ordered(a, b):
            return UNDEFINED
        # Python counts True as 1; in JSON the two are different values.
        return test(a, b) if isinstance(a, bool) == isinstance(b, bool) else test is operator.ne

    return compare


def _ordered(a: object, b: object) -> bool:
    return (_is_number(a) and _is_number(b)) or (isinstance(a, str) and isinstance(b, str))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def calculate(operation: Callable[[object, object], object], left: Expression, right: Expression) -> Expression:
    """Make the calculation with two expressions; of anything but numbers, and without a result, its value is Undefined.

    Parameters
    ----------
    operation
        One of `operator`'s calculations.
    left, right
        What is calculated with.

    Returns
    -------
    Expression
        Its value is a number or Undefined.
    """

    def calculate(message: Message) -> object:
        a, b = left(message), right(message)
        if not (_is_number(a) and _is_number(b)) or (b == 0 and operation in {operator.truediv, operator.mod}):
            return UNDEFINED
        try:
            return operation(a, b)
        except OverflowError:
            return UNDEFINED

    return calculate


def attribute(payload: object, path: list[str]) -> object:
    """Return what is at ``path`` in the payload."""
    for name in path:
        if not isinstance(payload, dict) or name not in payload:
            return UNDEFINED
        payload = payload[name]
    return payload


def _topic(message: Message, part: object = None) -> object:
    if part is None:
        return message.topic
    parts = message.topic.split("/")
    return parts[part - 1] if isinstance(part, int) and 1 <= part <= len(parts) else UNDEFINED


def _floor(value: object) -> object:
    if isinstance(value, float):
        return math.floor(value) if math.isfinite(value) else UNDEFINED
    return value if _is_number(value) else UNDEFINED


def _length(value: object) -> object:
    return len(value) if isinstance(value, str) else UNDEFINED


def _starts_with(text: object, prefix: object) -> object:
    return text.startswith(prefix) if isinstance(text, str) and isinstance(prefix, str) else UNDEFINED


def _concat(texts: Sequence[object]) -> object:
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(texts) else UNDEFINED


FUNCTIONS: dict[str, Callable[..., object]] = {
    "topic": _topic,
    "timestamp": lambda _message: int(time.time() * 1000),
    "floor": lambda _message, value: _floor(value),
    "concat": lambda _message, *texts: _concat(texts),
    "newuuid": lambda _message: str(uuid.uuid4()),
    "isundefined": lambda _message, value: value is UNDEFINED,
    "isnull": lambda _message, value: value is None,
    "length": lambda _message, value: _length(value),
    "lower": lambda _message, text: text.lower() if isinstance(text, str) else UNDEFINED,
    "startswith": lambda _message, text, prefix: _starts_with(text, prefix),
}
"""Functions by name in lower case, called with the message and their arguments."""

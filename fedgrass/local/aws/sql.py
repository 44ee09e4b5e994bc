"""The part of AWS IoT SQL (2016-03-23) that topic rules here may use.

``SELECT item, … FROM 'filter' [WHERE condition]``, where an item is ``*`` or an expression with ``AS name``. Expressions
are literals, attributes of the JSON payload (``a.b``), the functions below, arithmetic, comparisons, ``AND``, ``OR``,
``NOT`` and parentheses; ``encode(*, 'base64')`` is the payload as it came. What a message does not have is *Undefined*:
it is left out of the result, and no comparison with it holds. A payload that is not JSON has no attributes.
Source: "AWS IoT SQL reference" in the IoT Core developer guide.

It is more than the fleet's template uses (``OR``, ``NOT``, ``isundefined``, ``startswith`` and some more): rules that somebody
adds on the fleet's topics are tried here as well, and one that is refused here but not on AWS would mislead.
"""

from __future__ import annotations

import base64
import operator
import re
from collections.abc import Collection
from dataclasses import dataclass

from fedgrass.errors import ConfigurationError, MessageError
from fedgrass.local.aws import sql_values as values
from fedgrass.local.aws.sql_values import UNDEFINED, Expression, Message
from fedgrass.local.aws.topics import matches

# Signs of two characters come before those of one, or "<=" would be read as "<" and "=".
_TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*')|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign><>|!=|<=|>=|[-+*/%(),.=<>]))"
)
_TEMPLATE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Item:
    """One selected value; ``name`` is None for ``*`` alone."""

    name: str | None
    value: Expression


@dataclass(frozen=True)
class Query:
    """A parsed statement."""

    items: tuple[Item, ...]
    topic_filter: str
    condition: Expression | None

    def fires(self, message: Message) -> bool:
        """Tell whether the rule applies to ``message``."""
        if not matches(self.topic_filter, message.topic):
            return False
        # Undefined counts as false, as does any value that is not a boolean.
        return self.condition is None or self.condition(message) is True

    def select(self, message: Message) -> dict[str, object]:
        """Return what the rule's actions get.

        Raises
        ------
        MessageError
            If the whole payload is selected and is not a JSON object.
        """
        result: dict[str, object] = {}
        for item in self.items:
            value = item.value(message)
            if item.name is None:
                if not isinstance(value, dict):
                    raise MessageError(f"The rule selects *, but the payload on {message.topic} is not a JSON object.")
                result.update(value)
            elif value is not UNDEFINED:
                result[item.name] = value
        return result


def parse(statement: str) -> Query:
    """Parse a rule's SQL.

    Raises
    ------
    ConfigurationError
        If it is not in the supported part of the language.
    """
    return _Parser(statement).query()


def substitute(template: str, message: Message) -> str:
    """Replace each ``${expression}`` of an action's parameter.

    Raises
    ------
    ConfigurationError
        If an expression is not in the supported part of the language.
    """

    def value(match: re.Match[str]) -> str:
        found = _Parser(match[1]).whole_expression()(message)
        return "Undefined" if found is UNDEFINED else str(found)

    return _TEMPLATE.sub(value, template)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise self._error(f"{text[position:].strip()[:20]!r} is not understood")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._next = 0

    def query(self) -> Query:
        self._expect("SELECT")
        items = [self._item()]
        while self._take(","):
            items.append(self._item())
        self._expect("FROM")
        topic_filter = self._string()
        condition = self._or() if self._take("WHERE") else None
        self._end()
        return Query(tuple(items), topic_filter, condition)

    def whole_expression(self) -> Expression:
        value = self._or()
        self._end()
        return value

    def _item(self) -> Item:
        if self._take("*"):
            value: Expression = lambda message: message.payload  # noqa: E731 - the shape of every other node
            return Item(self._name() if self._take("AS") else None, value)
        start = self._next
        value = self._or()
        if self._take("AS"):
            return Item(self._name(), value)
        # Without AS, an attribute keeps the last name of its path: `a.b` becomes `b`.
        kind, text = self._tokens[self._next - 1]
        if kind != "name" or self._tokens[start][0] != "name":
            raise self._error("a value that is not an attribute needs AS and a name")
        return Item(text, value)

    # One method for each level of binding, from the loosest to the tightest.
    def _or(self) -> Expression:
        left = self._and()
        while self._take("OR"):
            left = values.either(left, self._and())
        return left

    def _and(self) -> Expression:
        left = self._not()
        while self._take("AND"):
            left = values.both(left, self._not())
        return left

    def _not(self) -> Expression:
        if self._take("NOT"):
            inner = self._not()
            return lambda message: inner(message) is False
        left = self._sum()
        sign = self._sign(values.COMPARISONS)
        return values.compare(values.COMPARISONS[sign], left, self._sum()) if sign else left

    def _sum(self) -> Expression:
        left = self._product()
        while sign := self._sign(values.SUMS):
            left = values.calculate(values.SUMS[sign], left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._primary()
        while sign := self._sign(values.PRODUCTS):
            left = values.calculate(values.PRODUCTS[sign], left, self._primary())
        return left

    def _primary(self) -> Expression:
        if self._take("("):
            inner = self._or()
            self._expect(")")
            return inner
        if self._take("-"):
            # A number has no sign of its own in `_TOKEN`: a leading minus is a subtraction from 0.
            return values.calculate(operator.sub, lambda _message: 0, self._primary())
        kind, text = self._advance()
        if kind == "string":
            literal: object = text[1:-1].replace("''", "'")
        elif kind == "number":
            literal = float(text) if "." in text else int(text)
        elif kind == "name" and text.lower() in values.LITERALS:
            literal = values.LITERALS[text.lower()]
        elif kind == "name" and self._take("("):
            return self._call(text)
        elif kind == "name":
            path = [text]
            while self._take("."):
                path.append(self._name())
            return lambda message: values.attribute(message.payload, path)
        else:
            raise self._error(f"{text!r} is not a value")
        return lambda _message: literal

    def _call(self, name: str) -> Expression:
        if name.lower() == "encode":
            return self._encode()
        arguments: list[Expression] = []
        if not self._take(")"):
            arguments.append(self._or())
            while self._take(","):
                arguments.append(self._or())
            self._expect(")")
        function = values.FUNCTIONS.get(name.lower())
        if function is None:
            raise self._error(f"function {name} is not one of {', '.join(sorted(values.FUNCTIONS))}")
        return lambda message: function(message, *[argument(message) for argument in arguments])

    def _encode(self) -> Expression:
        self._expect("*")
        self._expect(",")
        encoding = self._string()
        self._expect(")")
        if encoding != "base64":
            raise self._error(f"encode() knows 'base64', not {encoding!r}")
        return lambda message: base64.b64encode(message.raw).decode()

    def _sign(self, signs: Collection[str]) -> str:
        if self._next < len(self._tokens) and self._tokens[self._next][0] == "sign":
            found = self._tokens[self._next][1]
            if found in signs:
                self._next += 1
                return found
        return ""

    def _advance(self) -> tuple[str, str]:
        if self._next >= len(self._tokens):
            raise self._error("it ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _take(self, word: str) -> bool:
        if self._next < len(self._tokens):
            kind, text = self._tokens[self._next]
            # Keywords are in any case; a quoted text is never one.
            if kind != "string" and text.upper() == word:
                self._next += 1
                return True
        return False

    def _expect(self, word: str) -> None:
        if not self._take(word):
            found = self._tokens[self._next][1] if self._next < len(self._tokens) else "the end"
            raise self._error(f"expected {word}, found {found}")

    def _name(self) -> str:
        kind, text = self._advance()
        if kind != "name":
            raise self._error(f"{text!r} is not a name")
        return text

    def _string(self) -> str:
        kind, text = self._advance()
        if kind != "string":
            raise self._error(f"expected a quoted text, found {text}")
        return text[1:-1]

    def _end(self) -> None:
        if self._next != len(self._tokens):
            raise self._error(f"{self._tokens[self._next][1]!r} is out of place")

    def _error(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"IoT SQL {self._text!r} cannot be used here: {reason}.")

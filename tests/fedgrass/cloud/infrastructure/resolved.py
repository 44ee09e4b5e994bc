"""The template with its intrinsic functions worked out for one fleet, and IAM's evaluation of what it allows.

The simulator knows what our policies use: Allow and Deny, wildcards, policy variables, and the conditions StringEquals,
StringLike and Bool; anything else is an error. (moto evaluates neither variables nor conditions.)
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cfnlint import decode

from fedgrass.protocol.names import fleet_digest
from tests.fixtures.places import TEMPLATE

ACCOUNT, REGION = "123456789012", "eu-central-1"
_PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/fedgrass/0a1b2c3d-1111-2222-3333-0123456789ab",
}
BUCKET = "arn:aws:s3:::the-bucket"
_GIVEN = {
    "Fleet": "digits",
    "FleetDigest": fleet_digest("digits"),
    "CodeBucket": "code",
    "CodeKey": "k",
    "DefinitionKey": "d",
    "SourceKey": "s",
}


class Template:
    """The template as CloudFormation sees it for some parameters."""

    def __init__(self, path: Path = TEMPLATE, **parameters: str) -> None:
        document, problems = decode.decode(str(path))
        assert not problems
        self.document = json.loads(json.dumps(document))
        given = {**_GIVEN, **parameters}
        if "Fleet" in parameters:
            given["FleetDigest"] = fleet_digest(parameters["Fleet"])
        self._parameters: dict[str, Any] = {
            name: self._value(given.get(name, declared.get("Default")), declared["Type"])
            for name, declared in self.document["Parameters"].items()
        }
        self._conditions = {
            name: bool(self.resolve(condition)) for name, condition in self.document.get("Conditions", {}).items()
        }
        self.resources = {
            name: {"Type": resource["Type"], **self.resolve(resource.get("Properties", {}))}
            for name, resource in self.document["Resources"].items()
            if self._conditions.get(resource.get("Condition", ""), True)
        }

    def of_type(self, kind: str) -> dict[str, Any]:
        return {name: resource for name, resource in self.resources.items() if resource["Type"] == kind}

    def statements(self, role: str) -> list[dict[str, Any]]:
        """Statements of a role's policies, the template's own managed ones included."""
        found = self.resources[role]
        names = [arn.rpartition(":")[2] for arn in found.get("ManagedPolicyArns", [])]
        managed = [self.resources[name] for name in names if not name.startswith("policy/service-role/")]  # AWS's own
        documents = [policy["PolicyDocument"] for policy in [*found.get("Policies", []), *managed]]
        return [statement for document in documents for statement in document["Statement"]]

    @staticmethod
    def _value(text: Any, kind: str) -> Any:
        return str(text).split(",") if kind == "CommaDelimitedList" else str(text)

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [entry for entry in map(self.resolve, value) if entry is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(function, argument)] = value.items()
            if (function in {"Ref", "Condition"} and isinstance(argument, str)) or function.startswith("Fn::"):
                return getattr(self, f"_{function.removeprefix('Fn::').lower()}")(argument)
        resolved = {name: self.resolve(below) for name, below in value.items()}
        return {name: below for name, below in resolved.items() if below is not _NOTHING}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NOTHING
        if name in _PSEUDO:
            return _PSEUDO[name]
        return self._parameters[name] if name in self._parameters else self._getatt([name, "Ref"])

    def _getatt(self, path: list[str]) -> str:
        name, attribute = path
        if name == "Bucket":
            return "the-bucket" if attribute == "Ref" else BUCKET
        if name == "ModelPackageGroup":
            return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package-group/the-group"
        if name == "StateMachine":
            return f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:fedgrass-digits-round"
        return f"arn:aws:{attribute.lower()}:{REGION}:{ACCOUNT}:{name}"

    def _sub(self, argument: Any) -> str:
        text, more = (argument, {}) if isinstance(argument, str) else argument

        def replace(match: re.Match[str]) -> str:
            name = match.group(1)
            if name.startswith("!"):
                return f"${{{name[1:]}}}"
            if name in more:
                return str(self.resolve(more[name]))
            return str(self._getatt(name.split(".")) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)

    def _if(self, argument: list[Any]) -> Any:
        condition, then, otherwise = argument
        return self.resolve(then if self._conditions[condition] else otherwise)

    def _equals(self, argument: list[Any]) -> bool:
        first, second = map(self.resolve, argument)
        return bool(first == second)

    def _not(self, argument: list[Any]) -> bool:
        return not self.resolve(argument[0])

    def _or(self, argument: list[Any]) -> bool:
        return any(map(self.resolve, argument))

    def _condition(self, name: str) -> bool:
        return bool(self.resolve(self.document["Conditions"][name]))

    def _join(self, argument: list[Any]) -> str:
        return str(argument[0]).join(self.resolve(argument[1]))

    def _split(self, argument: list[Any]) -> list[str]:
        return str(self.resolve(argument[1])).split(argument[0])

    def _select(self, argument: list[Any]) -> Any:
        return self.resolve(argument[1])[int(argument[0])]


_NOTHING: Any = object()


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def actions(statements: Iterable[Mapping[str, Any]]) -> set[str]:
    return {action for statement in statements for action in listed(statement["Action"])}


def allows(
    statements: Iterable[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    """Whether IAM allows it: no statement denies it and one allows it."""
    context = context or {}
    effects = {
        statement["Effect"]
        for statement in statements
        if any(fnmatchcase(action.lower(), pattern.lower()) for pattern in listed(statement["Action"]))
        and any(_matches(resource, pattern, context) for pattern in listed(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context)
    }
    return "Allow" in effects and "Deny" not in effects


def _matches(value: str, pattern: str, context: Mapping[str, str]) -> bool:
    # What a variable stands for is taken literally; a variable without a value matches nothing.
    pieces = re.split(r"\$\{([^}]+)\}", pattern)
    if any(name not in context for name in pieces[1::2]):
        return False
    expression = "".join(
        re.escape(context[piece]) if odd else re.escape(piece).replace(r"\*", ".*").replace(r"\?", ".")
        for position, piece in enumerate(pieces)
        for odd in [position % 2]
    )
    return re.fullmatch(expression, value) is not None


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, tests in conditions.items():
        assert operator in {"StringEquals", "StringLike", "Bool"}, operator
        for key, wanted in tests.items():
            if key not in context or not any(_matches(context[key], value, context) for value in listed(wanted)):
                return False
    return True

"""Which AWS actions a piece of code can cause: its boto3 calls, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

from botocore import xform_name
from botocore.loaders import Loader

from tests.fixtures.places import ROOT

_SERVICES = {
    "dynamodb": "dynamodb",
    "s3": "s3",
    "stepfunctions": "states",
    "iot": "iot",
    "iot-data": "iot",
    "sagemaker": "sagemaker",
    "greengrassv2": "greengrass",
}
# Where the action is not named like the call, or the call needs more than itself.
_SPECIAL = {
    "list_objects_v2": {"s3:ListBucket"},
    "list_object_versions": {"s3:ListBucketVersions"},
    "head_object": {"s3:GetObject"},
    "delete_objects": {"s3:DeleteObject"},
    "publish": {"iot:Publish", "iot:RetainPublish"},
    "create_processing_job": {"sagemaker:CreateProcessingJob", "sagemaker:AddTags", "iam:PassRole"},
    "create_policy": {"iot:CreatePolicy", "iot:TagResource"},  # with tags
    "transact_write_items": set(),  # of its parts, below
}
_TRANSACTED = {
    "Put": "dynamodb:PutItem",
    "Update": "dynamodb:UpdateItem",
    "Delete": "dynamodb:DeleteItem",
    "ConditionCheck": "dynamodb:ConditionCheckItem",
}


@cache
def operations(*services: str) -> dict[str, set[str]]:
    """The actions that each boto3 call of the services needs."""
    loader = Loader()
    found: dict[str, set[str]] = {}
    for service in services:
        for name in loader.load_service_model(service, "service-2")["operations"]:
            call = xform_name(name)
            found[call] = _SPECIAL.get(call, {f"{_SERVICES[service]}:{name}"})
    return found


def actions_of_function(module: str, function: str) -> set[str]:
    """Actions that a function can cause, through every function of ours that it names, however far."""
    seen: set[tuple[str, str]] = set()
    waiting = [(module, function)]
    found: set[str] = set()
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        definitions, imports = _names(at[0])
        node = definitions.get(at[1])
        if node is None:
            continue
        found |= _called(node, operations(*_SERVICES))
        named = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        waiting += [imports.get(name, (at[0], name)) for name in named]
    return found


def actions_of_modules(place: str, *, services: tuple[str, ...], leave_out: Collection[str] = ()) -> set[str]:
    """Actions that a module, or those of a folder, can cause."""
    found = ROOT / place
    return {
        action
        for path in ([found] if found.is_file() else sorted(found.rglob("*.py")))
        if path.name not in leave_out
        for action in _called(ast.parse(path.read_text()), operations(*services))
    }


def _called(node: ast.AST, known: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            found |= known.get(inner.attr, set())
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.args:
            first = inner.args[0]
            if inner.func.attr == "get_paginator" and isinstance(first, ast.Constant):
                found |= known[str(first.value)]
        elif isinstance(inner, ast.Dict):
            keys = [key.value for key in inner.keys if isinstance(key, ast.Constant)]
            found |= {_TRANSACTED[key] for key in keys if key in _TRANSACTED and len(keys) == 1}
    return found


@cache
def _names(module: str) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """A module's functions and classes, and what it imports from other modules of ours."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    if not path.exists():
        return {}, {}
    tree = ast.parse(path.read_text())
    definitions: dict[str, ast.AST] = {
        node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("cloud.", "fedgrass."))
        for alias in node.names
    }
    return definitions, imports

"""The ready policy for operators: it names every service that the scripts call, and gives no other fleet-less right away."""

from __future__ import annotations

import ast
import json
from fnmatch import fnmatchcase

from botocore import xform_name
from botocore.loaders import Loader

from tests.fixtures.places import ROOT

POLICY = json.loads((ROOT / "cloud/operator_policy.json").read_text())
_SERVICES = {
    "cloudformation": "cloudformation",
    "codebuild": "codebuild",
    "ecr": "ecr",
    "events": "events",
    "greengrassv2": "greengrass",
    "iot": "iot",
    "logs": "logs",
    "s3": "s3",
    "sagemaker": "sagemaker",
    "sqs": "sqs",
    "stepfunctions": "states",
    "sts": "sts",
}


def test_every_call_of_the_scripts_is_allowed() -> None:
    loader = Loader()
    calls: dict[str, set[str]] = {}
    for service, prefix in _SERVICES.items():
        for name in loader.load_service_model(service, "service-2")["operations"]:
            calls.setdefault(xform_name(name), set()).add(f"{prefix}:{name}")
    allowed = [action for statement in POLICY["Statement"] for action in _listed(statement["Action"])]
    used = set()
    for path in (ROOT / "fedgrass/cloud/infrastructure").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in calls:
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and node.value in calls:
                used.add(str(node.value))  # of a paginator
    assert len(used) > 50
    missing = {
        call for call in used if not any(fnmatchcase(action, pattern) for action in calls[call] for pattern in allowed)
    }
    assert missing == set()


def test_only_what_has_no_resource_or_lists_is_allowed_on_everything() -> None:
    wide = [action for one in POLICY["Statement"] if one["Resource"] == "*" for action in _listed(one["Action"])]
    assert wide
    assert not [action for action in wide if "*" in action or action.startswith("iam:")]
    assert len(json.dumps(POLICY, separators=(",", ":"))) <= 6144  # a managed policy's limit


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value

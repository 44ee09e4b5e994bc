"""Greengrass in memory: component versions and deployments, with the service's own exception classes.

For what a real process cannot be made to do on cue: someone else's deployment at a chosen moment, an error halfway.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import boto3

_START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@cache
def _exceptions() -> Any:
    return boto3.client(
        "greengrassv2", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    ).exceptions


class FakeGreengrass:
    def __init__(self) -> None:
        self.exceptions = _exceptions()
        self.components: dict[str, dict[str, Any]] = {}
        self.deployments: list[dict[str, Any]] = []
        self.polls_until_deployable = 1
        self.before_create: Callable[[], None] = lambda: None
        self.after_create: Callable[[], None] = lambda: None
        self.hidden_lists = 0
        self.core_devices: dict[str, list[str]] = {}

    def create_component_version(self, *, inlineRecipe: bytes) -> dict[str, Any]:  # noqa: N803
        recipe = json.loads(inlineRecipe)
        arn = (
            "arn:aws:greengrass:us-east-1:123456789012:components:"
            f"{recipe['ComponentName']}:versions:{recipe['ComponentVersion']}"
        )
        if arn in self.components:
            raise self._error("ConflictException", "CreateComponentVersion")
        self.components[arn] = {"recipe": recipe, "polls": self.polls_until_deployable, "state": "DEPLOYABLE"}
        return {"arn": arn}

    def describe_component(self, *, arn: str) -> dict[str, Any]:
        if arn not in self.components:
            raise self._error("ResourceNotFoundException", "DescribeComponent")
        component = self.components[arn]
        component["polls"] -= 1
        state = "REQUESTED" if component["polls"] >= 0 else component["state"]
        return {"status": {"componentState": state, "message": "because"}}

    def get_component(self, *, arn: str, recipeOutputFormat: str) -> dict[str, Any]:  # noqa: N803
        return {"recipe": json.dumps(self.components[arn]["recipe"]).encode()}

    def delete_component(self, *, arn: str) -> None:
        del self.components[arn]

    def get_paginator(self, operation: str) -> Any:
        return self if operation == "list_deployments" else _CoreDevices(self.core_devices)

    def paginate(self, *, targetArn: str, historyFilter: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        found = [d for d in self.deployments if d["targetArn"] == targetArn]
        if self.hidden_lists > 0 and found:
            self.hidden_lists -= 1
            found = found[:-1]
        for position, entry in enumerate(found):
            last = position == len(found) - 1
            yield {
                "deployments": [
                    {
                        "deploymentId": entry["deploymentId"],
                        "creationTimestamp": entry["creationTimestamp"],
                        "isLatestForTarget": last,
                    }
                ]
            }

    def get_deployment(self, *, deploymentId: str) -> dict[str, Any]:  # noqa: N803
        return next(copy.deepcopy(d) for d in self.deployments if d["deploymentId"] == deploymentId)

    def create_deployment(self, **arguments: Any) -> dict[str, Any]:
        self.before_create()
        made = self.deploy(arguments)
        self.after_create()
        return {"deploymentId": made}

    def deploy(self, arguments: dict[str, Any]) -> str:
        """What someone else's CreateDeployment does."""
        number = len(self.deployments)
        made = {
            **copy.deepcopy(arguments),
            "deploymentId": f"d{number}",
            "creationTimestamp": _START + timedelta(seconds=number),
        }
        self.deployments.append(made)
        return f"d{number}"

    @property
    def latest(self) -> dict[str, Any]:
        return self.deployments[-1]

    def _error(self, code: str, operation: str) -> Exception:
        error: Exception = getattr(self.exceptions, code)({"Error": {"Code": code, "Message": "as said"}}, operation)
        return error


class _CoreDevices:
    def __init__(self, groups: dict[str, list[str]]) -> None:
        self._groups = groups

    def paginate(self, *, thingGroupArn: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        yield {"coreDevices": [{"coreDeviceThingName": name} for name in self._groups.get(thingGroupArn, [])]}

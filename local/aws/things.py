"""Things and thing groups, which moto keeps."""

from __future__ import annotations

from typing import Any

from moto.iot.models import iot_backends

from local.aws.account import ACCOUNT, REGION


def _iot() -> Any:
    return iot_backends[ACCOUNT][REGION]


def exists(target_arn: str) -> bool:
    """Tell whether a thing or thing group of that ARN exists."""
    backend = _iot()
    return target_arn in backend.thing_groups or target_arn in backend.things


def members(target_arn: str) -> list[str]:
    """Return the names of the things of a thing group, or of the one thing that the ARN names."""
    backend = _iot()
    if target_arn in backend.thing_groups:
        return [thing.thing_name for thing in list(backend.thing_groups[target_arn].things.values())]
    return [backend.things[target_arn].thing_name] if target_arn in backend.things else []


def groups(thing: str) -> list[str]:
    """Return the ARNs of the groups that a thing is in."""
    return [
        group_arn
        for group_arn, group in list(_iot().thing_groups.items())
        if any(member.thing_name == thing for member in list(group.things.values()))
    ]


def topic_rules() -> list[Any]:
    """Return the enabled topic rules, as moto's objects."""
    return [rule for rule in list(_iot().rules.values()) if not rule.rule_disabled]

from typing import Any

import pytest

from fedgrass.local.core_device.ipc.authorization import Authorizer, Service
from fedgrass.local.core_device.ipc.errors import UnauthorizedError


def allowed(service: Service, resource: str, asked: str, *, operations: Any = ("*",)) -> bool:
    policy = {"policyDescription": "x", "operations": list(operations), "resources": [resource]}
    authorizer = Authorizer({"C": {"accessControl": {service.value: {"C:1": policy}}}}.__getitem__)
    try:
        authorizer.require("C", service, "PublishToTopic", asked)
    except UnauthorizedError:
        return False
    return True


@pytest.mark.parametrize(
    ("resource", "asked", "expected"),
    [
        ("*", "any/thing", True),
        ("a/*", "a/b/c", True),
        ("a/*/c", "a/x/y/c", True),
        ("a/*/c", "a/x/y/d", False),
        ("a/b", "a/b", True),
        ("a/b", "a/bc", False),
        ("a.b", "aXb", False),
        ("a/${*}/b", "a/*/b", True),
        ("a/${*}/b", "a/x/b", False),
    ],
)
def test_a_star_matches_any_text_in_both_services(resource: str, asked: str, expected: bool) -> None:
    assert allowed(Service.PUBSUB, resource, asked) is expected
    assert allowed(Service.MQTT_PROXY, resource, asked) is expected


@pytest.mark.parametrize(
    ("resource", "asked", "expected"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/x/c", False),
        ("a/+/c", "a/+/c", True),  # a subscription with the wildcard itself
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "x/y", True),
        ("+", "x", True),
        ("+", "x/y", False),
        ("a+b", "axb", False),
    ],
)
def test_mqtt_wildcards_count_for_iot_core_only(resource: str, asked: str, expected: bool) -> None:
    assert allowed(Service.MQTT_PROXY, resource, asked) is expected
    assert allowed(Service.PUBSUB, resource, asked) is (resource == asked)


def test_only_the_named_operation_is_allowed() -> None:
    assert allowed(Service.PUBSUB, "*", "t", operations=["aws.greengrass#PublishToTopic"])
    assert not allowed(Service.PUBSUB, "*", "t", operations=["aws.greengrass#SubscribeToTopic"])


@pytest.mark.parametrize("configuration", [{}, {"accessControl": None}, {"accessControl": {Service.PUBSUB.value: 3}}])
def test_without_a_policy_nothing_is_allowed(configuration: Any) -> None:
    with pytest.raises(UnauthorizedError):
        Authorizer(lambda _: configuration).require("C", Service.PUBSUB, "PublishToTopic", "t")


def test_a_malformed_policy_grants_nothing_and_breaks_no_other() -> None:
    policies = {"bad": {"operations": 5}, "good": {"operations": ["*"], "resources": ["t"]}}
    authorizer = Authorizer(lambda _: {"accessControl": {Service.PUBSUB.value: policies}})
    authorizer.require("C", Service.PUBSUB, "PublishToTopic", "t")
    with pytest.raises(UnauthorizedError):
        authorizer.require("C", Service.PUBSUB, "PublishToTopic", "u")

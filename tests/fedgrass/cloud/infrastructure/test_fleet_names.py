"""Two fleets share the name of nothing, and two devices neither: every name that is made of theirs, over many pairs."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.account import Account
from fedgrass.cloud.infrastructure import deploy, destroy, provision
from fedgrass.cloud.infrastructure.identity import subject
from fedgrass.cloud.infrastructure.parameters import check_parameters
from fedgrass.cloudformation import stack_name
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.device_policy import policy_name, policy_prefix
from fedgrass.protocol.names import (
    check_fleet,
    defender_topic,
    device_topic,
    job_prefix,
    report_prefix,
    round_topic,
    update_key,
)
from tests.fedgrass.cloud.infrastructure.resolved import Template

# What names differ in where they go wrong: case, the marks that are replaced, and an end beyond 32 characters.
_PLAIN = string.ascii_letters + string.digits
_COMMON = st.sampled_from(["", "mill", "a" * 31, "a" * 32, "Mill-north_1"])
_END = st.text("aA1-_u.", max_size=8)
fleets = st.one_of(
    st.builds("".join, st.tuples(st.sampled_from(_PLAIN), st.text(f"{_PLAIN}_-", max_size=39))),
    st.builds(lambda common, end: f"{common}{end}", _COMMON, _END).filter(
        lambda name: re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,39}", name) is not None
    ),
)
things = st.one_of(
    st.text(f"{_PLAIN}:_-", min_size=1, max_size=128),
    st.builds(
        lambda common, end: f"{common}{end}",
        st.sampled_from(["", "press", "t" * 110, "t" * 120, "north-1"]),
        st.text("aA1-_:", min_size=1, max_size=8),
    ),
)
_POLICY = re.compile(r"[\w+=,.@-]{1,128}", re.ASCII)
_NAME_PROPERTIES = (
    "Name",
    "RuleName",
    "RoleName",
    "PolicyName",
    "MetricName",
    "TopicName",
    "QueueName",
    "BucketName",
    "TableName",
)


@settings(max_examples=2000, deadline=None)
@given(st.tuples(fleets, things), st.tuples(fleets, things))
def test_what_is_named_after_a_device_is_named_after_no_other(one: tuple[str, str], other: tuple[str, str]) -> None:
    for make in (
        policy_name,
        subject,
        lambda fleet, thing: device_topic(fleet, thing, "update"),
        lambda f, t: update_key(f, 1, t),
    ):
        assert (make(*one) == make(*other)) == (one == other)
    assert _POLICY.fullmatch(policy_name(*one))
    assert policy_name(*one).startswith(policy_prefix(one[0]))
    assert not (one[0] != other[0] and policy_name(*one).startswith(policy_prefix(other[0])))
    assert (defender_topic(one[1]) == defender_topic(other[1])) == (one[1] == other[1])


@settings(max_examples=2000, deadline=None)
@given(fleets, fleets)
def test_what_is_named_after_a_fleet_is_named_after_no_other(one: str, other: str) -> None:
    same = one == other
    for make in (stack_name, job_prefix, policy_prefix, round_topic, lambda fleet: report_prefix(fleet, 1)):
        assert (make(one) == make(other)) == same
        assert same or not make(one).startswith(job_prefix(other))
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{0,127}", stack_name(one))


def _names(fleet: str) -> Iterator[tuple[str, str]]:
    """Type and name of each resource of the template that is named."""
    for resource in _template(fleet).resources.values():
        kind = resource["Type"]
        own = f"{kind.rpartition('::')[2]}Name"
        for key in {
            own,
            "AlarmName",
            "StateMachineName",
            "ThingGroupName",
            "DashboardName",
            "LogGroupName",
            "RoleAlias",
            "SecurityProfileName",
            "ModelPackageGroupName",
            "RepositoryName",
            "TemplateName",
            *_NAME_PROPERTIES,
        }:
            if isinstance(resource.get(key), str) and (kind, key) != ("AWS::CloudWatch::Alarm", "MetricName"):
                yield kind, resource[key]


@cache
def _template(fleet: str) -> Template:
    # Each stack has an id of its own; here by the fleet's digest.
    return Template(
        Fleet=fleet, DeviceDefender="true", ClaimPrefix="p", SiloAccounts="210987654321", Schedule="rate(1 day)"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mill-1", "mill_1"),
        ("a" * 32 + "1", "a" * 32 + "2"),
        ("mill", "mill-round"),
        ("mill", "mill-image"),
        ("m-u1", "m_1"),
        ("Mill", "mill"),
    ],
)
def test_two_stacks_share_the_name_of_no_resource(one: str, other: str) -> None:
    by_stack = {
        "AWS::ECR::Repository",
        "AWS::SageMaker::ModelPackageGroup",
    }  # of the stack's own id, which the simulator has once
    first = {entry for entry in _names(one) if entry[0] not in by_stack}
    second = {entry for entry in _names(other) if entry[0] not in by_stack}
    assert len(first) > 20
    assert first & second == set()
    # IAM and S3 tell no case apart: nothing of theirs is named after a fleet.
    assert not {kind for kind, _ in first} & {"AWS::IAM::Role", "AWS::S3::Bucket", "AWS::IAM::ManagedPolicy"}


def test_one_fleet_s_dashboard_is_not_that_of_the_same_name_in_another_region() -> None:
    [dashboard] = Template().of_type("AWS::CloudWatch::Dashboard").values()
    assert dashboard["DashboardName"] == "fedgrass-digits-eu-central-1"
    regions = boto3.session.Session().get_available_regions("iot")
    assert not [(one, other) for one in regions for other in regions if one != other and one.endswith(f"-{other}")]


@pytest.mark.parametrize(
    "fleet", ["", "a" * 41, "-mill", "_mill", "mill north", "mill.north", "mill/1", "mill\n", "mïll"]
)
def test_a_name_that_the_template_refuses_is_refused_by_every_command_before_anything_is_asked(
    fleet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: Any, **__: Any) -> Any:
        raise AssertionError("AWS was asked")

    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(boto3.session.Session, "client", unasked)
    monkeypatch.setattr("fedgrass.cloud.infrastructure.script.identify", unasked)
    with pytest.raises(ConfigurationError, match="expected 1 to 40"):
        check_fleet(fleet)
    with pytest.raises(ConfigurationError, match="expected 1 to 40"):
        Account.of(fleet)
    for dry_run in (False, True):
        with pytest.raises(ConfigurationError, match="expected 1 to 40"):
            deploy.main(fleet, dry_run=dry_run)
        with pytest.raises(ConfigurationError, match="expected 1 to 40"):
            destroy.main(fleet, yes=True, dry_run=dry_run)
        with pytest.raises(ConfigurationError, match="expected 1 to 40"):
            provision.main(["press"], fleet, dry_run=dry_run)


@pytest.mark.parametrize("thing", ["", "a" * 129, "a b", "a/b", "ä", "a\n", "a.b"])
def test_a_thing_s_name_is_refused_before_any_device_is_made(thing: str) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 128"):
        provision.main(["press", thing], "mill")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BucketName", "Has.Dots"),
        ("BucketName", "my.bucket"),
        ("ModelComponent", "a b"),
        ("InstanceType", "m5.large"),
        ("InstanceCount", "0"),
        ("InstanceCount", "many"),
        ("InstanceCount", "101"),
        ("AlarmMail", "nobody"),
        ("Schedule", "daily"),
        ("LogRetentionDays", "2"),
        ("UpdateRetentionDays", "0"),
        ("HeartbeatRetentionSeconds", "60"),
        ("DeviceDefender", "yes"),
        ("ClaimPrefix", "a:b"),
        ("TrackingServer", "https://mlflow"),
        ("Fleet", "other"),
        ("FleetDigest", "0" * 16),
    ],
)
def test_a_parameter_that_the_template_would_refuse_is_refused_before_anything_is_made(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"parameter {name}"):
        check_parameters({name: value})


def test_the_template_s_own_defaults_are_taken() -> None:
    for name, declared in Template().document["Parameters"].items():
        if "Default" in declared:
            check_parameters({name: str(declared["Default"])}) if name != "ImageTag" else None
